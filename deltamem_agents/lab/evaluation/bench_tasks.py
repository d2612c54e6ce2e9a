"""Generated rows in MemoryAgentBench's form: facts that contradict each other, and texts to label."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltamem_agents.lab.evaluation.agent_bench import BenchRow
from deltamem_agents.lab.evaluation.draws import LEAST_CONVERSATIONS, Size
from deltamem_agents.lab.training.values import values_of

FACT_COUNTS = (8, 32, 128)
"""Different facts in a pool. Half of them are told twice, with another value the second time."""

LABEL_COUNTS = (4, 8)
EXAMPLES = 6
"""Of each label."""


@dataclass(frozen=True)
class _Relation:
    told: str
    asked: str
    values: str


_RELATIONS = (
    _Relation("{who} lives in {v}.", "In which city does {who} live?", "place"),
    _Relation("{who} works as a {v}.", "What does {who} work as?", "job"),
    _Relation("The dog of {who} is called {v}.", "What is the dog of {who} called?", "pet"),
    _Relation("The favourite food of {who} is {v}.", "What is the favourite food of {who}?", "food"),
    _Relation("{who} plays the {v}.", "Which instrument does {who} play?", "instrument"),
    _Relation("The favourite animal of {who} is the {v}.", "What is the favourite animal of {who}?", "animal"),
    _Relation("The car of {who} is {v}.", "Which colour is the car of {who}?", "colour"),
    _Relation("{who} spends every weekend on {v}.", "On what does {who} spend every weekend?", "hobby"),
)


def conflict_rows(count: int, size: Size) -> Iterator[BenchRow]:
    """Pools of `count` facts; asked for are those that were contradicted later, answered by the later value."""
    for seed in size.seeds:
        rng = random.Random(f"conflict {count} {seed}")
        for asked in _shares(size.of_seed, count // 2):
            yield _pool(rng, count, asked, seed)


def label_rows(count: int, size: Size) -> Iterator[BenchRow]:
    """EXAMPLES texts of each of `count` intents under numbers drawn anew for each row; asked for are other texts."""
    for seed in size.seeds:
        rng = random.Random(f"label {count} {seed}")
        for asked in _shares(size.of_seed, count):
            intents = rng.sample(_INTENTS, count)
            texts = [rng.sample(intent, len(intent)) for intent in intents]
            shown = [(text, label) for label, intent in enumerate(texts) for text in intent[:EXAMPLES]]
            rng.shuffle(shown)
            left = [(text, str(label)) for label, intent in enumerate(texts) for text in intent[EXAMPLES:]]
            chosen = rng.sample(left, asked)
            yield BenchRow(
                "\n\n".join(f"{text}\nlabel: {label}" for text, label in shown),
                tuple(text for text, _ in chosen),
                tuple((label,) for _, label in chosen),
                f"icl_generated_{count}labels",
                seed,
            )


def _pool(rng: random.Random, count: int, asked: int, seed: int) -> BenchRow:
    people = values_of("person", "train")
    keys = rng.sample([(who, relation) for who in people for relation in _RELATIONS], count)
    first = [(who, relation, _value(rng, relation)) for who, relation in keys]
    changed = [(who, relation, _value(rng, relation, old)) for who, relation, old in rng.sample(first, count // 2)]
    told = list(first)
    for fact in changed:
        before = max(place for place, other in enumerate(told) if other[:2] == fact[:2])
        told.insert(rng.randint(before + 1, len(told)), fact)
    lines = [
        f"{number}. {relation.told.format(who=who, v=value)}" for number, (who, relation, value) in enumerate(told)
    ]
    chosen = rng.sample(changed, asked)
    return BenchRow(
        "\n".join(["Here is a list of facts:", *lines]),
        tuple(relation.asked.format(who=who) for who, relation, _ in chosen),
        tuple((value,) for _, _, value in chosen),
        f"factconsolidation_generated_{count}",
        seed,
    )


def _value(rng: random.Random, relation: _Relation, old: str = "") -> str:
    """One never told in training, other than `old`."""
    return rng.choice([value for value in values_of(relation.values, "evaluation") if value != old])


def _shares(total: int, most: int) -> list[int]:
    """`total` questions dealt out to rows of at most `most` each."""
    rows = max(-(-total // most), min(total, LEAST_CONVERSATIONS))
    return [total // rows + (place < total % rows) for place in range(rows)]


def _intents(text: str) -> tuple[Sequence[str], ...]:
    return tuple([line.strip() for line in block.strip().split("\n")] for block in text.strip().split("\n\n"))


_INTENTS = _intents(
    """
    How long do I have to boil an egg?
    What can I cook with leeks and cream?
    My sauce is too thin, how do I thicken it?
    Which herbs go with roast chicken?
    At what temperature should a cake be baked?
    Can I freeze a vegetable soup?
    How much salt goes into bread dough?
    Give me a recipe for lentils.
    How do I know that fish is done?
    What can replace butter in a pie crust?

    When does the next train to the coast leave?
    Is there a direct flight on Sunday?
    Where do I change buses for the airport?
    How much is a return ticket?
    Which platform does the night train use?
    Do I need to reserve a seat?
    Can I take a bicycle on the ferry?
    How long is the drive to the border?
    My flight was cancelled, what are my options?
    What time does the station close?

    My screen stays black after the update.
    How do I reset the router?
    The printer is not found by the computer.
    My keyboard types the wrong letters.
    Why is the laptop so slow today?
    The program closes as soon as it opens.
    How can I recover a deleted file?
    The battery does not charge any more.
    I get an error when I install the driver.
    The sound is gone since yesterday.

    Will it rain this afternoon?
    How cold does it get tonight?
    Is there a storm warning for the hills?
    How strong is the wind at the lake?
    When will the fog lift?
    Do I need an umbrella tomorrow?
    How much snow is expected?
    Is the weekend going to be sunny?
    What is the humidity right now?
    Will there be frost in the morning?

    Please move money to my savings account.
    What is the balance of my account?
    I do not recognise this charge on my card.
    How high are the fees for a transfer abroad?
    Block my credit card, I have lost it.
    When is the next loan payment due?
    Can I raise my overdraft limit?
    The cash machine kept my card.
    How do I open a joint account?
    My salary has not arrived yet.

    My tomato plants have yellow leaves.
    When should roses be pruned?
    How often do I water a cactus?
    Which vegetables grow in the shade?
    There are snails in the lettuce again.
    How deep are tulip bulbs planted?
    Is this soil too wet for lavender?
    When can I sow carrots?
    What keeps moles out of the lawn?
    How do I make cuttings of a fig tree?

    Play something calm by a string quartet.
    Turn the volume down a little.
    Skip this song, please.
    Which band is playing right now?
    Add this track to my party list.
    Repeat the last album.
    Play the news on the radio.
    Who wrote this piece?
    Shuffle all my jazz records.
    Stop the music in ten minutes.

    I have had a sore throat for three days.
    How much should a child with fever drink?
    My knee hurts when I climb stairs.
    Which doctor treats a rash like this?
    Can I take these tablets with milk?
    The cut on my finger will not stop bleeding.
    I feel dizzy when I get up.
    How long is the flu contagious?
    What helps against hay fever?
    Do I have to fast before the blood test?
    """
)
"""What people write to a service, ten texts for each of eight intents."""
