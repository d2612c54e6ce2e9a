"""Small talk without facts to remember: distractor turns for training, and other ones for evaluation.

Pairs of a user's message and a short reply, written for this project. Slots are filled at random so that
the same sentence is seldom met twice.
"""

from __future__ import annotations

import random


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(","))


_SLOTS: dict[str, tuple[str, ...]] = {
    "thing": _list(
        """window, lamp, kettle, ladder, mirror, blanket, engine, bridge, candle, hammer, compass, magnet, battery,
        pillow, bottle, carpet, curtain, faucet, freezer, helmet, jacket, keyboard, lighter, mattress, needle, oven,
        pencil, radiator, scissors, telescope, umbrella, vase, wallet, zipper, bucket, clock, drawer, envelope,
        fountain, glove"""
    ),
    "topic": _list(
        """volcanoes, gravity, photosynthesis, glaciers, the Roman Empire, jazz, bees, the moon, tides, inflation,
        recycling, rainbows, magnetism, vitamins, earthquakes, poetry, the printing press, coral reefs, migration,
        electricity, steam engines, deserts, comets, democracy, fermentation, sleep, erosion, penicillin, satellites,
        chess openings"""
    ),
    "n": tuple(str(n) for n in range(3, 60)),
    "verb": ("clean", "repair", "paint", "store", "move", "sell", "replace", "measure", "wrap", "decorate"),
    "dish": (
        "a simple soup",
        "fresh pasta",
        "a salad",
        "an omelette",
        "pancakes",
        "roast vegetables",
        "a stew",
        "bread",
    ),
}

_PAIRS: tuple[tuple[str, str], ...] = (
    (
        "How do I {verb} a {thing}?",
        "Start by putting the {thing} on a flat surface and work slowly from one side to the other.",
    ),
    (
        "Can you explain {topic} in one sentence?",
        "In short, {topic} can be understood as a process that changes slowly over time.",
    ),
    ("What is {n} plus {n2}?", "{n} plus {n2} is {sum}."),
    (
        "Tell me something interesting about {topic}.",
        "People have studied {topic} for a very long time, and there is still more to learn.",
    ),
    ("How long does it take to make {dish}?", "Making {dish} usually takes between twenty and forty minutes."),
    (
        "What's the difference between a {thing} and a {thing2}?",
        "A {thing} and a {thing2} serve different purposes, although both are found in many homes.",
    ),
    (
        "Could you write a short sentence with the word {thing}?",
        "The old {thing} stood quietly in the corner of the room.",
    ),
    ("I'm bored. Any ideas?", "You could read about {topic}, go for a walk, or try to cook {dish}."),
    ("Where can I buy a {thing}?", "Most hardware stores sell a {thing}, and you can also order one online."),
    ("It's been a long day.", "I'm sorry to hear that. A short rest and some tea may help."),
    ("Thanks for your help so far.", "You're welcome! Let me know if there is anything else."),
    ("Is a {thing} heavier than a {thing2}?", "It depends on the materials, but a {thing} is often heavier."),
    (
        "Give me a tip for learning about {topic}.",
        "Start with a good introduction to {topic} and take short notes as you read.",
    ),
    ("How many minutes are in {n} hours?", "There are {minutes} minutes in {n} hours."),
    ("What should I look for in a {thing}?", "Look for solid materials, a fair price, and good reviews."),
    ("The weather is strange this week.", "It has been changeable lately. A light jacket is a good idea."),
    ("Why is {topic} important?", "It shapes many parts of daily life, often in ways we do not notice."),
    ("Please suggest a title for an essay on {topic}.", "How about: A Closer Look at {topic}?"),
    ("Can I {verb} a {thing} by myself?", "Yes, with patience and the right tools you can {verb} a {thing} alone."),
    ("What goes well with {dish}?", "A fresh side dish and a glass of water go well with {dish}."),
    ("Do you think {topic} will matter in the future?", "Most likely, since {topic} affects many people."),
    ("Good morning!", "Good morning! How can I help you today?"),
    ("What's a synonym for quick?", "Fast, rapid and swift are synonyms for quick."),
    ("Count to five.", "One, two, three, four, five."),
    ("Should I keep the old {thing} or the {thing2}?", "Keep whichever you use more often."),
    ("Who invented the {thing}?", "It is hard to name one inventor; the {thing} developed over many years."),
)

EVALUATION_PAIRS: tuple[tuple[str, str], ...] = (
    ("How often should one dust a {thing}?", "About once a month is enough for a {thing} in normal use."),
    (
        "Summarise {topic} for a child.",
        "Imagine something very big that moves very slowly: {topic} is a bit like that.",
    ),
    ("What's {n} times two?", "Two times {n} is {double}."),
    ("I need a packing list.", "Take clothes for three days, a charger, your papers and a {thing}."),
    ("My train is late again.", "That is annoying. Perhaps there is time to read about {topic}."),
    ("Name two uses for a {thing}.", "A {thing} can be used at home, and it also makes a good gift."),
    ("Is it hard to cook {dish}?", "Not really. Follow the recipe, and {dish} will turn out fine."),
    ("Let's talk about something else.", "Of course. We could talk about {topic}, for example."),
)


def chatter(rng: random.Random, *, evaluation: bool = False) -> tuple[str, str]:
    """One exchange (user, assistant) that tells nothing about the user."""
    user, reply = rng.choice(EVALUATION_PAIRS if evaluation else _PAIRS)
    fill = {name: rng.choice(values) for name, values in _SLOTS.items()}
    fill |= {f"{name}2": rng.choice(values) for name, values in _SLOTS.items()}
    fill["sum"] = str(int(fill["n"]) + int(fill["n2"]))
    fill["double"] = str(2 * int(fill["n"]))
    fill["minutes"] = str(60 * int(fill["n"]))
    return user.format(**fill), reply.format(**fill)
