"""The values that cross the package's rooms. Frozen, plain, free of torch."""

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
"""Whether tools have to be called: "auto", "any", "none", or the name of the one to call."""

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
READ_MODES: tuple[ReadMode, ...] = ("selected", "all", "none")
MEMORY_MODES: tuple[MemoryMode, ...] = ("readwrite", "readonly", "off")


@dataclass(frozen=True)
class ToolCall:
    """One call the assistant asked for. `arguments` is the decoded JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """One tool on offer. `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True)
class Message:
    """One message of a conversation, text only.

    `tool_calls` belongs to role assistant, `tool_call_id` and `name` to role tool.
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
    """Messages from `Message` objects or `{"role", "content", …}` dicts, in order.

    Raises MessageError naming the position of the first one that does not fit.
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
    """The call of a `{"name", "arguments"}` dict, which may stand under "function". Raises MessageError."""
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise MessageError(f"tool call {call!r} has no name; expected {{'name', 'arguments'}}")
    return ToolCall(function["name"], _as_arguments(function), str(call.get("id") or ""))


def _as_arguments(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments as an object; chat APIs send them as JSON text."""
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
    """How the reply is drawn. The defaults are greedy decoding of up to 256 tokens."""

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
"""What `Sampling` takes: whether only whole numbers, which of them, and how to say so."""


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

    `read`: "selected" reads the statements that the question is about, "all" the state of everything, "none" nothing.
    An adapter whose gates never shut has one state and no writes of single statements: it reads "all" for "selected".
    `window_tokens`: tokens of the prompt in which the chosen statements are shown, with what was said around them, as
    the messages they were; 0 shows none. None is what was fitted to the adapter: of statements that say several things.
    `roles`: whose statements may be chosen. `max_age`: older ones are not.
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
    """A statement that a reply rests on. `score`: how well it matches what was asked, higher is better.

    `created`: ISO 8601, UTC. `read_from`: "state", "window" or both joined by "+".
    """

    id: str
    text: str
    role: Role
    thread: str
    created: str
    score: float
    read_from: str


class TurnOptions(TypedDict, total=False):
    """The options of a turn, as `DeltaMemEngine.stream_turn` describes them."""

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
    """Token counts of one turn. `absorbed_tokens` were written without staying in the prompt.

    `cached_tokens`: of the prompt, those whose keys and values were kept from earlier turns.
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
    """What the memory did in one turn. Times in seconds, sizes in bytes, norms Frobenius over all layers.

    `tokens_read`: tokens of the prompt, the reply and what was absorbed that read the memory. `messages_written`: those
    of which tokens were written, the reply included. `tokens_unwritten`: of these messages, beyond
    `WritePolicy.message_tokens`. `tokens_unshown`: of the newest messages, left out of the prompt, which shows their
    head and tail. `undone_messages`: how many messages the memory no longer holds, because the client showed that its
    history was edited or cut short. `recalled`: the statements that the reply rests on, best first. `state_bytes` and
    `state_norm` are of the state that the reply read. `prefilled_tokens`: of the prompt, those that went through the
    model; the others are `Usage.cached_tokens`.
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
    """A piece of a tool call that is being said. `index`: which of the turn's calls.

    A call's first piece carries its `name` and `id`, later ones only `arguments`. The `arguments` of all
    its pieces, joined, are JSON text of the arguments.
    """

    index: int
    name: str = ""
    id: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Turn:
    """The outcome of one model call: what was said, and which memory it left behind.

    `snapshot` is the id of the committed snapshot, None when the memory was not written.
    `finish_reason` is "stop", "length" or "tool_calls". `cut_call`: a tool call which `max_tokens` was too
    few for, as far as it got; it is neither in `text` nor in `tool_calls`.
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
        """What the memory did, as JSON: the fields of `facts`, and `snapshot`. An ephemeral agent is None."""
        facts = asdict(self.facts)
        return {
            **facts,
            "recalled": list(facts["recalled"]),
            "agent": self.facts.agent or None,
            "snapshot": self.snapshot,
        }


@dataclass(frozen=True)
class TurnChunk:
    """A piece of a streamed turn: of its text, or of one of its calls. The last one carries only `turn`.

    The pieces add up to the turn's `text`, and to its `tool_calls` and `cut_call`.
    """

    text: str = ""
    turn: Turn | None = None
    call: CallChunk | None = None


@dataclass(frozen=True)
class ExplainedToken:
    """What the memory did to one token of a reply.

    `text`: what the token adds to the reply. `kl`: how far the memory moved the model's odds for this place, the
    Kullback–Leibler divergence in nats of those with the memory from those without it, before sampling and grammars.
    `frozen`: what the frozen model finds likeliest here, after the same words. `changed`: whether that is another token
    than with the memory.
    """

    text: str
    kl: float
    frozen: str
    changed: bool


@dataclass(frozen=True)
class Explanation:
    """A turn, and what the memory did to each token of its reply."""

    turn: Turn
    tokens: tuple[ExplainedToken, ...]

    @property
    def recalled(self) -> tuple[Recalled, ...]:
        """The statements that the reply rests on, best first."""
        return self.turn.facts.recalled


class Score(NamedTuple):
    """How the model rates a given answer. `logprob` is the sum over `tokens`, natural log."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class ThreadLog:
    """Which messages of one thread an agent has absorbed, in constant space.

    `count`: messages absorbed in all. `tail`: digests of the newest of them, oldest first, at most
    TAIL_MESSAGES. `opening`: digests that clients showed first although the tail no longer reaches them, such as
    a fixed prefix; at most OPENING_MESSAGES.
    """

    count: int = 0
    tail: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()

    TAIL_MESSAGES: ClassVar[int] = 256
    OPENING_MESSAGES: ClassVar[int] = 128
