"""An attribute: one thing that can be told, of the user or of another person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltamem_agents.lab.corpus.phrasings import ANSWER_PREFIX, fill
from deltamem_agents.lab.corpus.tables import corpus_table


@dataclass(frozen=True)
class Person:
    """Somebody the user talks about: by relation ("sister"), by name, or by both ("sister Anna")."""

    relation: str = ""
    name: str = ""

    @property
    def subject(self) -> str:
        return f"{self.relation} {self.name}".strip()

    @property
    def mine(self) -> str:
        """As the user names them."""
        return f"my {self.subject}" if self.relation else self.name

    @property
    def yours(self) -> str:
        """As the assistant names them."""
        return f"your {self.subject}" if self.relation else self.name


@dataclass(frozen=True)
class Attribute:
    """One thing that can be told. `values` names a list of values, or "word" for any word.

    `told`, `asked`, `changed` and `arranged` (what the user asks for, what the assistant then tells) are its
    own phrasings beside the general ones; `replies` are beginnings of replies that fit it. With a `person` it
    is theirs, and phrasings may have {who} and {Who} for them; otherwise it is the user's.
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
        """Names it among all attributes: "city", "Tom's city", "sister Anna's city"."""
        return self.name if self.person is None else f"{self.person.subject}'s {self.name}"

    @property
    def slots(self) -> dict[str, str]:
        """What phrasings may say of it."""
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
        """How the reply to a question about it begins."""
        return fill(ANSWER_PREFIX, self.slots).text

    def of(self, person: Person) -> Attribute:
        return replace(self, person=person)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_attributes(rows: Iterable[Mapping[str, Any]]) -> tuple[Attribute, ...]:
    """Attributes from a table, in its order.

    A row is an attribute with phrasings of its own, {"plain": names} of such as have only the general ones,
    {"names_of": owners} or {"jobs_of": owners}.
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
    """The name of a person, an animal or a thing, "dog" becoming "dog's name"."""
    owned = corpus_table("owned")
    named, pets = owned["name"], owned["pet"]
    if values == "pet":
        named = {**pets, "told": named["told"] + pets["told"], "asked": named["asked"] + pets["asked"]}
    return _of_owner(owner, "name", values, named)


def _of_owner(owner: str, what: str, values: str, phrasings: Mapping[str, tuple[str, ...]]) -> Attribute:
    """Something of an owner's, in phrasings that have {owner}."""
    told, asked, changed = (
        tuple(text.replace("{owner}", owner) for text in phrasings[kind]) for kind in ("told", "asked", "changed")
    )
    return Attribute(f"{owner}'s {what}", values, told, asked, changed)
