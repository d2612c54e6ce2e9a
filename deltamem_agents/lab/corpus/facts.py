"""The user's attributes, and which of them one question could mean."""

from __future__ import annotations

from functools import cache

from deltamem_agents.lab.corpus.attributes import Attribute, Person, read_attributes
from deltamem_agents.lab.corpus.tables import corpus_table

_CLOSEST = {f"{who}'s name" for who in ("dog", "cat", "sister", "brother", "wife", "husband", "best friend")}
_NONE: frozenset[int] = frozenset()


@cache
def attributes(*, held_out: bool = False) -> tuple[Attribute, ...]:
    """The user's attributes: those of training, or with `held_out` those that training never mentions."""
    return read_attributes(corpus_table("attributes", held_out=held_out))


@cache
def everyday() -> frozenset[str]:
    """Names of attributes that people state most often, with phrasings of their own: "I live in Oslo."."""
    return frozenset(
        attribute.name
        for attribute in attributes()
        if attribute.told and (attribute.name in _CLOSEST or not attribute.name.endswith(("'s name", "'s job")))
    )


@cache
def _groups() -> dict[str, frozenset[int]]:
    """Group numbers of each attribute. Attributes of one group can be meant by one question: "Where do I live?" may ask
    for the city or the hometown."""
    groups: tuple[tuple[str, ...], ...] = corpus_table("same_subject")
    return {
        name: frozenset(number for number, names in enumerate(groups) if name in names)
        for name in dict.fromkeys(name for names in groups for name in names)
    }


def same_subject(one: Attribute, other: Attribute) -> bool:
    """Whether a question about one could be understood as a question about the other."""
    if one.person is None and other.person is None:
        return _alike(one, other)
    if one.person is None or other.person is None:
        users, persons = (one, other.person) if other.person else (other, one.person)
        return persons is not None and users.name.startswith(f"{persons.relation or persons.name}'s ")
    if one.person == other.person:
        return _alike(one, other)
    return _mistakable(one.person, other.person)


def _alike(one: Attribute, other: Attribute) -> bool:
    groups = _groups()
    return one.name == other.name or not groups.get(one.name, _NONE).isdisjoint(groups.get(other.name, _NONE))


def _mistakable(one: Person, other: Person) -> bool:
    """Whether naming one person could mean the other: same relation or same name."""
    same_relation = one.relation != "" and one.relation == other.relation
    return same_relation or (one.name != "" and one.name == other.name)
