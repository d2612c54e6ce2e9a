"""The cost of many statements: bytes per commit, cold load, choosing, and a turn relative to one without memory.

    python benchmarks/recall.py [--turns]

Statements are made up, with the default adapter's shape and four written tokens each. Run it on an otherwise idle
machine. The ratios of turns matter most, since they compare turns within one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from deltamem_agents import DeltaMemEngine, FileStore, InMemoryStore, Recall, Sampling, SQLiteStore, Store
from deltamem_agents.memory.matcher import Matcher
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import StoredWrites, Writes
from deltamem_agents.snapshots import (
    Fingerprint,
    Snapshot,
    Statement,
    StatementList,
    address,
    encode_page,
    encode_statement,
    utc_now,
)
from deltamem_agents.turns.memories import AgentMemory
from deltamem_agents.types import MemoryMode

COUNTS = (10, 1_000, 10_000)
LAYERS, HEADS, RANK = 16, 1, 32
WORDS = [
    "dog",
    "name",
    "order",
    "number",
    "tea",
    "brother",
    "boat",
    "day",
    "job",
    "nuts",
    "cello",
    "street",
    "code",
    "book",
]
QUESTION = [{"role": "user", "content": "Write a long story about a dog that finds a boat, and its brother."}]
LONG = Sampling(max_tokens=48)
"""Short enough that no reply ends earlier, so that all turns have equally many tokens."""


def statements(count: int) -> dict[str, bytes]:
    """Encoded made-up statements by address."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number in range(count):
        keys = torch.nn.functional.normalize(torch.randn(4, LAYERS, HEADS, RANK, generator=generator), dim=-1)
        gates = torch.rand(4, LAYERS, HEADS, 1, generator=generator)
        stored = StoredWrites.of(Writes(keys, torch.randn(keys.shape, generator=generator), gates, gates))
        text = (
            f"My {WORDS[number % len(WORDS)]} number {number} is {WORDS[number * 5 % len(WORDS)]} {number * 31 % 997}."
        )
        made = Statement("", "user", text, "t", number, utc_now(), tuple(range(12)), (3, 4, 7, 9), stored)
        data = encode_statement(made)
        found[address(data)] = data
    return found


def fill(store: Store, count: int, fingerprint: Fingerprint) -> None:
    """Gives the store an agent "a" with `count` statements."""
    objects = statements(count)
    listed, pages = StatementList().changed({}, add=list(objects))
    base = MemoryState.zeros(1, LAYERS, HEADS, RANK)
    snapshot = Snapshot(state=base, base=base, statements=listed, fingerprint=fingerprint)
    store.save("a", snapshot, expected=None, objects={**objects, **{at: encode_page(ids) for at, ids in pages.items()}})


def milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """CPU milliseconds of the fastest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return 1000 * min(times)


def load(store: Store) -> AgentMemory:
    memory = AgentMemory.of(store, "a", store.load("a").snapshot, False)
    assert memory.statements
    return memory


def storage() -> None:
    matcher = Matcher.uniform(LAYERS, HEADS)
    queries = torch.nn.functional.normalize(torch.randn(12, LAYERS, HEADS, RANK), dim=-1)
    for count in COUNTS:
        for kind, make in (("SQLite", SQLiteStore), ("files", FileStore)):
            with tempfile.TemporaryDirectory() as folder, make(Path(folder) / "store") as store:
                fill(store, count, Fingerprint("model", "tokenizer", "adapter"))
                head = store.head("a")
                assert head is not None
                size, cold = len(store._bytes("a", head)), milliseconds(partial(load, store))
                match = partial(load(store).scores, matcher, queries, [1, 2, 3])
                first, then = milliseconds(match, 1), milliseconds(match)
            print(
                f"{count:6,} statements, {kind:6}: commit {size:6,} bytes, cold load {cold:7.1f} ms, "
                f"first match {first:7.1f} ms, then {then:6.2f} ms",
                flush=True,
            )


def turns() -> None:
    engine = DeltaMemEngine.from_pretrained("smollm2-135m-instruct", store="memory:", progress=False)
    for count in COUNTS:
        twin = engine.with_store(InMemoryStore())
        fill(twin.store, count, engine.fingerprint)
        ways = {"without memory": Recall("none"), "recall": Recall(), "its exchange shown": Recall(window_tokens=256)}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(6):
            for name, recall in ways.items():
                memory: MemoryMode = "off" if name == "without memory" else "readonly"
                begun = time.perf_counter()
                done = twin.run_turn("a", QUESTION, sampling=LONG, memory=memory, recall=recall)
                assert done.usage.completion_tokens == LONG.max_tokens
                best[name] = min(best[name], time.perf_counter() - begun)
        off = best.pop("without memory")
        print(
            f"{count:6,} statements: {LONG.max_tokens} tokens in {off:.2f} s without memory; "
            + ", ".join(f"{name} {seconds / off:.3f} times that" for name, seconds in best.items()),
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    storage()
    if "--turns" in sys.argv:
        turns()
