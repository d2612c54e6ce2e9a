"""The speedup of concurrent turns over turns one after another.

    python benchmarks/concurrency.py [--model NAME] [--turns 1 4 8 16] [--tokens N] [--rounds N] [--json]

Each turn is an agent's second one: it was told something and is now asked for it. Every reply has the same maximum
number of tokens. Sequential and concurrent rounds alternate. The ratio is median seconds one by one over median seconds
at once; `decode` is the same for decoding alone, from the first token on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from deltamem_agents import DeltaMemEngine, Message, Sampling

TOLD = "My dog is called Biscuit, I live in Oslo, and my sister plays the cello in an orchestra."
ASKED = "Tell me a long story about what you know of me, with all the names in it."


@dataclass(frozen=True)
class Gain:
    """Seconds for `turns` turns, one by one and at once, and the seconds of these that were decoding."""

    turns: int
    one_by_one: float
    at_once: float
    decode_one_by_one: float
    decode_at_once: float
    tokens: int

    @property
    def ratio(self) -> float:
        return self.one_by_one / self.at_once

    @property
    def decode_ratio(self) -> float:
        return self.decode_one_by_one / self.decode_at_once


@dataclass
class Timed:
    """A round's total seconds, decoding seconds (sum of the turns' own shares) and reply tokens."""

    seconds: float = 0.0
    decoding: float = 0.0
    tokens: int = 0


def one_round(engine: DeltaMemEngine, turns: int, sampling: Sampling, *, at_once: bool) -> Timed:
    found = Timed()

    def turn(number: int) -> None:
        said = engine.run_turn(f"agent {number}", [Message("user", ASKED)], memory="readonly", sampling=sampling)
        found.decoding += said.facts.decode_seconds
        found.tokens += said.usage.completion_tokens

    begun = time.perf_counter()
    if at_once:
        threads = [threading.Thread(target=turn, args=(number,)) for number in range(turns)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for number in range(turns):
            turn(number)
    found.seconds = time.perf_counter() - begun
    return found


def gain(engine: DeltaMemEngine, turns: int, sampling: Sampling, rounds: int) -> Gain:
    apart, together = [], []
    for _ in range(rounds):
        apart.append(one_round(engine, turns, sampling, at_once=False))
        together.append(one_round(engine, turns, sampling, at_once=True))

    def median(of: list[Timed], what: Callable[[Timed], float]) -> float:
        return statistics.median(map(what, of))

    return Gain(
        turns,
        median(apart, lambda each: each.seconds),
        median(together, lambda each: each.seconds),
        median(apart, lambda each: each.decoding),
        median(together, lambda each: each.decoding),
        together[-1].tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default=None, help="of the base model; default: the engine's choice")
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 4, 8, 16], metavar="N")
    parser.add_argument("--tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON value instead of a table")
    arguments = parser.parse_args()
    engine = DeltaMemEngine.from_pretrained(arguments.model, store="memory:", dtype=arguments.dtype, progress=False)
    for number in range(max(arguments.turns)):
        engine.run_turn(f"agent {number}", [Message("user", TOLD)], sampling=Sampling(max_tokens=1))
    sampling = Sampling(max_tokens=arguments.tokens, temperature=0)
    gains = []
    for turns in arguments.turns:
        found = gain(engine, turns, sampling, arguments.rounds)
        gains.append({**asdict(found), "ratio": found.ratio, "decode_ratio": found.decode_ratio})
        if not arguments.json:
            print(
                f"{turns:>3} turns: {found.ratio:.2f}x as fast at once (decoding alone {found.decode_ratio:.2f}x); "
                f"{found.one_by_one:.1f} s one by one, {found.at_once:.1f} s at once, {found.tokens} tokens, "
                f"{torch.get_num_threads()} threads",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(gains))


if __name__ == "__main__":
    main()
