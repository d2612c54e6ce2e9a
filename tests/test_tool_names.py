"""Laws of tool names: a tool is offered, chosen, called and looked up by its own name, however unusual."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("langchain_deltamem")
pytest.importorskip("llama_index.llms.deltamem")
pytest.importorskip("llguidance")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from deltamem_agents import ConfigError, Message, Tool, ToolCall
from deltamem_agents.chat.grammar import Vocabulary, reply_grammar
from deltamem_agents.chat.tool_calls import format_tool_calls, parse_tool_calls
from deltamem_agents.testing import Asked, ScriptedEngine
from langchain_deltamem import ChatDeltaMem
from llama_index.llms.deltamem import DeltaMemLLM
from tiny_engine import byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER.backend_tokenizer.to_str(), 300, {257})
# LlamaIndex's own conversion would make two of these equal.
NAMES = (
    "web.search",
    "web search",
    "Search Internet",
    "søk",
    'quoted "name"',
    "back\\slash",
    "[odd] {name}",
    "a" * 100,
)


class Query(BaseModel):
    words: str


def by_turns(asked: Asked) -> Message | str:
    """Calls every available tool, then repeats what they returned."""
    if asked.messages[-1].role == "tool":
        return "\n".join(sorted(f"{m.name}: {m.content}" for m in asked.messages if m.role == "tool"))
    return Message("assistant", "", tuple(ToolCall(tool.name, {"words": "δ"}) for tool in asked.tools))


def told(names: tuple[str, ...]) -> str:
    return "\n".join(sorted(f"{name}: {name} found δ" for name in names))


def for_llamaindex(name: str) -> FunctionTool:
    return FunctionTool.from_defaults(
        lambda words: f"{name} found {words}", name=name, description="d", fn_schema=Query
    )


def for_langchain(name: str) -> StructuredTool:
    return StructuredTool.from_function(
        lambda words: f"{name} found {words}", name=name, description="d", args_schema=Query
    )


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_llamaindex_agent_runs_tools_of_any_name(streaming: bool) -> None:
    async def run() -> str:
        llm = DeltaMemLLM(engine=ScriptedEngine(by_turns), max_tokens=2000)
        agent = FunctionAgent(llm=llm, tools=[for_llamaindex(name) for name in NAMES], streaming=streaming)
        return str(await agent.run("go"))

    assert asyncio.run(run()) == told(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_llamaindex_llm_calls_the_tool_that_was_chosen_by_its_own_name(name: str) -> None:
    llm, tools = DeltaMemLLM(engine=ScriptedEngine("No."), max_tokens=2000), [for_llamaindex(each) for each in NAMES]
    for choice in (name, {"type": "function", "function": {"name": name}}):
        response = llm.chat_with_tools(tools, "go", tool_choice=choice)
        assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == [name]
    called = llm.predict_and_call(tools, "go", tool_choice=name)
    assert called.sources[0].tool_name == name and called.response == f"{name} found "


@pytest.mark.slow
def test_a_langchain_agent_runs_tools_of_any_name() -> None:
    model = ChatDeltaMem(engine=ScriptedEngine(by_turns), max_tokens=2000)
    agent = create_agent(model, tools=[for_langchain(name) for name in NAMES])
    assert agent.invoke({"messages": [("user", "go")]})["messages"][-1].content == told(NAMES)
    for name in NAMES:
        chosen = ChatDeltaMem(engine=ScriptedEngine("No."), max_tokens=2000).bind_tools(
            [for_langchain(each) for each in NAMES], tool_choice=name
        )
        assert [call["name"] for call in chosen.invoke("go").tool_calls] == [name]


def test_a_history_with_such_calls_is_read_and_written_once() -> None:
    engine = ScriptedEngine("Yes.")
    asked = ChatMessage(role=MessageRole.USER, content="go")
    calls = [{"id": f"c{n}", "name": name, "arguments": {"words": "δ"}} for n, name in enumerate(NAMES)]
    called = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs={"tool_calls": calls})
    ids = [{"tool_call_id": str(call["id"])} for call in calls]
    results = [ChatMessage(role=MessageRole.TOOL, content="found", additional_kwargs=id) for id in ids]
    llm = DeltaMemLLM(engine=engine, max_tokens=100).for_agent("ada", thread="t")
    first = llm.chat([asked, called, *results]).raw["deltamem"]
    spoken = AIMessage("", tool_calls=[{"id": c["id"], "name": c["name"], "args": c["arguments"]} for c in calls])
    history = [HumanMessage("go"), spoken, *(ToolMessage("found", **id) for id in ids), AIMessage("Yes.")]
    model = ChatDeltaMem(engine=engine, max_tokens=100)
    again = model.invoke([*history, HumanMessage("?")], agent_id="ada", thread="t").response_metadata["deltamem"]
    assert first["messages_written"] == len(NAMES) + 3
    assert (again["messages_written"], again["alignment"]) == (2, "extends")


@settings(max_examples=40, deadline=None)
@example("\x7f")
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip))
def test_a_call_of_any_name_is_written_enforced_and_parsed(name: str) -> None:
    text = format_tool_calls([ToolCall(name, {"words": "x"})])
    grammar = reply_grammar([Tool(name, parameters=Query.model_json_schema())], "any")
    assert grammar is not None
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert VOCABULARY.matcher(grammar).accepts(ids)
    (call,) = parse_tool_calls(text, names=[name], held=True).calls
    assert call.name == name and json.dumps(dict(call.arguments)) == '{"words": "x"}'


def test_two_tools_of_one_name_are_refused_in_both_frameworks() -> None:
    other = FunctionTool.from_defaults(lambda words: "", name="søk", description="another", fn_schema=Query)
    with pytest.raises(ConfigError, match="two tools are named 'søk'"):
        DeltaMemLLM(engine=ScriptedEngine("No.")).chat_with_tools([for_llamaindex("søk"), other], "go")
    twice = [for_langchain("søk"), StructuredTool.from_function(lambda: "", name="søk", description="another")]
    with pytest.raises(ConfigError, match="two tools are named 'søk'"):
        ChatDeltaMem(engine=ScriptedEngine("No.")).bind_tools(twice).invoke("go")
