"""Key–value caches of conversations, kept between turns, so that a turn prefills what is new in it alone.

A token's keys and values are computed from the tokens up to it, and from what each of these read. Where two courses
agree in both, from their first token on, the keys and values of one are those of the other. So nobody has to tell a
cache that a history was edited or that another statement was recalled: what does not agree is computed again.
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

from deltamem_agents.inference.collecting import Hearing, KeysAndValues
from deltamem_agents.inference.decode import Heard, Pass, Prompt
from deltamem_agents.memory.backbones import KeyValueCache, cache_of, cuts_anywhere, layers_of
from deltamem_agents.processes import Mutex

KEPT_BYTES = 256 * 2**20
"""Bytes that an engine keeps where nothing is said."""

_NOTHING, _STATE, _ITS_OWN = 0, 1, 2
"""What a token reads: nothing, so that its keys and values are the frozen model's; the state that the course begins
with; or one that no other course has."""


@dataclass(frozen=True)
class Whose:
    """Whose conversation. `place`: where the agent lives, such as its store."""

    place: weakref.ref[object]
    agent: str
    thread: str

    @classmethod
    def of(cls, place: object, agent: str | None, thread: str) -> Whose | None:
        """None for nobody."""
        return None if agent is None else cls(weakref.ref(place), agent, thread)


@dataclass(frozen=True, eq=False)
class Course:
    """What keys and values are computed from: `ids` and `read` of each token, both (tokens,).

    `state`: a digest of the state that is read. `lead`: how many tokens have no part in any memory. `behind`: what the
    tokens of the reply read.
    """

    ids: NDArray[np.int32]
    read: NDArray[np.int8]
    state: bytes
    lead: int
    behind: int

    @classmethod
    def unread(cls, prompt: Prompt) -> Course:
        """Of a prompt that goes through the frozen model."""
        ids, reads = np.asarray(prompt.ids, np.int32), np.asarray(prompt.reads, bool)
        return cls(ids, np.zeros(len(ids), np.int8), b"", _first(reads), _NOTHING)

    @classmethod
    def of(cls, run: Pass, prompt: Prompt, *, writes_reply: bool) -> Course:
        """Of a prompt that is about to be fed to `run`."""
        ids, reads = np.asarray(prompt.ids, np.int32), np.asarray(prompt.reads, bool)
        read, lead = np.zeros(len(ids), np.int8), _first(reads)
        if run.state is None or not (run.applies or bool(run.state.matrices.any())):
            return cls(ids, read, b"", lead, _NOTHING)
        read[reads & np.asarray(prompt.replies, bool) if run.replies_read else reads] = _STATE
        behind = _STATE
        if run.applies:
            written = _first(np.asarray(prompt.writes, bool))
            read[written:][read[written:] == _STATE] = _ITS_OWN
            behind = _ITS_OWN if writes_reply or written < len(ids) else _STATE
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
        """How many tokens, from the first on, compute the same in both."""
        length = min(len(self), len(other))
        read = self.read[:length]
        differs = (self.ids[:length] != other.ids[:length]) | (read != other.read[:length]) | (read == _ITS_OWN)
        return _first(differs if self.state == other.state else differs | (read == _STATE))

    @property
    def repeatable(self) -> int:
        """How many tokens, from the first on, another course can share."""
        return _first(self.read == _ITS_OWN)


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
class Sitting:
    """One turn with what is kept. `drops`: how often something had been dropped when it began."""

    whose: Whose
    course: Course
    drops: int


class KeptCaches:
    """The caches of one model's conversations, in at most `limit` bytes; 0 keeps none. Safe to use from many threads.

    What was used longest ago goes first. A conversation goes on from its own cache; but the lead, which is what the
    system prompt and tools need, has nothing of an agent in it, and is taken from any conversation that has it too.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[Whose, _Entry] = OrderedDict()
        self._drops = 0
        self._lock = Mutex()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes

    def lead_of(self, prompt: Prompt) -> KeysAndValues:
        """What is kept of the lead of a prompt, as far as it leaves a token to be fed; () for nothing."""
        course = Course.unread(prompt)
        with self._lock:
            entry, tokens = self._longest(course, None)
        tokens = min(tokens, len(prompt) - 1)
        return () if entry is None or tokens <= 0 else _cut(entry.layers, tokens)

    def begin(
        self, run: Pass, prompt: Prompt, whose: Whose | None, *, writes_reply: bool, heard: Hearing | None = None
    ) -> Sitting | None:
        """Have `run` go on from what is kept of this prompt, once it is about to be fed, or from what was just heard.

        `whose`: None for nobody, of whom nothing is kept. What is to be written is fed again, and the token before it,
        which shifts the first key; but what was heard is written from its inputs.
        """
        if not cuts_anywhere(run.model.config) or type(run.cache) is not KeyValueCache:
            return None
        course = Course.of(run, prompt, writes_reply=writes_reply)
        written = _first(np.asarray(prompt.writes, bool))
        most = min(len(prompt), written) - 1
        with self._lock:
            entry, tokens = self._longest(course, whose)
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
        return None if whose is None or not self.limit else Sitting(whose, course, drops)

    def keep(self, sitting: Sitting | None, run: Pass, reply: Sequence[int]) -> None:
        """Keep what a turn computed that is over. `reply`: the ids of its tokens, of which `run` was fed the first.

        Nothing is kept where something was dropped meanwhile, which may have been of this agent.
        """
        layers = None if sitting is None else layers_of(run.cache)
        if sitting is None or not layers:
            return
        fed = layers[0][0].shape[-2]
        course = sitting.course.with_reply(reply).cut(fed)
        each = sum(part.untyped_storage().nbytes() for layer in layers for part in layer) // fed
        tokens = min(len(course), course.repeatable, self.limit // (each + 8))
        if tokens < fed:
            # A part of a tensor holds all of it.
            layers = [(k[..., :tokens, :].clone(), v[..., :tokens, :].clone()) for k, v in layers]
        with self._lock:
            if tokens <= 0 or sitting.drops != self._drops:
                return
            self._entries[sitting.whose] = _Entry(course.cut(tokens), layers)
            self._entries.move_to_end(sitting.whose)
            for gone in [whose for whose in self._entries if whose.place() is None]:
                del self._entries[gone]
            while self._nbytes > self.limit:
                self._entries.popitem(last=False)

    def forgotten(self, agent: str) -> None:
        """Drop what is kept of every agent of this name, wherever it lives: what is dropped is computed again."""
        self._drop(lambda whose: whose.agent == agent)

    def clear(self) -> None:
        self._drop(lambda whose: True)

    def _drop(self, chosen: Callable[[Whose], bool]) -> None:
        with self._lock:
            self._drops += 1
            for whose in [each for each in self._entries if chosen(each)]:
                del self._entries[whose]

    def _longest(self, course: Course, whose: Whose | None) -> tuple[_Entry | None, int]:
        """What this course goes on from, and how many of its tokens that has."""
        best: tuple[_Entry | None, int] = (None, 0)
        if whose is not None and whose in self._entries:
            self._entries.move_to_end(whose)
            best = (self._entries[whose], course.shared_with(self._entries[whose].course))
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
    """The place of the first True, the length where there is none."""
    return int(flags.argmax()) if flags.any() else len(flags)
