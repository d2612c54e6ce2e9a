"""Laws of LlamaIndex's agents with the LLM: each remembers its own messages, once, and no other agent's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    BaseWorkflowAgent,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.workflow import Context
from pydantic import BaseModel

from deltamem_agents import InMemoryStore, MemoryState, Message, Snapshot, ToolCall
from deltamem_agents.snapshots import Fingerprint
from deltamem_agents.testing import SELECTIVE, Asked, ScriptedEngine, oblige
from deltamem_agents.types import ThreadLog
from llama_index.llms.deltamem import DeltaMemFunctionAgent, DeltaMemLLM, DeltaMemReActAgent
from llama_index.llms.deltamem.agents import MEMORIES_KEY, packed, unpacked


def weather(city: str) -> str:
    """Tell how the weather is in a city."""
    return f"sunny in {city}"


def brain(asked: Asked) -> Message | str:
    """Calls the weather tool, or else replies in words."""
    last = asked.messages[-1]
    return oblige(asked) if last.role == "tool" or "weather" in last.content else f"You said: {last.content}"


def reasoning(asked: Asked) -> str:
    """A ReAct agent's replies: one call in an unusual but valid spelling, and an answer."""
    last = asked.messages[-1].content
    if last.startswith("Observation:"):
        return f"Thought:  I know.\nAnswer: It is {last.removeprefix('Observation: ')}."
    if "weather" in last:
        return 'Thought:   Let me look.\n\nAction: weather\nAction Input: {"city":"Paris"}'
    return f"Thought: Easy.\nAnswer: You said {last}"


def scripted(script: Any = brain) -> DeltaMemLLM:
    return DeltaMemLLM(engine=ScriptedEngine(script), max_tokens=500)


def head(llm: DeltaMemLLM, agent: str) -> Snapshot:
    return llm.open_engine(agent).store.load(agent).snapshot


async def ask(agent: BaseWorkflowAgent | AgentWorkflow, text: str, **given: Any) -> str:
    done: Any = await agent.run(user_msg=text, **given)
    return str(done.response.content)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_remembers_its_complete_tool_loop(streaming: bool) -> None:
    llm = scripted().for_agent("bob")
    agent = FunctionAgent(llm=llm, tools=[weather], system_prompt="Be brief.", streaming=streaming)
    assert await ask(agent, "How is the weather in Paris?") == "It is sunny in Paris."
    assert head(llm, "bob").absorbed.count == 4 and head(llm, "bob").counters.turns == 2


async def test_a_conversation_with_history_is_written_once() -> None:
    llm, memory = scripted().for_agent("bob"), Memory.from_defaults()
    agent = FunctionAgent(llm=llm, tools=[weather])
    await ask(agent, "How is the weather in Paris?", memory=memory)
    await ask(agent, "How is the weather in Oslo?", memory=memory)
    assert head(llm, "bob").absorbed.count == 8
    assert len(await memory.aget()) == 8


async def test_calls_and_text_stream_to_the_caller() -> None:
    agent = FunctionAgent(llm=scripted(), tools=[weather])
    handler = agent.run(user_msg="How is the weather in Paris?")
    events = [event async for event in handler.stream_events()]
    pieces = [event for event in events if isinstance(event, AgentStream)]
    growing = [event.tool_calls[0].tool_kwargs for event in pieces if event.tool_calls]
    assert {"city": "Par"} in growing and growing[-1] == {"city": "Paris"}
    assert "".join(event.delta for event in pieces) == "It is sunny in Paris."
    assert [event.tool_output.content for event in events if isinstance(event, ToolCallResult)] == ["sunny in Paris"]
    assert pieces[-1].raw["deltamem"]["agent"] is None


async def test_several_calls_of_one_reply_are_all_answered() -> None:
    def script(asked: Asked) -> Message | str:
        results = [message.content for message in asked.messages if message.role == "tool"]
        calls = tuple(ToolCall("weather", {"city": city}) for city in ("Paris", "Oslo"))
        return " and ".join(results) if results else Message("assistant", "", calls)

    answer = await ask(FunctionAgent(llm=scripted(script), tools=[weather]), "Weather?")
    assert answer == "sunny in Paris and sunny in Oslo"


async def test_the_first_tool_can_be_chosen() -> None:
    agent = FunctionAgent(llm=scripted("I would rather talk."), tools=[weather], initial_tool_choice="weather")
    handler = agent.run(user_msg="Hi.")
    results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert [result.tool_name for result in results] == ["weather"]


class Weather(BaseModel):
    """The weather."""

    sky: str


async def test_the_summary_of_an_agents_run_is_not_remembered() -> None:
    llm = scripted().for_agent("bob")
    done: Any = await FunctionAgent(llm=llm, output_cls=Weather).run(user_msg="Hello.")
    assert set(done.structured_response) == {"sky"}
    assert head(llm, "bob").absorbed.count == 2


async def test_agents_that_hand_off_keep_their_own_memories() -> None:
    def script(asked: Asked) -> Message | str:
        names = [tool.name for tool in asked.tools]
        if "handoff" in names and asked.messages[-1].role == "user" and asked.agent == "planner":
            return Message("assistant", "", (ToolCall("handoff", {"to_agent": "writer", "reason": "it writes"}),))
        return f"{asked.agent} is done."

    llm = scripted(script)
    planner = FunctionAgent(
        name="planner", description="plans", llm=llm.for_agent("planner"), can_handoff_to=["writer"]
    )
    writer = FunctionAgent(name="writer", description="writes", llm=llm.for_agent("writer"), system_prompt="Write.")
    workflow = AgentWorkflow(agents=[planner, writer], root_agent="planner")
    assert await ask(workflow, "Write a poem.") == "writer is done."
    engine = llm.open_engine(None)
    assert engine.store.agents() == ["planner", "writer"]
    assert head(llm, "planner").absorbed.tail != head(llm, "writer").absorbed.tail
    assert head(llm, "planner").counters.turns == head(llm, "writer").counters.turns == 1


async def test_llamaindex_react_agent_works() -> None:
    llm = scripted(reasoning).for_agent("bob")
    agent = ReActAgent(llm=llm, tools=[weather])
    assert await ask(agent, "How is the weather in Paris?") == "It is sunny in Paris."
    assert head(llm, "bob").counters.turns == 2


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_react_agent_that_keeps_its_exact_text_is_written_once(streaming: bool) -> None:
    llm, memory = scripted(reasoning).for_agent("bob"), Memory.from_defaults()
    agent = DeltaMemReActAgent(llm=llm, tools=[weather], streaming=streaming)
    assert await ask(agent, "How is the weather in Paris?", memory=memory) == "It is sunny in Paris."
    assert head(llm, "bob").absorbed.count == 4
    assert await ask(agent, "Thanks, and the weather in Oslo?", memory=memory) == "It is sunny in Paris."
    assert head(llm, "bob").absorbed.count == 8
    said = [(message.role.value, message.content) for message in await memory.aget()]
    assert said[1][1] == 'Thought:   Let me look.\n\nAction: weather\nAction Input: {"city":"Paris"}'
    assert [role for role, _ in said] == ["user", "assistant"] * 4


Made = Callable[[], BaseWorkflowAgent]
AGENTS = {
    "function": lambda: DeltaMemFunctionAgent(llm=scripted(), tools=[weather]),
    "react": lambda: DeltaMemReActAgent(llm=scripted(reasoning), tools=[weather]),
}


@pytest.fixture(params=AGENTS)
def made(request: pytest.FixtureRequest) -> Made:
    return AGENTS[request.param]  # type: ignore[no-any-return]


async def held(ctx: Context) -> dict[str, str]:
    memories: dict[str, str] = await ctx.store.get(MEMORIES_KEY, default={})
    return memories


async def in_context(ctx: Context, agent: str = "Agent") -> Snapshot:
    return unpacked(agent, (await held(ctx))[agent]).load(agent).snapshot


def copied(ctx: Context, agent: BaseWorkflowAgent) -> Context:
    return Context.from_dict(agent, json.loads(json.dumps(ctx.to_dict())))


async def test_the_context_takes_the_memory_to_another_process(made: Made) -> None:
    agent = made()
    ctx = Context(agent)
    await ask(agent, "How is the weather in Paris?", ctx=ctx, memory=Memory.from_defaults())
    assert (await in_context(ctx)).absorbed.count == 4
    again = made()
    restored = copied(ctx, again)
    assert await held(restored) == await held(ctx)
    await ask(again, "Thanks.", ctx=restored, memory=Memory.from_defaults())
    after = await in_context(restored)
    assert after.absorbed.count == 6 and after.counters.turns == 3
    for llm in (agent.llm, again.llm):
        assert isinstance(llm, DeltaMemLLM) and llm.open_engine(None).store.agents() == []


@pytest.mark.slow
async def test_an_edit_of_the_history_reaches_the_memory_in_the_context(made: Made) -> None:
    agent = made()
    ctx, memory = Context(agent), Memory.from_defaults()
    for text in ("I live in Oslo.", "My cat is Miu.", "I like tea."):
        await ask(agent, text, ctx=ctx, memory=memory)
    before = await in_context(ctx)
    said = await memory.aget_all()
    await memory.aset([ChatMessage("I live in Rome."), *said[1:]])
    await ask(agent, "And now?", ctx=ctx, memory=memory)
    after = await in_context(ctx)
    assert after.counters.messages == 8 and after.absorbed.tail[0] != before.absorbed.tail[0]
    assert after.absorbed.tail[1:6] == before.absorbed.tail[1:]


@pytest.mark.slow
async def test_a_history_that_was_flushed_stays_in_the_memory_of_the_context(made: Made) -> None:
    agent = made()
    ctx, memory = Context(agent), ChatMemoryBuffer.from_defaults(token_limit=20, tokenizer_fn=str.split)
    for number in range(6):
        await ask(agent, f"Fact {number}.", ctx=ctx, memory=memory)
    assert len(await memory.aget()) < 12 and (await in_context(ctx)).counters.messages == 12


async def test_restored_copies_are_independent(made: Made) -> None:
    agent = made()
    ctx = Context(agent)
    await ask(agent, "Hello.", ctx=ctx, memory=Memory.from_defaults())
    crossroads = await held(ctx)
    branches = [copied(ctx, agent) for _ in range(2)]
    for branch, city in zip(branches, ("Oslo", "Rome"), strict=True):
        await ask(agent, f"I live in {city}.", ctx=branch, memory=Memory.from_defaults())
    oslo, rome = [await in_context(branch) for branch in branches]
    assert oslo.absorbed.count == rome.absorbed.count == 4 and oslo.absorbed.tail != rome.absorbed.tail
    assert not oslo.state.matrices.equal(rome.state.matrices)
    assert await held(ctx) == crossroads


async def test_agents_of_one_context_have_separate_memories() -> None:
    def script(asked: Asked) -> Message | str:
        if asked.agent == "a.planner" and asked.messages[-1].role == "user":
            return Message("assistant", "", (ToolCall("handoff", {"to_agent": "writer", "reason": "it writes"}),))
        return "done"

    llm = scripted(script)
    planner = DeltaMemFunctionAgent(name="a.planner", description="plans", llm=llm)
    writer = DeltaMemFunctionAgent(name="writer", description="writes", llm=llm)
    workflow = AgentWorkflow(agents=[planner, writer], root_agent="a.planner")
    ctx = Context(workflow)
    await ask(workflow, "Write a poem.", ctx=ctx)
    plans, writes = await in_context(ctx, "a.planner"), await in_context(ctx, "writer")
    assert plans.absorbed.tail != writes.absorbed.tail
    assert llm.open_engine(None).store.agents() == []


async def test_a_failed_step_does_not_change_the_context() -> None:
    replies = iter(["fine"])
    agent = DeltaMemFunctionAgent(llm=scripted(lambda _: next(replies)))
    ctx = Context(agent)
    await ask(agent, "Hello.", ctx=ctx, memory=Memory.from_defaults())
    before = await held(ctx)
    with pytest.raises(Exception, match="StopIteration"):
        await ask(agent, "Again.", ctx=ctx, memory=Memory.from_defaults())
    assert await held(ctx) == before


async def test_an_llm_that_names_an_agent_keeps_the_memory_in_its_store() -> None:
    llm = scripted().for_agent("bob")
    agent = DeltaMemFunctionAgent(llm=llm)
    ctx = Context(agent)
    await ask(agent, "Hello.", ctx=ctx)
    assert await held(ctx) == {} and head(llm, "bob").absorbed.count == 2


async def test_a_readonly_llm_puts_nothing_into_the_context() -> None:
    agent = DeltaMemFunctionAgent(llm=DeltaMemLLM(engine=ScriptedEngine(brain), max_tokens=500, memory="readonly"))
    ctx = Context(agent)
    assert await ask(agent, "Hello.", ctx=ctx)
    assert await held(ctx) == {}


async def test_a_context_keeps_the_full_state_and_stays_bounded() -> None:
    llm = DeltaMemLLM(engine=ScriptedEngine("Noted.", config=SELECTIVE), max_tokens=20)
    agent = DeltaMemFunctionAgent(llm=llm, name="ada")
    ctx = Context(agent)
    replies = [await agent.run(user_msg=f"Number {number} is blue.", ctx=ctx) for number in range(4)]
    (held,) = (await ctx.store.get(MEMORIES_KEY)).values()
    snapshot = unpacked("ada", held).load("ada").snapshot
    assert snapshot.statements is None and snapshot.base is None
    assert snapshot.state.norm() > 0
    assert replies[-1].raw["deltamem"]["recalled"] == [] and replies[-1].raw["deltamem"]["state_norm"] > 0
    again = Context.from_dict(agent, json.loads(json.dumps(ctx.to_dict())))
    assert (await agent.run(user_msg="What is blue?", ctx=again)).raw["deltamem"]["state_norm"] > 0


def test_a_context_of_the_default_adapter_takes_less_than_100_kb_for_each_agent() -> None:
    digests = tuple(f"u:{number:032x}" for number in range(ThreadLog.TAIL_MESSAGES))
    log = ThreadLog(10**6, digests, digests[: ThreadLog.OPENING_MESSAGES])
    made_by = Fingerprint("m" * 64, "t" * 64, "a" * 64)
    carried = InMemoryStore()
    carried.save("ada", Snapshot(MemoryState.zeros(1, 16, 1, 32), made_by, absorbed=log), expected=None)
    held = packed("ada", carried)
    assert held is not None and len(held) <= 100_000
