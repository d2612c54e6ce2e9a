"""People other than the user: their names, relations and attributes."""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import cache

from deltamem_agents.lab.corpus.attributes import Attribute, Person, read_attributes
from deltamem_agents.lab.corpus.splits import Split
from deltamem_agents.lab.corpus.tables import corpus_table
from deltamem_agents.lab.corpus.values import values_of

RELATION_SHARE, NAMED_RELATION_SHARE = 0.5, 0.5
"""Probability that a person is named by relation, and that such a person has a name as well."""


def relations(*, held_out: bool = False) -> tuple[str, ...]:
    """People's relations to the user, such as "sister"."""
    found: tuple[str, ...] = corpus_table("people", held_out=held_out)["relations"]
    return found


@cache
def traits(*, held_out: bool = False) -> tuple[Attribute, ...]:
    """Attributes of people."""
    return read_attributes(corpus_table("people", held_out=held_out)["traits"])


def draw_person(rng: random.Random, split: Split, *, held_out_relations: bool, avoid: Collection[str]) -> Person | None:
    """A person whose relation and name are not in `avoid` (lower-case words). None if nobody is left."""
    free_relations = [relation for relation in relations(held_out=held_out_relations) if relation not in avoid]
    free_names = [name for name in values_of("person", split) if name.lower() not in avoid]
    if free_relations and (not free_names or rng.random() < RELATION_SHARE):
        named = free_names and rng.random() < NAMED_RELATION_SHARE
        return Person(rng.choice(free_relations), rng.choice(free_names) if named else "")
    return Person(name=rng.choice(free_names)) if free_names else None
