"""Chooses an episode's subjects: attributes of the user and of other people, no two of which can be confused."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.corpus.attributes import Attribute, Person
from deltamem_agents.lab.corpus.facts import attributes, everyday, same_subject
from deltamem_agents.lab.corpus.people import draw_person, traits
from deltamem_agents.lab.corpus.splits import Split
from deltamem_agents.lab.corpus.values import ValueKind, kind_of

About: TypeAlias = Literal["user", "person"]

SAME_PERSON_SHARE = 0.3
"""Probability that a fact about a person is about somebody already mentioned."""

USERS_OWN_SHARE = 0.3
"""Probability that the counterpart of a person's attribute is the user's own."""

TRIES = 20


class Subjects:
    """Attributes to choose from, by kind of value and by owner.

    Each attribute draws from `kinds` and from `about`; repeated entries are drawn more often. `everyday_share`:
    probability that an attribute of the user is one of those that people state most often, if one is free.
    """

    def __init__(
        self,
        kinds: Sequence[ValueKind],
        about: Sequence[About],
        split: Split,
        *,
        held_out: bool,
        everyday_share: float = 0.0,
    ) -> None:
        self._kinds, self._about, self._split, self._held_out = kinds, about, split, held_out
        self._own = attributes(held_out=held_out)
        self._traits = traits(held_out=held_out)
        self._everyday_share = everyday_share
        names = everyday()
        self._everyday_by_kind = _by_kind([attribute for attribute in self._own if attribute.name in names])
        self._own_by_kind, self._traits_by_kind = _by_kind(self._own), _by_kind(self._traits)

    @property
    def most(self) -> int | None:
        """Maximum number of facts in an episode; None if there can always be another person."""
        if "person" in self._about:
            return None
        return sum(len(self._own_by_kind[kind]) for kind in set(self._kinds))

    def another(self, rng: random.Random, taken: Sequence[Attribute]) -> Attribute:
        """An attribute that cannot be confused with any of `taken`. Raises ConfigError when none is left."""
        for owner in self._owners(rng, taken):
            if found := self._of(owner, rng, taken):
                return found
        raise ConfigError(f"no attribute is left besides {len(taken)} others; ask for fewer facts per episode")

    def alike(
        self, rng: random.Random, taken: Sequence[Attribute], *, avoid: Collection[str] = (), own: bool
    ) -> Attribute:
        """The same attribute as one of `taken`, for an owner whose value is not told. `own`: it may be the user.

        No person has a name or relation in `avoid` (lower-case words). Raises ConfigError when nobody is left.
        """
        like = rng.choice(taken)
        if own and like.person is not None and rng.random() < USERS_OWN_SHARE:
            users = _named(like, self._own)
            if not any(same_subject(users, other) for other in taken):
                return users
        trait = _named(like, self._traits)
        for _ in range(TRIES):
            person = self._new_person(rng, taken, avoid)
            if person is None:
                break
            of_person = trait.of(person)
            if not any(same_subject(of_person, other) for other in taken):
                return of_person
        raise ConfigError(f"no person is left besides {len(taken)} others; ask for fewer facts per episode")

    def _owners(self, rng: random.Random, taken: Sequence[Attribute]) -> Iterator[Person | None]:
        """Whose attribute to choose: an owner drawn from `about`, then everybody else. None is the user."""
        drawn = rng.choice(self._about)
        if drawn == "user":
            yield None
        elif person := self._person(rng, taken):
            yield person
        if "person" in self._about and (person := self._new_person(rng, taken, ())):
            yield person
        if drawn != "user" and "user" in self._about:
            yield None
        if "person" in self._about:
            known = _people(taken)
            yield from rng.sample(known, len(known))

    def _of(self, person: Person | None, rng: random.Random, taken: Sequence[Attribute]) -> Attribute | None:
        """A free attribute of the person, or of the user if `person` is None."""
        drawn = rng.choice(self._kinds)
        most_often = person is None and self._everyday_share > 0 and rng.random() < self._everyday_share
        if most_often and (free := _free(rng, self._everyday_by_kind[drawn], taken)):
            return free
        for kind in (drawn, *(kind for kind in dict.fromkeys(self._kinds) if kind != drawn)):
            found = self._own_by_kind[kind]
            if person is not None:
                found = tuple(trait.of(person) for trait in self._traits_by_kind[kind])
            if free := _free(rng, found, taken):
                return free
        return None

    def _person(self, rng: random.Random, taken: Sequence[Attribute]) -> Person | None:
        known = [attribute.person for attribute in taken if attribute.person is not None]
        if known and rng.random() < SAME_PERSON_SHARE:
            return rng.choice(known)
        return self._new_person(rng, taken, ())

    def _new_person(self, rng: random.Random, taken: Sequence[Attribute], avoid: Collection[str]) -> Person | None:
        known = _people(taken)
        words = {*avoid, *(person.relation for person in known), *(person.name.lower() for person in known)}
        # A person in one of the user's attributes ("sister's name") does not become an owner of attributes as well.
        words |= {attribute.name.split("'s ")[0] for attribute in taken if attribute.person is None}
        return draw_person(rng, self._split, held_out_relations=self._held_out, avoid=words)


def _people(taken: Sequence[Attribute]) -> list[Person]:
    return list(dict.fromkeys(attribute.person for attribute in taken if attribute.person is not None))


def _free(rng: random.Random, choices: Sequence[Attribute], taken: Sequence[Attribute]) -> Attribute | None:
    def is_free(attribute: Attribute) -> bool:
        return not any(same_subject(attribute, other) for other in taken)

    for _ in range(TRIES if choices else 0):
        if is_free(attribute := rng.choice(choices)):
            return attribute
    free = [attribute for attribute in choices if is_free(attribute)]
    return rng.choice(free) if free else None


def _named(like: Attribute, choices: Sequence[Attribute]) -> Attribute:
    """The attribute of the same name in `choices`, else a new one without phrasings of its own."""
    found = next((attribute for attribute in choices if attribute.name == like.name), None)
    return found or Attribute(like.name, like.values)


def _by_kind(choices: Sequence[Attribute]) -> Mapping[ValueKind, tuple[Attribute, ...]]:
    kinds: tuple[ValueKind, ...] = ("word", "number", "date", "time", "phrase")
    return {kind: tuple(one for one in choices if kind_of(one.values) == kind) for kind in kinds}
