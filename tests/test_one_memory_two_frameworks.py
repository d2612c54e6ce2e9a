"""Laws of one memory in two frameworks: each reads what the other wrote, bit for bit, and continues it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.inference.passes import Pass, Prompt
from deltamem_agents.snapshots import SQLiteStore
from deltamem_agents.testing import ScriptedEngine, oblige
from deltamem_agents.types import MemoryMode
from tiny_engine import tiny_engine

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool

from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM

AGENT = "ada"


class Says(Protocol):
    def __call__(
        self, engine: DeltaMemEngine, store: SQLiteStore, text: str, memory: MemoryMode = "readwrite"
    ) -> dict[str, Any]: ...


def through_langchain(
    engine: DeltaMemEngine, store: SQLiteStore, text: str, memory: MemoryMode = "readwrite"
) -> dict[str, Any]:
    model = ChatDeltaMem(engine=engine, store=store, agent_id=AGENT, memory=memory, max_tokens=5)
    facts: dict[str, Any] = model.invoke(text).response_metadata["deltamem"]
    return facts


def through_llamaindex(
    engine: DeltaMemEngine, store: SQLiteStore, text: str, memory: MemoryMode = "readwrite"
) -> dict[str, Any]:
    llm = DeltaMemLLM(engine=engine, store=store, max_tokens=5).for_agent(AGENT, memory=memory)
    facts: dict[str, Any] = llm.chat([ChatMessage(role=MessageRole.USER, content=text)]).raw["deltamem"]
    return facts


FRAMEWORKS: dict[str, Says] = {"langchain": through_langchain, "llamaindex": through_llamaindex}


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every pass through a model, in order."""
    seen: list[torch.Tensor] = []
    genuine: Callable[[Pass, Prompt], torch.Tensor] = Pass.feed

    def feed(run: Pass, prompt: Prompt) -> torch.Tensor:
        seen.append(genuine(run, prompt))
        return seen[-1]

    monkeypatch.setattr(Pass, "feed", feed)
    return seen


@pytest.mark.parametrize("writer", FRAMEWORKS)
def test_one_reads_the_others_memory_with_identical_logits(
    writer: str, tmp_path: Path, logits: list[torch.Tensor]
) -> None:
    with SQLiteStore(tmp_path / "m.sqlite") as store:
        written = FRAMEWORKS[writer](tiny_engine(), store, "My dog's name is Biscuit.")

    def asked(reader: str, memory: MemoryMode) -> tuple[dict[str, Any], torch.Tensor]:
        logits.clear()
        # A separate engine and store, as in another process.
        with SQLiteStore(tmp_path / "m.sqlite") as store:
            return FRAMEWORKS[reader](tiny_engine(), store, "What is my dog's name?", memory), logits[0]

    (by_langchain, first), (by_llamaindex, second) = (asked(reader, "readonly") for reader in FRAMEWORKS)
    assert torch.equal(first, second)
    same = ("agent", "thread", "alignment", "tokens_read", "state_norm", "state_bytes", "tokens_written")
    assert {name: by_langchain[name] for name in same} == {name: by_llamaindex[name] for name in same}
    assert by_langchain["state_norm"] == pytest.approx(written["state_norm"])
    assert not torch.equal(first, asked(writer, "off")[1])


@pytest.mark.slow
@pytest.mark.parametrize("order", [("langchain", "llamaindex"), ("llamaindex", "langchain")])
def test_both_frameworks_write_the_same_bytes(order: tuple[str, str], tmp_path: Path) -> None:
    said = ["I live in Oslo.", "My cat is Miu.", "And I am Ada."]
    states = []
    for frameworks in (order, order[::-1], order[:1]):
        with SQLiteStore(tmp_path / f"{'-'.join(frameworks)}.sqlite") as store:
            for turn, text in enumerate(said):
                FRAMEWORKS[frameworks[turn % len(frameworks)]](tiny_engine(), store, text)
            snapshot = store.load(AGENT).snapshot
            states.append((snapshot.state.matrices, snapshot.absorbed, snapshot.counters))
    for matrices, absorbed, counters in states[1:]:
        assert torch.equal(matrices, states[0][0]) and (absorbed, counters) == states[0][1:]


def look_up(city: str) -> str:
    """Look up the weather."""
    return f"sunny in {city}"


def test_a_tool_loop_begun_in_one_goes_on_in_the_other() -> None:
    engine = ScriptedEngine(oblige)
    model = ChatDeltaMem(engine=engine, agent_id=AGENT, max_tokens=500).bind_tools([look_up])
    llm, tool = DeltaMemLLM(engine=engine, max_tokens=500).for_agent(AGENT), FunctionTool.from_defaults(look_up)
    question = "How is the weather in Paris?"

    called = model.invoke(question)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    history = [
        ChatMessage(role=MessageRole.USER, content=question),
        ChatMessage(
            role=MessageRole.ASSISTANT,
            additional_kwargs={"tool_calls": [{"id": call["id"], "name": call["name"], "arguments": call["args"]}]},
        ),
        ChatMessage(role=MessageRole.TOOL, content="sunny", additional_kwargs={"tool_call_id": call["id"]}),
    ]
    answer = llm.chat_with_tools([tool], chat_history=history)
    assert answer.raw["deltamem"]["alignment"] == "extends" and answer.raw["deltamem"]["messages_written"] == 2

    told: list[BaseMessage] = [
        HumanMessage(question),
        called,
        ToolMessage("sunny", tool_call_id=call["id"]),
        AIMessage(answer.message.content or ""),
        HumanMessage("Thanks."),
    ]
    facts = model.invoke(told).response_metadata["deltamem"]
    assert facts["alignment"] == "extends" and facts["messages_written"] == 2
    assert engine.store.load(AGENT).snapshot.absorbed.count == 6
