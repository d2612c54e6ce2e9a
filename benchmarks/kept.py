"""The cost of a continued conversation's turn with and without kept key–value caches: `python benchmarks/kept.py`.

A client sends its whole history each turn, and two engines answer it alternately. Seconds are CPU time, so other load
on the machine matters little; ratios within one run are most reliable. The default is a tiny random model;
`--model smollm2-135m-instruct` uses a real one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from deltamem_agents import DeltaMemEngine, InMemoryStore, Message, Sampling, Turn
from deltamem_agents.inference.kept import KEPT_BYTES
from deltamem_agents.testing import SELECTIVE, ScriptedEngine

ROOMS = {"kept": KEPT_BYTES, "not kept": 0}


@dataclass(frozen=True)
class Cost:
    """Medians over the turns. `ratio`: seconds with kept caches divided by seconds without."""

    prompt_tokens: int
    new_tokens: float
    prefilled_tokens: float
    seconds: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.seconds["kept"] / self.seconds["not kept"]


def engines(model: str | None, window_tokens: int) -> dict[str, DeltaMemEngine]:
    """One engine for each of ROOMS. With a real model, both share it."""
    if model is None:
        return {
            name: ScriptedEngine("Noted.", config=SELECTIVE, window_tokens=window_tokens, kept_cache_bytes=room)
            for name, room in ROOMS.items()
        }
    first = DeltaMemEngine.from_pretrained(model, store=InMemoryStore(), window_tokens=window_tokens)
    plain = first.with_store(InMemoryStore())
    plain._caches = type(first._caches)(0)
    return {"kept": first, "not kept": plain}


def costs(model: str | None, tokens: int, turns: int, reply_tokens: int) -> Cost:
    """Measures `turns` turns after a history of about `tokens` tokens."""
    both = engines(model, 3 * tokens + 512)
    said = "Today I walked along the harbour, bought bread, and wrote a letter to an old friend. "
    history, at = [Message("system", "Be brief.")], 0
    while both["kept"].count_tokens(history) < tokens:
        history += [Message("user", f"{at}: {said}"), Message("assistant", "Noted.")]
        at += 1
    seconds: dict[str, list[float]] = {name: [] for name in both}
    done: list[Turn] = []
    for number in range(turns + 1):
        history.append(Message("user", f"{at + number}: {said}"))
        for name, engine in both.items():
            start = time.process_time()
            turn = engine.run_turn("ada", history, sampling=Sampling(max_tokens=reply_tokens))
            seconds[name].append(time.process_time() - start)
            if name == "kept":
                done.append(turn)
        history.append(done[-1].message)
    # Skip the first turn, for which nothing is kept yet.
    grown = [turn.usage.prompt_tokens - before.usage.prompt_tokens for before, turn in pairwise(done)]
    return Cost(
        done[-1].usage.prompt_tokens,
        statistics.median(grown),
        statistics.median(turn.facts.prefilled_tokens for turn in done[1:]),
        {name: statistics.median(each[1:]) for name, each in seconds.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's name; default: a tiny random model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[500, 3000], metavar="N", help="of history")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--reply-tokens", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON value instead of a table")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = [costs(arguments.model, each, arguments.turns, arguments.reply_tokens) for each in sorted(arguments.tokens)]
    if arguments.json:
        print(json.dumps([{**asdict(cost), "ratio": cost.ratio} for cost in found]))
        return
    print("prompt  new tokens  prefilled  seconds, kept  not kept  ratio")
    for cost in found:
        print(
            f"{cost.prompt_tokens:>6}  {cost.new_tokens:>10.0f}  {cost.prefilled_tokens:>9.0f}"
            f"  {cost.seconds['kept']:>13.3f}  {cost.seconds['not kept']:>8.3f}  {cost.ratio:>5.2f}"
        )


if __name__ == "__main__":
    main()
