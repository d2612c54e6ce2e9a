"""Attributes: what a fact can state about the user or another person, such as a city or a dog's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltamem_agents.lab.corpus.phrasings import ANSWER_PREFIX, fill
from deltamem_agents.lab.corpus.tables import corpus_table


@dataclass(frozen=True)
class Person:
    """A person the user talks about: by relation ("sister"), by name, or by both ("sister Anna")."""

    relation: str = ""
    name: str = ""

    @property
    def subject(self) -> str:
        return f"{self.relation} {self.name}".strip()

    @property
    def mine(self) -> str:
        """How the user names the person: "my sister Anna"."""
        return f"my {self.subject}" if self.relation else self.name

    @property
    def yours(self) -> str:
        """How the assistant names the person: "your sister Anna"."""
        return f"your {self.subject}" if self.relation else self.name


@dataclass(frozen=True)
class Attribute:
    """An attribute that a fact states, for example "city". `values` names a list of values; "word" stands for any word.

    `told`, `asked`, `changed`: the attribute's own phrasings for statements, questions and changes, used besides the
    general ones. `arranged`: (user's request, assistant's statement) pairs. `replies`: beginnings of replies that fit
    it. `person`: whose attribute it is, None for the user's; phrasings name the person by {who} and {Who}.
    """

    name: str
    values: str = "word"
    told: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    arranged: tuple[tuple[str, str], ...] = ()
    replies: tuple[str, ...] = ()
    person: Person | None = None

    @property
    def subject(self) -> str:
        """The attribute with its owner: "city" (the user's), "Tom's city", "sister Anna's city"."""
        return self.name if self.person is None else f"{self.person.subject}'s {self.name}"

    @property
    def slots(self) -> dict[str, str]:
        """Texts for the slots of phrasings (see `phrasings.py`)."""
        owner = Person("self") if self.person is None else self.person
        mine = f"my {self.name}" if self.person is None else f"{owner.mine}'s {self.name}"
        yours = f"your {self.name}" if self.person is None else f"{owner.yours}'s {self.name}"
        return {
            "a": self.name,
            "of": "user" if self.person is None else owner.subject,
            "mine": mine,
            "Mine": capitalised(mine),
            "yours": yours,
            "Yours": capitalised(yours),
            "who": owner.mine,
            "Who": capitalised(owner.mine),
            "they": owner.yours,
            "They": capitalised(owner.yours),
        }

    @property
    def prefix(self) -> str:
        """The usual beginning of a reply to a question about it."""
        return fill(ANSWER_PREFIX, self.slots).text

    def of(self, person: Person) -> Attribute:
        return replace(self, person=person)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_attributes(rows: Iterable[Mapping[str, Any]]) -> tuple[Attribute, ...]:
    """Attributes from a table, in its order.

    A row is one attribute with its own phrasings, or describes several: {"plain": names} for attributes with only the
    general phrasings, {"names_of": owners}, {"jobs_of": owners}.
    """
    return tuple(attribute for row in rows for attribute in _of_row(row))


def _of_row(row: Mapping[str, Any]) -> Iterator[Attribute]:
    if "plain" in row:
        yield from (Attribute(name, row["values"]) for name in row["plain"])
    elif "names_of" in row:
        yield from (_name_of(owner, row["values"]) for owner in row["names_of"])
    elif "jobs_of" in row:
        yield from (_of_owner(owner, "job", "job", corpus_table("owned")["job"]) for owner in row["jobs_of"])
    else:
        yield Attribute(**row)


def _name_of(owner: str, values: str) -> Attribute:
    """The name of a person, an animal or a thing: "dog" becomes "dog's name"."""
    owned = corpus_table("owned")
    named, pets = owned["name"], owned["pet"]
    if values == "pet":
        named = {**pets, "told": named["told"] + pets["told"], "asked": named["asked"] + pets["asked"]}
    return _of_owner(owner, "name", values, named)


def _of_owner(owner: str, what: str, values: str, phrasings: Mapping[str, tuple[str, ...]]) -> Attribute:
    """An owner's attribute, from phrasings with the slot {owner}."""
    told, asked, changed = (
        tuple(text.replace("{owner}", owner) for text in phrasings[kind]) for kind in ("told", "asked", "changed")
    )
    return Attribute(f"{owner}'s {what}", values, told, asked, changed)
