"""What each precision of the base model costs and gives: `python benchmarks/precision.py`.

    recall      % of facts told and asked for, among 8, with their 95 % interval
    perplexity  of this repository's prose, in passes of few tokens as in decoding, and in passes of many as in a prompt
    decode      tokens a second of one reply that reads the memory
    prefill     tokens a second of a prompt

Precisions that are timed alternate, and figures are medians. `--json` prints one JSON value instead of a table. On a
processor without instructions for bfloat16 its prompts are slow; `--only` chooses precisions.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from cost_speakers import Engine

from deltamem_agents import DeltaMemEngine, InMemoryStore, Message
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.evaluation.controls import Arm
from deltamem_agents.lab.evaluation.draws import HELD_OUT_VALUES, Size, drawn_cases
from deltamem_agents.lab.evaluation.recall import WHOLE, Title, evaluate_recall
from deltamem_agents.loading.int8 import FEW
from deltamem_agents.memory.backbones import empty_cache, with_cache

PRECISIONS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "float32, int8 decode": ("float32", "int8"),
    "bfloat16": ("bfloat16", None),
    "bfloat16, int8 decode": ("bfloat16", "int8"),
}
PROSE = Path(__file__).parents[1] / "docs" / "memory-semantics.md"
PROSE_TOKENS = 1536
FACTS = 8
REPLY = 48


@dataclass(frozen=True)
class Row:
    """One precision's figures. `recall`: value, and the ends of its interval, in %."""

    precision: str
    recall: tuple[float, float, float]
    decode_perplexity: float
    prompt_perplexity: float
    decode: float
    prefill: float


@torch.no_grad()
def perplexity(engine: DeltaMemEngine, step: int) -> float:
    """Of the later half of the prose, in passes of `step` tokens."""
    ids = engine.tokenizer(PROSE.read_text())["input_ids"][:PROSE_TOKENS]
    cache, losses = empty_cache(), list[torch.Tensor]()
    for start in range(0, len(ids) - 1, step):
        part = torch.tensor([ids[start : start + step + 1]])
        out = engine.model(input_ids=part[:, :-1], **with_cache(engine.model, cache))
        losses.append(torch.nn.functional.cross_entropy(out.logits[0].float(), part[0, 1:], reduction="none"))
    return float(torch.cat(losses)[PROSE_TOKENS // 2 :].mean().exp())


def recall(engine: DeltaMemEngine, questions: int) -> tuple[float, float, float]:
    cases = drawn_cases(
        open_words(engine.tokenizer), replace(HELD_OUT_VALUES, facts=FACTS), Size(questions, (1,)), confusions=True
    )
    figure = evaluate_recall(engine, Title("precision", f"{FACTS} facts"), cases, arms=(Arm.MEMORY,))
    found = figure.arms[Arm.MEMORY.value][WHOLE]
    return tuple(round(100 * part, 1) for part in (found.value, found.low, found.high))  # type: ignore[return-value]


def measure(names: Sequence[str], model: str, questions: int, rounds: int) -> list[Row]:
    engines = {}
    for name in names:
        dtype, weights = PRECISIONS[name]
        engines[name] = DeltaMemEngine.from_pretrained(
            model,
            store=InMemoryStore(),
            dtype=dtype,
            decode_weights=weights,  # type: ignore[arg-type]
            progress=False,
            kept_cache_bytes=0,
        )
        engines[name].absorb_into("agent", [Message("user", "My dog is called Biscuit, and I live in Oslo.")])
    long = " ".join(f"Day {day}: rain again, and bread for the neighbours." for day in range(40))
    asked = [Message("user", long), Message("assistant", "I see."), Message("user", "Tell me a long story.")]
    said: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else names[::-1]:
            reply = Engine(engines[name], "agent", {"memory": "readonly"})(asked, REPLY)
            said[name].append((reply.rate, reply.prefilled_tokens / reply.first))
    rows = []
    for name, engine in engines.items():
        decode, prefill = (statistics.median(each) for each in zip(*said[name][1:], strict=True))
        rows.append(
            Row(name, recall(engine, questions), perplexity(engine, FEW // 2), perplexity(engine, 512), decode, prefill)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--only", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON value instead of a table")
    arguments = parser.parse_args()
    rows = measure(arguments.only, arguments.model, arguments.questions, arguments.rounds)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'':<24}{'recall':>22}{'perplexity':>12}{'of prompts':>12}{'decode':>8}{'prefill':>9}")
    for row in rows:
        value, low, high = row.recall
        print(
            f"{row.precision:<24}{f'{value} ({low} to {high})':>22}{row.decode_perplexity:>12.2f}"
            f"{row.prompt_perplexity:>12.2f}{row.decode:>8.1f}{row.prefill:>9.0f}"
        )


if __name__ == "__main__":
    main()
