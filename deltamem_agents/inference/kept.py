"""Prefix caching: key–value caches of conversations, kept between turns, so that a turn prefills only new tokens.

A token's keys and values depend on the tokens up to it and on the state that each of these read. This record of tokens
and reads is called a course. On the common prefix of two courses, the keys and values are the same. So a cache need not
be told that a history was edited or that another statement was recalled: tokens after the common prefix are recomputed.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deltamem_agents.inference.collecting import Hearing
from deltamem_agents.inference.passes import Heard, Pass, Prompt
from deltamem_agents.memory.backbones import KeysAndValues, KeyValueCache, cache_of, cuts_anywhere, layers_of
from deltamem_agents.processes import Mutex

KEPT_BYTES = 256 * 2**20
"""An engine's default limit of kept bytes."""

_NOTHING, _STATE, _UNIQUE = 0, 1, 2
"""The state that a token reads: none, so that its keys and values are the frozen model's; the state at the start of the
course; or a state that no other course has (after a write)."""


@dataclass(frozen=True)
class CacheKey:
    """The key of a kept cache: a thread of an agent. `place`: the object that holds the agent, such as its store."""

    place: weakref.ref[object]
    agent: str
    thread: str

    @classmethod
    def of(cls, place: object, agent: str | None, thread: str) -> CacheKey | None:
        """None if there is no agent."""
        return None if agent is None else cls(weakref.ref(place), agent, thread)


@dataclass(frozen=True, eq=False)
class Course:
    """Everything that a sequence's keys and values depend on.

    `ids`, `read` (tokens,): each token's id, and which state it reads. `state`: a digest of the state that is read.
    `lead`: number of first tokens that neither read nor write a memory. `behind`: which state the reply's tokens read.
    """

    ids: NDArray[np.int32]
    read: NDArray[np.int8]
    state: bytes
    lead: int
    behind: int

    @classmethod
    def unread(cls, prompt: Prompt) -> Course:
        """The course of a prompt that goes through the frozen model without a memory."""
        ids, reads = np.asarray(prompt.ids, np.int32), np.asarray(prompt.reads, bool)
        return cls(ids, np.zeros(len(ids), np.int8), b"", _first(reads), _NOTHING)

    @classmethod
    def of(cls, run: Pass, prompt: Prompt, *, writes_reply: bool) -> Course:
        """The course of a prompt that is about to be fed to `run`."""
        ids, reads = np.asarray(prompt.ids, np.int32), np.asarray(prompt.reads, bool)
        read, lead = np.zeros(len(ids), np.int8), _first(reads)
        if run.state is None or not (run.applies or bool(run.state.matrices.any())):
            return cls(ids, read, b"", lead, _NOTHING)
        read[reads & np.asarray(prompt.replies, bool) if run.replies_read else reads] = _STATE
        behind = _STATE
        if run.applies:
            written = _first(np.asarray(prompt.writes, bool))
            read[written:][read[written:] == _STATE] = _UNIQUE
            behind = _UNIQUE if writes_reply or written < len(ids) else _STATE
        return cls(ids, read, _digest(run.state.matrices), lead, behind)

    def __len__(self) -> int:
        return len(self.ids)

    def with_reply(self, ids: Sequence[int]) -> Course:
        read = np.full(len(ids), self.behind, np.int8)
        both = np.concatenate([self.ids, np.asarray(ids, np.int32)]), np.concatenate([self.read, read])
        return Course(*both, self.state, self.lead, self.behind)

    def cut(self, tokens: int) -> Course:
        return Course(self.ids[:tokens], self.read[:tokens], self.state, min(self.lead, tokens), self.behind)

    def shared_with(self, other: Course) -> int:
        """Length of the common prefix on which both compute the same keys and values."""
        length = min(len(self), len(other))
        read = self.read[:length]
        differs = (self.ids[:length] != other.ids[:length]) | (read != other.read[:length]) | (read == _UNIQUE)
        return _first(differs if self.state == other.state else differs | (read == _STATE))

    @property
    def repeatable(self) -> int:
        """Length of the longest prefix that another course can share."""
        return _first(self.read == _UNIQUE)


@dataclass(frozen=True, eq=False)
class _Entry:
    """Keys and values of a course, layer by layer, each (1, heads, tokens, size). They are never changed."""

    course: Course
    layers: Sequence[tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        held = sum(part.untyped_storage().nbytes() for layer in self.layers for part in layer)
        return held + self.course.ids.nbytes + self.course.read.nbytes


@dataclass(frozen=True, eq=False)
class CacheUse:
    """One turn's use of the kept caches. `drops`: number of drops before the turn began."""

    key: CacheKey
    course: Course
    drops: int


class KeptCaches:
    """The caches of one model's conversations, at most `limit` bytes; 0 keeps none. Thread-safe.

    The least recently used cache is dropped first. A conversation continues from its own cache only. The exception is
    the lead (system prompt and tools): it contains nothing of an agent, so any conversation with the same lead
    provides it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._drops = 0
        self._lock = Mutex()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes

    def lead_of(self, prompt: Prompt) -> KeysAndValues:
        """Kept keys and values of a prompt's lead, leaving at least one token to be fed; () if none are kept."""
        course = Course.unread(prompt)
        with self._lock:
            entry, tokens = self._longest(course, None)
        tokens = min(tokens, len(prompt) - 1)
        return () if entry is None or tokens <= 0 else _cut(entry.layers, tokens)

    def begin(
        self, run: Pass, prompt: Prompt, key: CacheKey | None, *, writes_reply: bool, heard: Hearing | None = None
    ) -> CacheUse | None:
        """Give `run` the longest usable prefix of this prompt, kept or just `heard`, before the prompt is fed.

        `key`: None without an agent; nothing is kept then. Tokens that are to be written are fed again, and so is
        the token before them, which the first key depends on (key shift). But the writes of heard tokens are computed
        from their attention inputs, without feeding them again.
        """
        if not cuts_anywhere(run.model.config) or type(run.cache) is not KeyValueCache:
            return None
        course = Course.of(run, prompt, writes_reply=writes_reply)
        written = _first(np.asarray(prompt.writes, bool))
        most = min(len(prompt), written) - 1
        with self._lock:
            entry, tokens = self._longest(course, key)
            drops = self._drops
        tokens = min(tokens, most)
        if entry is not None and tokens > 0:
            run.cached, run.cache = tokens, cache_of(_cut(entry.layers, tokens))
        if heard is not None and heard.layers is not None:
            tokens = min(course.shared_with(Course.unread(heard.prompt)), len(prompt) - 1)
            if tokens > most and not (run.defers and heard.start <= most):
                tokens = most
            if tokens > run.cached:
                run.cached, run.cache = tokens, cache_of(_cut(heard.layers, tokens))
                run.heard = Heard(heard.start, {slot: x[:, : tokens - heard.start] for slot, x in heard.inputs.items()})
                run.measures.prefill_seconds += heard.seconds
        return None if key is None or not self.limit else CacheUse(key, course, drops)

    def keep(self, use: CacheUse | None, run: Pass, reply: Sequence[int]) -> None:
        """Keep the cache of a finished turn. `reply`: the ids of its tokens; the last ones may not have been fed.

        Nothing is kept if any cache was dropped during the turn, since that may have been this agent's.
        """
        layers = None if use is None else layers_of(run.cache)
        if use is None or not layers:
            return
        fed = layers[0][0].shape[-2]
        course = use.course.with_reply(reply).cut(fed)
        each = sum(part.untyped_storage().nbytes() for layer in layers for part in layer) // fed
        tokens = min(len(course), course.repeatable, self.limit // (each + 8))
        if tokens < fed:
            # Clone, because a view would keep the whole tensor alive.
            layers = [(k[..., :tokens, :].clone(), v[..., :tokens, :].clone()) for k, v in layers]
        with self._lock:
            if tokens <= 0 or use.drops != self._drops:
                return
            self._entries[use.key] = _Entry(course.cut(tokens), layers)
            self._entries.move_to_end(use.key)
            for gone in [key for key in self._entries if key.place() is None]:
                del self._entries[gone]
            while self._nbytes > self.limit:
                self._entries.popitem(last=False)

    def forgotten(self, agent: str) -> None:
        """Drop the caches of every agent with this name, in any store. Dropping too much only costs a recomputation."""
        self._drop(lambda key: key.agent == agent)

    def clear(self) -> None:
        self._drop(lambda key: True)

    def _drop(self, chosen: Callable[[CacheKey], bool]) -> None:
        with self._lock:
            self._drops += 1
            for key in [each for each in self._entries if chosen(each)]:
                del self._entries[key]

    def _longest(self, course: Course, key: CacheKey | None) -> tuple[_Entry | None, int]:
        """The entry with the longest usable prefix of this course, and the length of that prefix."""
        best: tuple[_Entry | None, int] = (None, 0)
        if key is not None and key in self._entries:
            self._entries.move_to_end(key)
            best = (self._entries[key], course.shared_with(self._entries[key].course))
        if best[1] < course.lead:
            lead = course.cut(course.lead)
            for entry in self._entries.values():
                shared = lead.shared_with(entry.course.cut(entry.course.lead))
                best = (entry, shared) if shared > best[1] else best
        return best

    @property
    def _nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())


def _cut(layers: KeysAndValues, tokens: int) -> KeysAndValues:
    return [(keys[..., :tokens, :], values[..., :tokens, :]) for keys, values in layers]


def _digest(matrices: Tensor) -> bytes:
    return blake2b(matrices.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _first(flags: NDArray[np.bool_]) -> int:
    """Index of the first True; the length if there is none."""
    return int(flags.argmax()) if flags.any() else len(flags)
