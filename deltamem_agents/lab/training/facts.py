"""All that can be told of the user, and which of it one question may be asking for."""

from __future__ import annotations

from deltamem_agents.lab.training.attributes import Attribute, Person
from deltamem_agents.lab.training.composed_facts import COMPOSED_ATTRIBUTES
from deltamem_agents.lab.training.held_out_facts import HELD_OUT_COMPOSED_ATTRIBUTES, HELD_OUT_WORD_ATTRIBUTES
from deltamem_agents.lab.training.word_facts import WORD_ATTRIBUTES

ATTRIBUTES: tuple[Attribute, ...] = (*WORD_ATTRIBUTES, *COMPOSED_ATTRIBUTES)
HELD_OUT_ATTRIBUTES: tuple[Attribute, ...] = (*HELD_OUT_WORD_ATTRIBUTES, *HELD_OUT_COMPOSED_ATTRIBUTES)

_CLOSEST = {f"{who}'s name" for who in ("dog", "cat", "sister", "brother", "wife", "husband", "best friend")}
EVERYDAY: frozenset[str] = frozenset(
    attribute.name
    for attribute in ATTRIBUTES
    if attribute.told and (attribute.name in _CLOSEST or not attribute.name.endswith(("'s name", "'s job")))
)
"""Names of what people tell of themselves most often, in words that nothing else is told in: "I live in Oslo."."""

SAME_SUBJECT: tuple[frozenset[str], ...] = (
    frozenset({"name", "nickname", "username", "call sign", "pen name"}),
    frozenset({"name", "job"}),
    frozenset({"job", "first job", "dream job"}),
    frozenset(
        {"city", "hometown", "birthplace", "favourite city", "parents' town", "office location", "place of birth"}
    ),
    frozenset({"holiday destination", "next travel destination", "travel plan"}),
    frozenset({"place of birth", "birthday month"}),
    frozenset({"favourite colour", "favorite color", "lucky colour"}),
    frozenset(
        {
            "favourite food",
            "favorite food",
            "favourite dish",
            "favourite snack",
            "favourite dessert",
            "favourite fruit",
        }
    ),
    frozenset(
        {"hobby", "favourite sport", "favourite pastime", "evening class", "childhood hobby", "holiday activity"}
    ),
    frozenset({"instrument", "favourite sport", "favourite game"}),
    frozenset({"favourite animal", "favourite bird", "spirit animal"}),
    *(
        frozenset({f"{who}'s name", f"{who}'s job"})
        for who in ("sister", "brother", "neighbour", "husband", "mother", "cousin", "best friend")
    ),
    frozenset({"job", "employer", "company name"}),
    frozenset({"car", "car's name", "car colour"}),
    frozenset({"dog's name", "puppy's name"}),
    frozenset({"password", "code word", "secret word", "safe word", "keyword", "access word", "login hint"}),
    frozenset({"company name", "start-up's name"}),
    frozenset({"birthday", "birthday month"}),
    frozenset({"meeting day", "meeting time", "appointment date"}),
    frozenset({"meeting room", "room number", "meeting place"}),
    frozenset({"address", "house number", "street", "flat number", "apartment number"}),
    frozenset({"favourite restaurant", "favourite bistro", "lunch spot", "local pub", "favourite shop", "cafe"}),
    frozenset({"current read", "favourite novel", "favourite book"}),
    frozenset({"latest purchase", "prized possession", "most useful thing", "souvenir"}),
    frozenset({"order number", "last order", "booking code"}),
    frozenset({"language", "second language"}),
    frozenset({"instrument", "first instrument"}),
    frozenset({"doctor's name", "doctor's full name"}),
    frozenset({"boss's name", "manager's full name"}),
    frozenset({"teacher's name", "piano teacher's name", "tutor's name"}),
    frozenset({"favourite film", "first film"}),
    frozenset({"height", "weight", "shoe size"}),
    frozenset({"bus line", "train time"}),
)
"""Attributes that one question may be asking for: "Where do I live?" may mean the city or the hometown."""

_NONE: frozenset[int] = frozenset()
_GROUPS = {
    name: frozenset(number for number, names in enumerate(SAME_SUBJECT) if name in names)
    for name in frozenset().union(*SAME_SUBJECT)
}


def same_subject(one: Attribute, other: Attribute) -> bool:
    """Whether a question about one may be taken for a question about the other."""
    if one.person is None and other.person is None:
        return _alike(one, other)
    if one.person is None or other.person is None:
        users, persons = (one, other.person) if other.person else (other, one.person)
        return persons is not None and users.name.startswith(f"{persons.relation or persons.name}'s ")
    if one.person == other.person:
        return _alike(one, other)
    return _mistakable(one.person, other.person)


def _alike(one: Attribute, other: Attribute) -> bool:
    return one.name == other.name or not _GROUPS.get(one.name, _NONE).isdisjoint(_GROUPS.get(other.name, _NONE))


def _mistakable(one: Person, other: Person) -> bool:
    """Whether one of the two may be meant where the other is named."""
    same_relation = one.relation != "" and one.relation == other.relation
    return same_relation or (one.name != "" and one.name == other.name)
