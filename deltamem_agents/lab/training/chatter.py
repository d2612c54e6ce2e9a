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
        fountain, glove, bookshelf, toaster, doorbell, hammock, lawnmower, teapot, backpack, stapler, tripod,
        thermometer, wheelbarrow, bathtub, cupboard, chandelier, flashlight, microphone, printer, suitcase, tent,
        whistle, wristwatch, ashtray, bandage, broom, cushion, doormat, easel, fishing rod, hairdryer"""
    ),
    "topic": _list(
        """volcanoes, gravity, photosynthesis, glaciers, the Roman Empire, jazz, bees, the moon, tides, inflation,
        recycling, rainbows, magnetism, vitamins, earthquakes, poetry, the printing press, coral reefs, migration,
        electricity, steam engines, deserts, comets, democracy, fermentation, sleep, erosion, penicillin, satellites,
        chess openings, the Silk Road, algebra, hieroglyphs, lighthouses, plastic, whales, sundials, mountain
        weather, vaccination, coffee farming, medieval castles, the water cycle, solar panels, opera, city planning,
        sourdough, ancient Egypt, statistics, mushrooms, railways, insects, perfume, tea ceremonies, supernovae,
        dialects, glass making, robotics, caves, rice fields, folk tales"""
    ),
    "n": tuple(str(n) for n in range(3, 60)),
    "verb": _list(
        "clean, repair, paint, store, move, sell, replace, measure, wrap, decorate, test, assemble, lift, label"
    ),
    "dish": (
        "a simple soup",
        "fresh pasta",
        "a salad",
        "an omelette",
        "pancakes",
        "roast vegetables",
        "a stew",
        "bread",
        "a curry",
        "dumplings",
        "an apple pie",
        "a risotto",
        "lentil soup",
        "a fruit tart",
        "grilled fish",
        "a cheese sandwich",
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
    (
        "I want to know more about {topic}. Where should one begin?",
        "A public library is a good place to begin. Look for a short book on {topic} first, and then move on to "
        "longer ones.",
    ),
    (
        "Write a short paragraph about {topic}.",
        "There is much to say about {topic}. Scholars have written about it for generations, and every year new "
        "ideas are added. Even so, the basic questions have stayed the same.",
    ),
    (
        "Give me a list of three things to know before one buys a {thing}.",
        "1. Compare prices in several shops. 2. Check how long the warranty lasts. 3. Ask whether the {thing} can be "
        "returned.",
    ),
    (
        "Tell me a story about a {thing}.",
        "Once upon a time there was a {thing} that nobody wanted. One day a child found it, and from then on it was "
        "never alone again.",
    ),
    ("Is {topic} taught at school?", "In many countries it is, often together with {topic2}."),
    ("Which came first, {topic} or {topic2}?", "That depends on how one counts, but {topic} is usually named first."),
    ("What is {n} minus {n2}?", "{n} minus {n2} is {difference}."),
    ("Is {n} a lot?", "That depends on what is counted. For grains of rice {n} is very little."),
    ("How heavy is a {thing}, roughly?", "A typical {thing} weighs somewhere between one and five kilograms."),
    ("Does a {thing} need electricity?", "Some do and some don't. Look at the label of the {thing} to be sure."),
    (
        "Please translate 'the {thing} is broken' into German.",
        "I can try, although a dictionary is more reliable for words like {thing}.",
    ),
    ("Make up a rhyme with {thing}.", "Rhymes are hard, but here is a line: the {thing} began to sing."),
    ("Recommend a podcast on {topic}.", "There are several good ones. Search for {topic} and pick one that is short."),
    (
        "How would you explain {topic} to an expert?",
        "With an expert I would skip the basics of {topic} and go straight to the open questions.",
    ),
    ("Do I need salt for {dish}?", "A pinch of salt is enough for {dish}. Taste it and add more if needed."),
    ("Could {dish} be made the day before?", "Yes. Keep {dish} in the fridge and warm it gently the next day."),
    ("Which pan is best for {dish}?", "A wide pan with a heavy base works well for {dish}."),
    ("Name a film about {topic}.", "There are documentaries about {topic}, and a few feature films as well."),
    ("Let's take a short break.", "Good idea. I will be here when you are back."),
    ("Hmm, I see.", "Take your time. Would you like to go on with {topic}, or with something else?"),
    ("That was a good answer, thank you.", "I'm glad it helped. Feel free to ask about {topic} too."),
    ("I don't agree with that.", "That's fair. People hold different opinions on questions like this."),
    ("Can you keep it shorter next time?", "Of course. I will keep it short."),
    ("Are there any risks with a {thing}?", "Few, as long as the {thing} is used as intended and kept in good order."),
    ("What colour should a {thing} be?", "Any colour will do, though many people prefer a plain {thing}."),
    ("Good evening!", "Good evening! What would you like to talk about?"),
    ("Say something about {topic} and {topic2}.", "Both {topic} and {topic2} reward a closer look."),
    ("How old is the idea of {topic}?", "Older than most people think. Early writings already mention {topic}."),
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
    (
        "Compare {topic} with {topic2} in two sentences.",
        "At first sight {topic} and {topic2} have little in common. On closer inspection, both depend on time.",
    ),
    (
        "Draft an invitation to a lecture on {topic}.",
        "Dear all, you are warmly invited to a lecture on {topic}. Doors open at the usual hour, admission is free.",
    ),
    ("Where does the dust on a {thing} come from?", "Mostly from fabric and skin, carried by the air in the room."),
    ("Half of {n}, please.", "Half of {n} comes to {half}."),
    ("Would a museum show a {thing}?", "A museum of everyday life certainly might show a {thing}."),
    ("Act as a critic and review {dish}.", "Bold, warm and a little too salty: {dish} divides opinions."),
    ("Explain the steps of making {dish} to a robot.", "Step one: gather. Step two: heat. Step three: serve {dish}."),
    ("My bus was full this morning.", "Crowded buses are tiring. Leaving a little earlier can help."),
    ("Which profession deals with {topic}?", "Researchers, teachers and sometimes artists deal with {topic}."),
    ("Invent a proverb about a {thing}.", "A {thing} in the house is worth two in the shop."),
    ("Is it rude to talk about {topic} at dinner?", "Hardly. Most guests would find {topic} a pleasant subject."),
    (
        "Outline an essay on {topic}.",
        "First, define {topic}. Second, give its history. Third, weigh what speaks for and against it.",
    ),
    ("How do you pronounce {thing}?", "Just as it is spelled, with the stress near the beginning."),
    ("Do children like {dish}?", "Many do, above all when they may help to prepare {dish}."),
    ("Choose between a {thing} and a {thing2}.", "I would choose the {thing}, if only for a change."),
    ("What would happen without {topic}?", "Life would look different, and we would have to find a substitute."),
    ("Spell {thing} backwards in your head.", "Done! It sounds rather funny that way."),
    ("Let me get a coffee first.", "Sure, enjoy it. We can go on afterwards."),
    ("Any news on {topic}?", "I have no recent news, but I can summarise what has been known about {topic} for long."),
    ("Should schools teach how to {verb} a {thing}?", "Practical skills are useful, so why not."),
    ("Let's talk about something else.", "Of course. We could talk about {topic}, for example."),
)


def chatter(rng: random.Random, *, evaluation: bool = False) -> tuple[str, str]:
    """One exchange (user, assistant) that tells nothing about the user."""
    user, reply = rng.choice(EVALUATION_PAIRS if evaluation else _PAIRS)
    fill = {name: rng.choice(values) for name, values in _SLOTS.items()}
    fill |= {f"{name}2": rng.choice(values) for name, values in _SLOTS.items()}
    fill["sum"] = str(int(fill["n"]) + int(fill["n2"]))
    fill["difference"] = str(int(fill["n"]) - int(fill["n2"]))
    fill["half"] = f"{int(fill['n']) / 2:g}"
    fill["double"] = str(2 * int(fill["n"]))
    fill["minutes"] = str(60 * int(fill["n"]))
    return user.format(**fill), reply.format(**fill)
