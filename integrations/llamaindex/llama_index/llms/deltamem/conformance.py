"""A test suite for any function-calling LLM: what LlamaIndex's agents and engines expect of it.

It needs pytest to run, but does not import it. It does not depend on δ-mem.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

WAYS = {"sync": "", "stream": "stream_", "async": "a", "astream": "astream_"}
"""The ways to call an LLM's methods, and the prefix of the method's name for each."""

STREAMS = ("stream", "astream")

Response: TypeAlias = ChatResponse | CompletionResponse


class Parametrised(Protocol):
    """The argument that pytest passes to `pytest_generate_tests`."""

    fixturenames: list[str]

    def parametrize(self, name: str, values: Sequence[str]) -> None: ...


class City(BaseModel):
    """A city, as asked for."""

    name: str
    people: int


def look_up(city: str) -> str:
    """Look up what the weather is like in a city."""
    return f"sunny in {city}"


def clock() -> str:
    """Tell what time it is."""
    return "noon"


class LLMConformance:
    """Tests of a function-calling LLM. Subclass it in your tests and implement `make_llm`:

        class TestMyLLM(LLMConformance):
            def make_llm(self) -> FunctionCallingLLM:
                return MyLLM(temperature=0)

    Each test runs for all ways of calling a method: sync, async, and both streamed. `test_an_agent_uses_its_tool` needs
    a model with judgement. All other tests pass for any LLM, however small, if a grammar makes its calls fit their
    schemas. `deterministic`: whether the same question always gets the same answer.
    """

    deterministic = True

    def make_llm(self) -> FunctionCallingLLM:
        """Returns a new LLM to test, without any conversation."""
        raise NotImplementedError("make_llm is not implemented; return the LLM to test")

    def pytest_generate_tests(self, metafunc: Parametrised) -> None:
        for name, values in (
            ("method", ("chat", "complete")),
            ("way", tuple(WAYS)),
            ("stream", STREAMS),
            ("streaming", ("streaming", "at once")),
        ):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    def test_the_metadata_says_what_it_can(self) -> None:
        metadata = self.make_llm().metadata
        assert metadata.is_function_calling_model and metadata.is_chat_model
        assert metadata.context_window >= metadata.num_output > 0
        assert metadata.model_name

    def test_it_is_written_down_and_read_back(self) -> None:
        llm = self.make_llm()
        written = json.loads(json.dumps(llm.to_dict()))
        assert written["class_name"] == llm.class_name()
        assert type(llm).from_dict(written).to_dict() == llm.to_dict()

    def test_a_reply_is_text_of_the_assistant(self, way: str) -> None:
        reply = heard(self.make_llm(), "chat", way, [_says("Hello.")])[-1]
        assert isinstance(reply, ChatResponse) and reply.message.role == MessageRole.ASSISTANT
        assert isinstance(reply.message.content, str) and reply.message.content

    def test_a_completion_is_text(self, way: str) -> None:
        reply = heard(self.make_llm(), "complete", way, "Hello.")[-1]
        assert isinstance(reply, CompletionResponse) and reply.text

    def test_every_way_says_the_same(self, method: str) -> None:
        if self.deterministic:
            said = {_text(heard(self.make_llm(), method, way, _asking(method))[-1]) for way in WAYS}
            assert len(said) == 1

    def test_the_pieces_of_a_stream_add_up(self, method: str, stream: str) -> None:
        replies = heard(self.make_llm(), method, stream, _asking(method))
        so_far = ""
        for reply in replies:
            so_far += reply.delta or ""
            assert _text(reply) == so_far
        assert so_far

    def test_a_stream_may_be_left_and_the_llm_asked_again(self, method: str, stream: str) -> None:
        llm = self.make_llm()
        first = heard(llm, method, stream, _asking(method), at_most=1)
        assert len(first) == 1
        assert _text(heard(llm, method, stream, _asking(method))[-1])

    def test_a_conversation_may_have_all_roles(self, way: str) -> None:
        conversation = [
            ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
            _says("My name is Ada."),
            ChatMessage(role=MessageRole.ASSISTANT, content="Hello, Ada."),
            _says("What did I say?"),
        ]
        before = [message.model_copy(deep=True) for message in conversation]
        assert _text(heard(self.make_llm(), "chat", way, conversation)[-1])
        assert conversation == before

    def test_a_required_tool_is_called_as_its_schema_says(self, way: str) -> None:
        llm, tool = self.make_llm(), FunctionTool.from_defaults(look_up)
        question = "How is the weather in Paris?"
        reply = heard(llm, "chat_with_tools", way, [tool], user_msg=question, tool_required=True)[-1]
        (call,) = _calls(llm, reply)
        assert call.tool_name == "look_up" and call.tool_id
        assert isinstance(call.tool_kwargs["city"], str) and call.tool_kwargs.keys() == {"city"}

    def test_every_way_makes_the_same_calls(self) -> None:
        if self.deterministic:
            made = []
            for way in WAYS:
                llm, asked = self.make_llm(), "How is the weather in Paris?"
                reply = heard(llm, "chat_with_tools", way, _tools(), asked, tool_required=True)[-1]
                made.append([(call.tool_name, call.tool_kwargs) for call in _calls(llm, reply)])
            assert made[0] and made.count(made[0]) == len(made)

    def test_calls_can_be_read_from_every_piece_of_a_stream(self, stream: str) -> None:
        llm, tools = self.make_llm(), _tools()
        replies = heard(llm, "chat_with_tools", stream, tools, user_msg="look_up Paris!", tool_required=True)
        read = [_calls(llm, reply) for reply in replies]
        assert read[-1] and all(len(before) <= len(after) for before, after in pairwise(read))
        assert {call.tool_name for calls in read for call in calls} <= {"look_up", "clock"}

    def test_parallel_calls_have_ids_of_their_own(self, way: str) -> None:
        llm = self.make_llm()
        asked = {"tool_required": True, "allow_parallel_tool_calls": True}
        reply = heard(llm, "chat_with_tools", way, _tools(), "look_up Paris, then clock.", **asked)[-1]
        ids = [call.tool_id for call in _calls(llm, reply)]
        assert ids and all(ids) and len(set(ids)) == len(ids)

    def test_a_reply_without_calls_is_an_error_where_one_is_needed(self) -> None:
        llm = self.make_llm()
        reply = llm.chat([_says("Hello.")])
        assert llm.get_tool_calls_from_response(reply, error_on_no_tool_call=False) == []
        try:
            llm.get_tool_calls_from_response(reply, error_on_no_tool_call=True)
        except ValueError:
            return
        raise AssertionError("ValueError was not raised")

    def test_a_tools_result_is_answered(self, way: str) -> None:
        llm, tools = self.make_llm(), _tools()
        question = _says("look_up the weather in Paris.")
        reply = heard(llm, "chat_with_tools", way, tools[:1], chat_history=[question], tool_required=True)[-1]
        assert isinstance(reply, ChatResponse)
        results = [
            ChatMessage(role=MessageRole.TOOL, content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
            for call in _calls(llm, reply)
        ]
        history = [question, reply.message, *results]
        answer = heard(llm, "chat_with_tools", way, tools, chat_history=history)[-1]
        assert _text(answer) or _calls(llm, answer)

    def test_an_object_is_predicted(self, way: str) -> None:
        prompt = PromptTemplate("Tell me about {city}.")
        found = heard(self.make_llm(), "structured_predict", way, City, prompt, city="Paris")[-1]
        assert isinstance(found, City)

    def test_each_call_is_one_event_of_the_callbacks(self, method: str, way: str) -> None:
        llm, recorder = self.make_llm(), _Callbacks()
        llm.callback_manager = CallbackManager([recorder])
        reply = heard(llm, method, way, _asking(method))[-1]
        assert recorder.begun == 1 and len(recorder.ended) == 1
        key = EventPayload.RESPONSE if method == "chat" else EventPayload.COMPLETION
        assert _text(recorder.ended[0][key]) == _text(reply)

    def test_each_call_begins_and_ends_for_the_instruments(self, method: str, way: str) -> None:
        llm, kind = self.make_llm(), "LLMChat" if method == "chat" else "LLMCompletion"
        with _instruments() as events:
            replies = heard(llm, method, way, _asking(method))
        names = [event.class_name() for event in events if event.class_name().startswith(kind)]
        pieces = len(replies) if way in STREAMS else 0
        assert names == [f"{kind}StartEvent", *[f"{kind}InProgressEvent"] * pieces, f"{kind}EndEvent"]

    def test_tokens_are_counted(self, method: str, way: str) -> None:
        llm, counter = self.make_llm(), TokenCountingHandler(tokenizer=str.split)
        llm.callback_manager = CallbackManager([counter])
        heard(llm, method, way, _asking(method))
        assert counter.prompt_llm_token_count > 0 and counter.completion_llm_token_count > 0

    def test_calls_made_side_by_side_do_not_mix(self) -> None:
        llm = self.make_llm()
        asked = [[_says(f"Say {word}.")] for word in ("one", "two", "three")]

        async def together() -> list[ChatResponse]:
            return await asyncio.gather(*(llm.achat(messages) for messages in asked))

        beside = [_text(reply) for reply in asyncio.run(together())]
        assert all(beside)
        if self.deterministic:
            assert beside == [_text(llm.chat(messages)) for messages in asked]

    def test_an_agent_ends(self, streaming: str) -> None:
        agent = FunctionAgent(llm=self.make_llm(), streaming=streaming == "streaming")
        assert asyncio.run(_run(agent, "Hello."))

    def test_an_agent_uses_its_tool(self, streaming: str) -> None:
        used: list[str] = []

        def weather(city: str) -> str:
            """Look up what the weather is like in a city."""
            used.append(city)
            return "sunny"

        agent = FunctionAgent(llm=self.make_llm(), tools=[weather], streaming=streaming == "streaming")
        assert asyncio.run(_run(agent, "How is the weather in Paris?"))
        assert used


def heard(llm: FunctionCallingLLM, method: str, way: str, *args: Any, **given: Any) -> list[Any]:
    """Calls a method in one of WAYS. Returns a list of all pieces of a stream, or of the single reply.

    The keyword `at_most` stops a stream after that many pieces.
    """
    at_most: int | None = given.pop("at_most", None)
    call: Callable[..., Any] = getattr(llm, WAYS[way] + method)
    if way == "sync":
        return [call(*args, **given)]
    if way == "stream":
        return list(_first(call(*args, **given), at_most))

    async def awaited() -> list[Any]:
        reply = await call(*args, **given)
        return [piece async for piece in _afirst(reply, at_most)] if way == "astream" else [reply]

    return asyncio.run(awaited())


def _first(pieces: Iterable[Any], at_most: int | None) -> Iterator[Any]:
    for count, piece in enumerate(pieces, 1):
        yield piece
        if count == at_most:
            return


async def _afirst(pieces: AsyncIterator[Any], at_most: int | None) -> AsyncIterator[Any]:
    count = 0
    async for piece in pieces:
        yield piece
        count += 1
        if count == at_most:
            return


async def _run(agent: FunctionAgent, text: str) -> str:
    done: Any = await agent.run(user_msg=text)
    return str(done.response.content)


def _says(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def _asking(method: str) -> Any:
    return [_says("Tell me a fact.")] if method == "chat" else "Tell me a fact."


def _tools() -> list[FunctionTool]:
    return [FunctionTool.from_defaults(look_up), FunctionTool.from_defaults(clock)]


def _text(reply: Response) -> str:
    return (reply.message.content or "") if isinstance(reply, ChatResponse) else reply.text


def _calls(llm: FunctionCallingLLM, reply: Any) -> list[ToolSelection]:
    return llm.get_tool_calls_from_response(reply, error_on_no_tool_call=False)


class _Callbacks(BaseCallbackHandler):
    """Records the LLM's events."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.begun = 0
        self.ended: list[dict[Any, Any]] = []

    def on_event_start(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        self.begun += event_type == CBEventType.LLM
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", **_: Any
    ) -> None:
        if event_type == CBEventType.LLM:
            self.ended.append(payload or {})

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None: ...


class _Events(BaseEventHandler):
    events: list[BaseEvent] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "conformance"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)


@contextmanager
def _instruments() -> Iterator[list[BaseEvent]]:
    """The list of events dispatched inside the block."""
    root, handler = get_dispatcher(), _Events()
    root.add_event_handler(handler)
    try:
        yield handler.events
    finally:
        root.event_handlers.remove(handler)
