"""Facts about people other than the user: who they are, and what can be told of them."""

from __future__ import annotations

import random
from collections.abc import Collection

from deltamem_agents.lab.training.attributes import Attribute, Person, plain
from deltamem_agents.lab.training.splits import Split
from deltamem_agents.lab.training.values import values_of

RELATIONS = (
    "sister", "brother", "colleague", "neighbour", "cousin", "friend", "boss", "uncle", "mother", "father", "daughter",
    "son", "flatmate", "teacher", "husband", "wife", "grandfather", "nephew", "classmate", "assistant", "landlord",
    "trainer", "partner", "client",
)  # fmt: skip
HELD_OUT_RELATIONS = (
    "aunt", "niece", "grandmother", "stepbrother", "godfather", "pen friend", "intern", "lodger", "mentor",
    "son-in-law",
)  # fmt: skip

RELATION_SHARE, NAMED_RELATION_SHARE = 0.5, 0.5
"""Chance that a person is named by relation, and that such a one has a name as well."""

PEOPLE_STATEMENTS = (
    "I spoke to {who} today, and {mine} is {v}.",
    "{Who} told me that {mine} is {v}.",
    "You don't know {who} yet. {Mine} is {v}.",
    "In case you meet {who}: {mine} is {v}.",
    "About {who}, you should know that {mine} is {v}.",
    "According to {who}, {mine} is {v}.",
    "I learned something about {who}: {mine} is {v}.",
    "For {who} I have {v} written down as {mine}.",
)
PEOPLE_QUESTIONS = (
    "I am meeting {who} later. What is {mine}?",
    "You know {who}, right? What's {mine}?",
    "What did I tell you about {who}? I mean {mine}.",
    "Thinking of {who}, what is {mine}?",
)

TRAITS: tuple[Attribute, ...] = (
    Attribute(
        "city",
        "place",
        told=("{Who} lives in {v}.", "{Who} has lived in {v} for years.", "I visited {who} in {v}, where they live."),
        asked=("Where does {who} live?", "Which city does {who} live in?", "Where is {who} living?"),
        changed=("{Who} has moved and lives in {v} now.", "{Who} left town for {v}."),
        replies=("{They} lives in",),
    ),
    Attribute(
        "job",
        "job",
        told=("{Who} works as a {v}.", "{Who} is a {v} by profession.", "For a living, {who} is a {v}."),
        asked=("What does {who} do for a living?", "What does {who} work as?"),
        changed=("{Who} has a new job as a {v}.",),
    ),
    Attribute(
        "allergy",
        "food",
        told=("{Who} is allergic to {v}.", "When {who} comes to dinner, keep {v} away, it's an allergy."),
        asked=("What is {who} allergic to?",),
        replies=("{They} is allergic to",),
    ),
    Attribute(
        "instrument",
        "instrument",
        told=("{Who} plays the {v}.", "{Who} has been practising the {v} since childhood."),
        asked=("Which instrument does {who} play?", "What instrument does {who} practise?"),
        changed=("{Who} has switched to the {v}.",),
        replies=("{They} plays the",),
    ),
    Attribute(
        "language",
        "language",
        told=("{Who} is learning {v}.", "{Who} takes lessons in {v}."),
        asked=("Which language is {who} learning?", "What language does {who} take lessons in?"),
        replies=("{They} is learning",),
    ),
    Attribute(
        "employer",
        "word",
        told=("{Who} works for {v}.", "{Who} got hired by {v}."),
        asked=("Who does {who} work for?", "Which company hired {who}?"),
        changed=("{Who} has quit and works for {v} now.",),
        replies=("{They} works for",),
    ),
    Attribute(
        "hobby",
        "hobby",
        told=("In the evenings {who} enjoys {v}.", "{Who} is crazy about {v}."),
        asked=("What does {who} enjoy in the evenings?", "What is {who} crazy about?"),
        replies=("{They} enjoys",),
    ),
    Attribute(
        "car",
        "word",
        told=("{Who} drives a {v}.", "{Who} bought a {v} last month."),
        asked=("What does {who} drive?", "Which car did {who} buy?"),
    ),
    Attribute(
        "dog's name",
        "pet",
        told=("{Who} has a dog called {v}.", "{Who} walks a dog named {v}."),
        asked=("What is the dog of {who} called?", "How did {who} name the dog?"),
    ),
    Attribute(
        "age",
        "age",
        told=("{Who} is {v} years old.", "{Who} turned {v} this year."),
        asked=("How old is {who}?", "What age is {who}?"),
    ),
    Attribute(
        "birthday",
        "date",
        told=("{Who} was born on {v}.", "{Who} has a birthday party on {v}."),
        asked=("When was {who} born?", "On which date is the birthday party of {who}?"),
        replies=("{They} was born on",),
    ),
    *plain("favourite drink, nickname, team, favourite brand, password, favourite song, school, cafe, club", "word"),
    *plain("favourite colour, car colour, bike colour", "colour"),
    *plain("favourite food, favourite fruit, usual breakfast", "food"),
    *plain("hometown, holiday destination, birthplace", "place"),
    *plain("favourite animal, favourite bird", "animal"),
    *plain("cat's name, horse's name", "pet"),
    *plain("best friend's name, teacher's name", "person"),
    *plain("favourite sport", "hobby"),
    *plain("locker number, room number, seat number, flat number", "number"),
    *plain("PIN, phone extension, order number", "code"),
    *plain("arrival date, exam date, wedding anniversary", "date"),
    *plain("train time, bedtime, lunch break", "time"),
    *plain("doctor's full name, accountant's name", "full name"),
    *plain("favourite restaurant", "restaurant"),
    *plain("favourite film", "title"),
    *plain("birthday present", "thing"),
    *plain("address", "address"),
)

HELD_OUT_TRAITS: tuple[Attribute, ...] = (
    *plain("favourite flower, favourite spice, hideout, quiz team, ring name, fan club, patron saint", "word"),
    *plain("grandparents' city, summer house location, honeymoon destination", "place"),
    *plain("rabbit's name, canary's name", "pet"),
    *plain("least favourite vegetable, comfort food", "food"),
    *plain("favourite insect, totem", "animal"),
    *plain("umbrella colour, hair colour", "colour"),
    *plain("childhood dream", "job"),
    *plain("badge number, cabin number", "number"),
    *plain("locker combination", "code"),
    *plain("graduation date, name day", "date"),
    *plain("boarding time, curfew", "time"),
    *plain("godmother's name", "full name"),
    *plain("favourite tavern", "restaurant"),
    *plain("bedside book", "title"),
    *plain("lost item", "thing"),
)


def draw_person(rng: random.Random, split: Split, *, held_out_relations: bool, avoid: Collection[str]) -> Person:
    """Somebody whose relation and name are not among `avoid`, in which names and relations are lower-case words."""
    relations = HELD_OUT_RELATIONS if held_out_relations else RELATIONS
    free_relations = [relation for relation in relations if relation not in avoid]
    free_names = [name for name in values_of("person", split) if name.lower() not in avoid]
    if free_relations and (not free_names or rng.random() < RELATION_SHARE):
        named = free_names and rng.random() < NAMED_RELATION_SHARE
        return Person(rng.choice(free_relations), rng.choice(free_names) if named else "")
    return Person(name=rng.choice(free_names))
