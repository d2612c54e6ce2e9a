"""The overhead of LangChain and the memory around the model: `python benchmarks/langchain_overhead.py`.

Prints the share of a turn spent outside the model's forward passes, and the prompt tokens of a long conversation: with
a bounded window, whose older messages are in the memory, and with the whole history in the frozen model's prompt. Some
turns with the whole history are also timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from deltamem_agents import DeltaMemEngine, SQLiteStore
from langchain_deltamem import ChatDeltaMem

REPLY_TOKENS = 16
FACT = "This is fact number {}: the {} drawer of the desk holds what was written on day {}."
SHOWN = (1, 2, 5, 10, 20, 50, 100)


class ForwardClock:
    """Sums the seconds of a model's forward passes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = self._began = 0.0
        model.register_forward_pre_hook(lambda *_: self._start())
        model.register_forward_hook(lambda *_: self._stop())

    def _start(self) -> None:
        self._began = time.perf_counter()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(frozen=True)
class Measured:
    """One turn: its prompt tokens, its seconds, and the seconds of these spent in the model."""

    prompt_tokens: int
    seconds: float
    model_seconds: float
    reply: str

    @property
    def outside(self) -> float:
        return 1 - self.model_seconds / self.seconds


def measured(model: ChatDeltaMem, clock: ForwardClock, history: Sequence[BaseMessage]) -> Measured:
    inside, start = clock.seconds, time.perf_counter()
    reply = model.invoke(list(history), agent_id="bench", thread="one")
    seconds = time.perf_counter() - start
    usage = reply.usage_metadata
    prompt = usage["input_tokens"] - usage["input_token_details"]["absorbed"]
    return Measured(prompt, seconds, clock.seconds - inside, reply.text)


def converse(model: ChatDeltaMem, clock: ForwardClock, turns: int) -> tuple[list[Measured], list[BaseMessage]]:
    """Runs a conversation that sends the whole history every turn, as LangChain does. Also returns the history."""
    history: list[BaseMessage] = []
    told = []
    for turn in range(1, turns + 1):
        history.append(HumanMessage(FACT.format(turn, turn % 7, turn)))
        told.append(measured(model, clock, history))
        history.append(AIMessage(told[-1].reply))
    return told, history


def opened(given: argparse.Namespace, store: SQLiteStore, window: int | None) -> tuple[ChatDeltaMem, ForwardClock]:
    engine = DeltaMemEngine.from_pretrained(
        given.model, adapter=given.adapter, store=store, window_tokens=window, progress=False
    )
    model = ChatDeltaMem(engine=engine, max_tokens=REPLY_TOKENS)
    model.invoke("Warm up.", memory="off")
    return model, ForwardClock(engine.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", help="folder or Hub id; default: the shipped one")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--window", type=int, default=512, help="tokens of prompt and reply together")
    parser.add_argument("--context", type=int, default=8192, help="the same for the whole history")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SQLiteStore(Path(folder) / "bench.sqlite") as store:
        bounded, history = converse(*opened(given, store, given.window), given.turns)
        frozen, clock = opened(given, store, given.context)
        frozen.memory = "off"
        shown = [turn for turn in SHOWN if turn <= given.turns]
        whole = {turn: measured(frozen, clock, history[: 2 * turn - 1]) for turn in shown}
        tokens = [whole_prompt(frozen, history[: 2 * turn - 1]) for turn in range(1, given.turns + 1)]
        assert all(tokens[turn - 1] == found.prompt_tokens for turn, found in whole.items())
    report(bounded, tokens, whole)


def whole_prompt(model: ChatDeltaMem, history: Sequence[BaseMessage]) -> int:
    """Number of tokens of a prompt with this whole history."""
    assert model.engine is not None
    said = [{"role": "assistant" if m.type == "ai" else "user", "content": m.text} for m in history]
    return len(model.engine.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True).input_ids)


def report(bounded: Sequence[Measured], tokens: Sequence[int], whole: dict[int, Measured]) -> None:
    outside = sorted(turn.outside for turn in bounded)
    seconds = statistics.median(turn.seconds for turn in bounded)
    print(f"{len(bounded)} turns of up to {REPLY_TOKENS} tokens of reply; a turn takes {seconds:.2f} s (median)")
    print(f"outside the model: {statistics.median(outside):.1%} of a turn (median), {outside[-1]:.1%} at the most,")
    print(f"  {statistics.median(turn.outside * turn.seconds for turn in bounded) * 1000:.0f} ms (median)")
    told, all_told = sum(turn.prompt_tokens for turn in bounded), sum(tokens)
    print(f"prompt tokens of all turns: {told} with the window, {all_told} with the whole history")
    print(f"  {all_told / told:.1f} times as many; in the last turn {tokens[-1] / bounded[-1].prompt_tokens:.1f} times")
    print("turn  window: tokens  seconds  whole history: tokens  seconds  tokens, times")
    for turn, found in whole.items():
        mine = bounded[turn - 1]
        times = found.prompt_tokens / mine.prompt_tokens
        print(
            f"{turn:4}  {mine.prompt_tokens:14}  {mine.seconds:7.2f}"
            f"  {found.prompt_tokens:21}  {found.seconds:7.2f}  {times:13.1f}"
        )


if __name__ == "__main__":
    main()
