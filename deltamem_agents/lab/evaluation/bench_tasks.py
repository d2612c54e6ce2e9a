"""Generated rows in MemoryAgentBench's format: facts that contradict each other, and texts to label."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.lab.corpus.tables import read_table
from deltamem_agents.lab.corpus.values import values_of
from deltamem_agents.lab.evaluation.agent_bench import BenchRow
from deltamem_agents.lab.evaluation.draws import LEAST_CONVERSATIONS, Size

DATA = Path(__file__).parent / "data"

FACT_COUNTS = (8, 32, 128)
"""Numbers of different facts in a pool. Half of them are stated twice, with another value the second time."""

LABEL_COUNTS = (4, 8)
EXAMPLES = 6
"""Number of examples per label."""


@dataclass(frozen=True)
class _Relation:
    told: str
    asked: str
    values: str


def _relations() -> tuple[_Relation, ...]:
    return tuple(_Relation(**row) for row in read_table(DATA, "bench_tasks")["relations"])


def _intents() -> tuple[tuple[str, ...], ...]:
    """Messages to a customer service: ten texts for each of eight intents."""
    found: tuple[tuple[str, ...], ...] = read_table(DATA, "bench_tasks")["intents"]
    return found


def conflict_rows(count: int, size: Size) -> Iterator[BenchRow]:
    """Pools of `count` facts. Questions ask for facts that were contradicted later; the later value is right."""
    for seed in size.seeds:
        rng = random.Random(f"conflict {count} {seed}")
        for asked in _distribute(size.of_seed, count // 2):
            yield _pool(rng, count, asked, seed)


def label_rows(count: int, size: Size) -> Iterator[BenchRow]:
    """EXAMPLES texts for each of `count` intents, with new label numbers in each row. Questions are other texts."""
    for seed in size.seeds:
        rng = random.Random(f"label {count} {seed}")
        for asked in _distribute(size.of_seed, count):
            intents = rng.sample(_intents(), count)
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
    keys = rng.sample([(who, relation) for who in people for relation in _relations()], count)
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
    """A value of the evaluation split, other than `old`."""
    return rng.choice([value for value in values_of(relation.values, "evaluation") if value != old])


def _distribute(total: int, most: int) -> list[int]:
    """Distributes `total` questions over rows of at most `most` each."""
    rows = max(-(-total // most), min(total, LEAST_CONVERSATIONS))
    return [total // rows + (place < total % rows) for place in range(rows)]
