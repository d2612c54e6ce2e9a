"""What a memory of many statements costs: bytes of a commit, loading it cold, choosing, and a turn beside one without.

    python benchmarks/recall.py [--turns]

Statements are made up, of the default adapter's shape, four written tokens each. Times are of one process on an
otherwise idle machine; the last column is what counts, as it compares turns within one run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from deltamem_agents import AdapterConfig, DeltaMemEngine, FileStore, Recall, Sampling, SQLiteStore, Store
from deltamem_agents.memory.recall import Matcher
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

COUNTS = (10, 1_000, 10_000)
LAYERS, HEADS, RANK = 16, 1, 32
WORDS = "dog name Oslo order number tea brother boat Tuesday engineer peanuts cello street code colour book".split()


def statements(count: int) -> dict[str, bytes]:
    """Bytes of made-up statements by address."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number in range(count):
        keys = torch.nn.functional.normalize(torch.randn(4, LAYERS, HEADS, RANK, generator=generator), dim=-1)
        gates = torch.rand(4, LAYERS, HEADS, 1, generator=generator)
        stored = StoredWrites.of(Writes(keys, torch.randn(keys.shape, generator=generator), gates, gates))
        text = f"My {WORDS[number % 16]} number {number} is {WORDS[number * 7 % 16]} {number * 31 % 997}."
        made = Statement("", "user", text, "t", number, utc_now(), tuple(range(12)), (3, 4, 7, 9), stored)
        data = encode_statement(made)
        found[address(data)] = data
    return found


def fill(store: Store, count: int, fingerprint: Fingerprint) -> None:
    """One agent "a" of so many statements."""
    objects = statements(count)
    listed, pages = StatementList().changed({}, add=list(objects))
    base = MemoryState.zeros(1, LAYERS, HEADS, RANK)
    snapshot = Snapshot(state=base, base=base, statements=listed, fingerprint=fingerprint)
    store.save("a", snapshot, expected=None, objects={**objects, **{at: encode_page(ids) for at, ids in pages.items()}})


def milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of some runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
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
                size, cold = len(store._bytes("a", head)), milliseconds(lambda: load(store))
                memory = load(store)
                index = milliseconds(lambda: memory.scores(matcher, queries, [1, 2, 3]), 1)
                choose = milliseconds(lambda: memory.scores(matcher, queries, [1, 2, 3]))
            print(
                f"{count:6,} statements, {kind:6}: commit {size:6,} bytes, cold load {cold:7.1f} ms, "
                f"first match {index:7.1f} ms, match {choose:6.2f} ms",
                flush=True,
            )


def turns() -> None:
    engine = DeltaMemEngine.from_pretrained("smollm2-135m-instruct", store="memory:", progress=False)
    assert isinstance(engine.adapter.config, AdapterConfig)
    question = [{"role": "user", "content": "What is my dog's name, and where did I say that we met?"}]
    # As many tokens with a memory as without, whatever is said.
    sampling = Sampling(max_tokens=32, temperature=1.0, seed=1)
    for count in COUNTS:
        from deltamem_agents import InMemoryStore

        twin = engine.with_store(InMemoryStore())
        fill(twin.store, count, engine.fingerprint)

        def turn(memory: str, recall: Recall | None = None) -> float:
            begun = time.perf_counter()
            done = twin.run_turn("a", question, sampling=sampling, memory=memory, recall=recall)  # type: ignore[arg-type]
            return (time.perf_counter() - begun) / max(1, done.usage.completion_tokens)

        turn("readonly")
        pairs = [(turn("off"), turn("readonly"), turn("readonly", Recall(window_tokens=256))) for _ in range(5)]
        off, on, shown = (min(times) for times in zip(*pairs, strict=True))
        print(
            f"{count:6,} statements: a token of a turn {1000 * off:.1f} ms without memory, {on / off:.3f} times that with "
            f"recall, {shown / off:.3f} times with its exchange in the window",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    storage()
    if "--turns" in sys.argv:
        turns()
