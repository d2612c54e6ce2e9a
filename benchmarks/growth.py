"""How costs grow with use: `python benchmarks/growth.py`.

Prints the cost of each operation with few and with many snapshots, agents, threads or messages, and the ratio of the
last to the first. Only ratios within one run are meaningful. States are random, of the shipped adapter's size. Turns
use a scripted engine with a tiny model, so the cost around the model is visible.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from deltamem_agents import FileStore, InMemoryStore, MemoryState, Message, Snapshot, SQLiteStore, Store
from deltamem_agents.chat.history import digest
from deltamem_agents.snapshots import Counters, Entry, Fingerprint
from deltamem_agents.testing import ScriptedEngine
from deltamem_agents.types import ThreadLog

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: InMemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "memory.sqlite"),
    "files": lambda folder: FileStore(folder / "memory"),
}
FINGERPRINT = Fingerprint("model", "tokenizer", "adapter")
SHAPE = (1, 16, 1, 32, 32)
BYSTANDERS = 3
"""Number of snapshots of each other agent."""


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of one operation (`act`) at each size."""

    axis: str
    store: str
    act: str
    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.milliseconds[-1] / self.milliseconds[0]


def following(before: Entry | None, fingerprint: Fingerprint, state: MemoryState, thread: str, number: int) -> Snapshot:
    """The snapshot of one more turn, as an engine would commit it."""
    counters = Counters() if before is None else before.snapshot.counters
    told = [digest(Message("user", f"message {number}")), digest(Message("assistant", f"reply {number}"))]
    known = () if before is None or before.snapshot.thread != thread else before.snapshot.absorbed.tail
    tail = (*known, *told)[-ThreadLog.TAIL_MESSAGES :]
    count = len(told) if not known else before.snapshot.absorbed.count + len(told)  # type: ignore[union-attr]
    return Snapshot(
        state=state,
        fingerprint=fingerprint,
        thread=thread,
        absorbed=ThreadLog(count, tail),
        threads={} if before is None else before.threads(),
        parent=None if before is None else before.id,
        counters=Counters(counters.turns + 1, counters.messages + 2, counters.tokens + 30),
    )


def grown(
    snapshots: int, threads: int = 1, fingerprint: Fingerprint = FINGERPRINT, state: MemoryState | None = None
) -> tuple[Store, io.BytesIO]:
    """An in-memory store with one agent "a", whose snapshots alternate between `threads`; and its export."""
    store = InMemoryStore()
    for number in range(snapshots):
        before = None if number == 0 else store.load("a")
        drawn = MemoryState(torch.randn(SHAPE)) if state is None else state
        commit = following(before, fingerprint, drawn, f"thread {number % threads}", number)
        store.save("a", commit, expected=None if before is None else before.id)
    archive = io.BytesIO()
    store.export("a", archive)
    return store, archive


def median(act: Callable[[int], object], rounds: int) -> float:
    """Median milliseconds of `act`, which gets the number of the round."""
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        act(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def save_one(store: Store, number: int) -> None:
    before = store.load("a")
    commit = following(before, FINGERPRINT, before.snapshot.state, before.snapshot.thread, 10**6 + number)
    store.save("a", commit, expected=before.id)


def acts(store: Store, bystander: io.BytesIO, rounds: int) -> Iterator[tuple[str, float]]:
    """Times every operation on the store's agent "a", which is erased at the end."""
    yield "load", median(lambda _: store.load("a"), rounds)
    yield "load and save", median(lambda number: save_one(store, number), rounds)
    yield "log, all of it", median(lambda _: sum(1 for _ in store.log("a")), 1)
    yield "fork", median(lambda number: store.fork("a", f"fork {number}"), rounds)
    for number in range(rounds):
        store.forget(f"fork {number}")
        store.import_(bystander, f"other {number}")
    yield "forget another", median(lambda number: store.forget(f"other {number}"), rounds)
    yield "prune to half", median(lambda _: store.prune("a", keep_last=max(len(store.moves("a")) // 2, 1)), 1)
    yield "forget", median(lambda _: store.forget("a"), 1)


@contextmanager
def filled(kind: str, archive: io.BytesIO, agents: int, bystander: io.BytesIO) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder, STORES[kind](Path(folder)) as store:
        for number in range(agents - 1):
            store.import_(bystander, f"bystander {number}")
        store.import_(archive, "a")
        yield store


def table(axis: str, kind: str, sizes: tuple[int, ...], measured: list[dict[str, float]]) -> list[Cost]:
    return [Cost(axis, kind, act, sizes, tuple(each[act] for each in measured)) for act in measured[0]]


def cost_of_snapshots(kind: str, sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    bystander, measured = grown(BYSTANDERS)[1], []
    for size in sizes:
        with filled(kind, grown(size)[1], 1, bystander) as store:
            measured.append(dict(acts(store, bystander, rounds)))
    return table("snapshots", kind, sizes, measured)


def cost_of_agents(kind: str, sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    bystander, measured = grown(BYSTANDERS)[1], []
    for size in sizes:
        with filled(kind, bystander, size, bystander) as store:
            measured.append(dict(acts(store, bystander, rounds)))
    return table("agents", kind, sizes, measured)


def cost_of_threads(kind: str, sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    """Two turns in each thread. A snapshot refers to at most 512 threads."""
    bystander, measured = grown(BYSTANDERS)[1], []
    for size in sizes:
        with filled(kind, grown(2 * size, size)[1], 1, bystander) as store:
            measured.append(dict(acts(store, bystander, rounds)))
    return table("threads", kind, sizes, measured)


def turns_after(store: Store, engine: ScriptedEngine, messages: int, thread: str | None, rounds: int) -> float:
    """A turn whose client sends `messages` messages, none of which matches what was said."""
    shown = [Message("user" if at % 2 == 0 else "assistant", f"reworded {at}") for at in range(messages)]
    twin = engine.with_store(store)

    def turn(number: int) -> None:
        twin.run_turn("a", [*shown, Message("user", f"question {number}")], thread=thread, memory="readonly")

    return median(turn, rounds)


def cost_of_turns(sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    """A turn in a thread with many snapshots, whose client's messages never match."""
    engine, measured = ScriptedEngine(), []
    for size in sizes:
        store, _ = grown(size, 1, engine.fingerprint, engine.new_state())
        forms = {"its thread named": "thread 0", "no thread named": None}
        measured.append({name: turns_after(store, engine, 10, thread, rounds) for name, thread in forms.items()})
    return table("snapshots, a turn", "memory", sizes, measured)


def cost_of_messages(sizes: tuple[int, ...], rounds: int) -> list[Cost]:
    """A turn whose client sends a long history, which has to be cut to the window."""
    engine, measured = ScriptedEngine(window_tokens=1024), []
    for size in sizes:
        measured.append({"fresh, memory off": fit_window(engine, size, rounds)})
    return table("messages", "memory", sizes, measured)


def fit_window(engine: ScriptedEngine, messages: int, rounds: int) -> float:
    history = [Message("user" if at % 2 == 0 else "assistant", f"message {at}") for at in range(messages)]
    asked = [*history, Message("user", "question")]
    return median(lambda _: engine.run_turn(None, asked, memory="off"), rounds)


def measure(kinds: list[str], sizes: tuple[int, ...], rounds: int) -> Iterator[Cost]:
    for kind in kinds:
        yield from cost_of_snapshots(kind, sizes, rounds)
        yield from cost_of_agents(kind, tuple(max(size // 10, 1) for size in sizes), rounds)
        yield from cost_of_threads(kind, tuple(max(size // 10, 1) for size in sizes), rounds)
    yield from cost_of_turns(sizes, rounds)
    yield from cost_of_messages(sizes, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[15, 150, 1500], metavar="N", help="numbers of snapshots and messages"
    )
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON value instead of a table")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    costs = measure(arguments.stores, tuple(sorted(arguments.sizes)), arguments.rounds)
    if arguments.json:
        print(json.dumps([{**asdict(cost), "ratio": cost.ratio} for cost in costs]))
        return
    head: object = None
    for cost in costs:
        if (cost.axis, cost.sizes, cost.store) != head:
            head = (cost.axis, cost.sizes, cost.store)
            print(
                f"\n{cost.store}, number of {cost.axis}".ljust(40),
                *(f"{size:>10,}" for size in cost.sizes),
                "     ratio",
            )
        print(f"{cost.act:<39}", *(f"{each:>8.2f}ms" for each in cost.milliseconds), f"{cost.ratio:>9.1f}x", flush=True)


if __name__ == "__main__":
    main()
