"""An attribute: one thing that can be told, of the user or of another person."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltamem_agents.lab.training.phrasings import ANSWER_PREFIX, fill


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


def plain(names: str, values: str) -> tuple[Attribute, ...]:
    """Attributes that have only the general phrasings."""
    return tuple(Attribute(" ".join(name.split()), values) for name in names.split(","))


def names_of(owners: str, values: str) -> tuple[Attribute, ...]:
    """The names of people, animals and things, "dog" becoming "dog's name"."""
    return tuple(_name_of(" ".join(who.split()), values) for who in owners.split(","))


def _name_of(who: str, values: str) -> Attribute:
    told: tuple[str, ...] = (
        f"My {who} is called {{v}}.",
        f"I have a {who} called {{v}}.",
        f"My {who} is named {{v}}.",
        f"Have you met {{v}}? That's my {who}.",
        f"I was out with my {who} {{v}} today.",
        f"My {who} goes by {{v}}.",
        f"Yesterday {{v}}, my {who}, made me laugh.",
    )
    asked: tuple[str, ...] = (
        f"What is my {who} called?",
        f"What's the name of my {who}?",
        f"Who is my {who}?",
        f"Do you know my {who}?",
        f"How is my {who} called?",
        f"I mentioned my {who} by name. Which name was it?",
    )
    changed: tuple[str, ...] = (f"I have another {who} now, called {{v}}.",)
    if values == "pet":
        told = (*told, f"We named our {who} {{v}}.", f"We have a new {who}, called {{v}}.")
        asked = (*asked, f"What did we name our {who}?")
        changed = (f"We renamed our {who} to {{v}}.", f"My {who} got a new name, {{v}}.")
    return Attribute(f"{who}'s name", values, told, asked, changed)


def jobs_of(people: str) -> tuple[Attribute, ...]:
    """What other people do for a living."""
    return tuple(
        Attribute(
            f"{who}'s job",
            "job",
            told=(f"My {who} is a {{v}}.", f"My {who} works as a {{v}}.", f"My {who} became a {{v}} last year."),
            asked=(f"What does my {who} do?", f"What is my {who}'s profession?", f"What does my {who} work as?"),
            changed=(f"My {who} has changed careers and is a {{v}} now.",),
        )
        for who in (part.strip() for part in people.split(","))
    )
