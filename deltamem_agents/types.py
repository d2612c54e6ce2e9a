"""Value types that the package's layers share. They are frozen and do not need torch."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypedDict

from deltamem_agents.errors import ConfigError, MessageError

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
MemoryMode: TypeAlias = Literal["readwrite", "readonly", "off"]
ReadMode: TypeAlias = Literal["selected", "all", "none"]
ToolChoice: TypeAlias = str
"""Whether tools must be called: "auto", "any", "none", or the name of the tool to call."""

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
READ_MODES: tuple[ReadMode, ...] = ("selected", "all", "none")
MEMORY_MODES: tuple[MemoryMode, ...] = ("readwrite", "readonly", "off")


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the assistant made. `arguments`: the decoded JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool that the model may call. `parameters`: a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True)
class Message:
    """One message of a conversation, text only.

    `tool_calls`: for role assistant. `tool_call_id`, `name`: for role tool.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MessageError(f"message role {self.role!r} is unknown; use one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise MessageError(
                f"message content is {type(self.content).__name__}, expected text; "
                "images, audio and other media cannot be read by this model"
            )


MessageLike: TypeAlias = "Message | Mapping[str, Any]"


def as_messages(messages: Sequence[MessageLike]) -> tuple[Message, ...]:
    """Converts `Message` objects or `{"role", "content", …}` dicts to messages, in order.

    Raises MessageError with the position of the first invalid message.
    """
    if isinstance(messages, (str, bytes, Mapping)):
        raise MessageError(f"messages is a {type(messages).__name__}, expected a list of messages")
    return tuple(_as_message(position, message) for position, message in enumerate(messages))


def _as_message(position: int, message: MessageLike) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping) or "role" not in message:
        raise MessageError(f"message {position} is {message!r}, expected a Message or a dict with 'role' and 'content'")
    try:
        calls = tuple(as_tool_call(call) for call in message.get("tool_calls") or ())
        return Message(
            role=message["role"],
            content="" if message.get("content") is None else message["content"],
            tool_calls=calls,
            tool_call_id=message.get("tool_call_id"),
            name=message.get("name"),
        )
    except MessageError as error:
        raise MessageError(f"message {position}: {error}") from None


def as_tool_call(call: ToolCall | Mapping[str, Any]) -> ToolCall:
    """Converts a `{"name", "arguments"}` dict, possibly nested under "function". Raises MessageError."""
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise MessageError(f"tool call {call!r} has no name; expected {{'name', 'arguments'}}")
    return ToolCall(function["name"], _as_arguments(function), str(call.get("id") or ""))


def _as_arguments(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments as a mapping. Chat APIs send them as JSON text."""
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise MessageError(
            f"tool call {function['name']!r} has arguments {arguments!r}; expected an object, or JSON text of one"
        )
    return arguments


@dataclass(frozen=True)
class Sampling:
    """Sampling options of a reply. The default is greedy decoding of up to 256 tokens.

    `temperature`: 0 is greedy decoding. `top_p`, `top_k`, `min_p` and `repetition_penalty`: as in transformers; None
    does not use them. `seed`: makes a sampled reply repeatable. `stop`: texts that end the reply, not part of it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_stops(self.stop))
        for name, (whole, ok, expected) in _DRAWN.items():
            value = getattr(self, name)
            if value is None and name not in _ALWAYS_DRAWN:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"Sampling.{name} is {value!r}, expected {kind} {expected}".rstrip())
            if not ok(value):
                raise ConfigError(f"Sampling.{name} is {value!r}, expected {expected}")


_ALWAYS_DRAWN = ("max_tokens", "temperature")
_DRAWN: Mapping[str, tuple[bool, Callable[[Any], bool], str]] = {
    "max_tokens": (True, lambda value: value >= 1, "at least 1"),
    "temperature": (False, lambda value: 0 <= value < math.inf, "0 (greedy) or more"),
    "top_p": (False, lambda value: 0 < value <= 1, "in (0, 1]"),
    "top_k": (True, lambda value: value >= 1, "at least 1"),
    "min_p": (False, lambda value: 0 <= value <= 1, "in [0, 1]"),
    "repetition_penalty": (False, lambda value: 0 < value < math.inf, "above 0"),
    "seed": (True, lambda value: True, ""),
}
"""Valid values of `Sampling`: whether only whole numbers, a check of the value, and the text for the error message."""


def _as_stops(given: object) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given
    if not isinstance(stops, Iterable) or isinstance(stops, bytes | Mapping):
        raise ConfigError(f"Sampling.stop is {given!r}, expected a text or a list of texts")
    stops = tuple(stops)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise ConfigError(f"Sampling.stop holds {stop!r}, expected texts that are not empty; remove it")
    return stops


@dataclass(frozen=True)
class Recall:
    """How a reply reads the memory.

    `read`: "selected" reads the statements that match the question, "all" the state of all statements, "none" nothing.
    An adapter whose gates never close has only one state and no separate statements, so "selected" means "all" for it.
    `window_tokens`: tokens of the prompt for the text of the selected statements, shown as the messages they were
    with the messages around them; 0 shows none. None uses the value fitted to the adapter; a statement that was
    selected alone is then shown only if it says several things. `roles`: roles whose statements may be selected.
    `max_age`: older statements are not selected.
    """

    read: ReadMode = "selected"
    window_tokens: int | None = None
    roles: tuple[Role, ...] = ("user", "assistant", "tool")
    max_age: timedelta | None = None

    def __post_init__(self) -> None:
        if self.read not in READ_MODES:
            raise ConfigError(f"Recall.read is {self.read!r}, expected one of {', '.join(READ_MODES)}")
        tokens: object = self.window_tokens
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
            raise ConfigError(f"Recall.window_tokens is {tokens!r}, expected a whole number of at least 0, or None")
        if not isinstance(self.roles, tuple) or not all(role in ROLES for role in self.roles):
            raise ConfigError(f"Recall.roles is {self.roles!r}, expected a tuple of {', '.join(ROLES)}")
        if self.max_age is not None and not isinstance(self.max_age, timedelta):
            raise ConfigError(f"Recall.max_age is {self.max_age!r}, expected a datetime.timedelta or None")


@dataclass(frozen=True)
class Recalled:
    """A statement that was selected for a reply. `score`: how well it matches the question, higher is better.

    `created`: ISO 8601, UTC. `read_from`: how the reply read it: "state", "window" or both joined by "+".
    """

    id: str
    text: str
    role: Role
    thread: str
    created: str
    score: float
    read_from: str


class TurnOptions(TypedDict, total=False):
    """The options of a turn; `DeltaMemEngine.stream_turn` describes them."""

    thread: str | None
    tools: Sequence[Tool]
    sampling: Sampling
    memory: MemoryMode
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_schema: Mapping[str, Any] | None
    recall: Recall | None


@dataclass(frozen=True)
class Usage:
    """Token counts of one turn. `absorbed_tokens`: written to the memory without being in the prompt.

    `cached_tokens`: prompt tokens whose keys and values were kept from earlier turns.
    """

    prompt_tokens: int
    completion_tokens: int
    absorbed_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TurnFacts:
    """A turn's use of the memory. Times in seconds, sizes in bytes, Frobenius norms over all layers.

    `tokens_read`: tokens that read the memory, in the prompt, the reply and the absorbed messages. `messages_written`:
    number of messages with written tokens, including the reply. `tokens_unwritten`: tokens of these messages that were
    not written, because they are beyond `WritePolicy.message_tokens`. `tokens_unshown`: tokens of the newest messages
    that were left out of the prompt, which shows only their beginning and end. `undone_messages`: number of messages
    removed from the memory, because the client's history was edited or cut short. `recalled`: the statements used for
    the reply, best first. `state_bytes`, `state_norm`: of the state that the reply read. `prefilled_tokens`: prompt
    tokens that went through the model; the others are `Usage.cached_tokens`.
    """

    agent: str
    thread: str | None
    memory: MemoryMode
    alignment: str
    tokens_read: int
    tokens_written: int
    messages_written: int
    state_bytes: int
    state_norm: float
    mean_beta: float | None
    half_life_tokens: float | None
    correction_ratio: float | None
    prefill_seconds: float
    decode_seconds: float
    attempts: int = 1
    tokens_unshown: int = 0
    tokens_unwritten: int = 0
    undone_messages: int = 0
    prefilled_tokens: int = 0
    recalled: tuple[Recalled, ...] = ()


@dataclass(frozen=True)
class CallChunk:
    """A piece of a streamed tool call. `index`: number of the call in the turn, from 0.

    A call's first piece has its `name` and `id`, later ones only `arguments`. The `arguments` of all pieces, joined,
    are the JSON text of the arguments.
    """

    index: int
    name: str = ""
    id: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Turn:
    """The result of one model call: the reply, and the snapshot it committed.

    `snapshot`: id of the committed snapshot, None if nothing was written. `finish_reason`: "stop", "length" or
    "tool_calls". `cut_call`: a partial tool call truncated by `max_tokens`; it is neither in `text` nor in
    `tool_calls`.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    snapshot: str | None
    facts: TurnFacts
    finish_reason: str = "stop"
    cut_call: CallChunk | None = None

    @property
    def message(self) -> Message:
        """The reply as the assistant message to append to a history."""
        return Message("assistant", self.text, self.tool_calls)

    @property
    def report(self) -> dict[str, object]:
        """The use of the memory as JSON: the fields of `facts`, and `snapshot`. A temporary memory has agent None."""
        facts = asdict(self.facts)
        return {
            **facts,
            "recalled": list(facts["recalled"]),
            "agent": self.facts.agent or None,
            "snapshot": self.snapshot,
        }


@dataclass(frozen=True)
class TurnChunk:
    """A piece of a streamed turn: of its text, or of one of its tool calls. The last piece has only `turn`.

    All pieces together give the turn's `text`, `tool_calls` and `cut_call`.
    """

    text: str = ""
    turn: Turn | None = None
    call: CallChunk | None = None


@dataclass(frozen=True)
class ExplainedToken:
    """How the memory changed one token of a reply.

    `text`: the token's text. `kl`: Kullback–Leibler divergence in nats of the next-token distribution with the memory
    from the one without it, before sampling and grammars. `frozen`: the frozen model's most likely token here, after
    the same words. `changed`: whether the most likely token with the memory is another one.
    """

    text: str
    kl: float
    frozen: str
    changed: bool


@dataclass(frozen=True)
class Explanation:
    """A turn, and how the memory changed each token of its reply."""

    turn: Turn
    tokens: tuple[ExplainedToken, ...]

    @property
    def recalled(self) -> tuple[Recalled, ...]:
        """The statements used for the reply, best first."""
        return self.turn.facts.recalled


class Score(NamedTuple):
    """The model's score of a given answer.

    `logprob`: natural log, summed over the answer's tokens. `tokens`: their number. `greedy`: whether each of them is
    the most likely token.
    """

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class ThreadLog:
    """A record of the messages of one thread that an agent has absorbed. Its size is bounded.

    `count`: number of messages absorbed. `tail`: digests of the newest ones, oldest first, at most TAIL_MESSAGES.
    `opening`: digests of messages that clients send first, such as a fixed prefix, although they are older than the
    tail; at most OPENING_MESSAGES.
    """

    count: int = 0
    tail: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()

    TAIL_MESSAGES: ClassVar[int] = 256
    OPENING_MESSAGES: ClassVar[int] = 128
