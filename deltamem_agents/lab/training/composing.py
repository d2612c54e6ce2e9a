"""Conversations concatenated from single exchanges, and written from cached activations.

The frozen model runs once over each exchange. Any number of conversations can then be composed of these exchanges; each
costs only the memory's own projections and the update rule.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.lab.training.activations import Activations, Exchanges
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.attention import Projections, scan_tokens, unit

KEEP_LOGIT = 6.0
"""Initial logit of learned keep gates: almost nothing fades."""

ERASED = 0.7
"""Initial value of erase gates: the share that is removed of what a key finds in the state."""

Kind: TypeAlias = Literal["tellings", "statements", "earlier", "asides", "questions"]
"""Kinds of pieces. "tellings": a whole exchange that states a fact. "statements": the same exchange up to the message
with the told value. "earlier": an earlier message that stated the same fact with another value. "asides": filler.
"questions": a question's own tokens."""

ALIKE_SHARE = 0.25
"""Probability that up to half of a conversation's facts have one attribute, for different people."""

STATEMENT_SHARE = 0.7
"""Probability that a telling is written without the assistant's reply. If it were always written, the memory could
learn to rely on it, although replies in use differ from those in training."""


_TELLS: tuple[Kind, Kind] = ("tellings", "statements")


@dataclass(frozen=True)
class Conversation:
    """A composed conversation: `order`, its pieces; `tellings`, the indices of the facts that it states."""

    tellings: tuple[int, ...]
    order: tuple[tuple[Kind, int], ...]


@dataclass(frozen=True)
class WriteWeights:
    """The adapter's projections for writing, stacked over layers (layers, …).

    Where the adapter learns keep or erase gates but `keep` or `erase` is None, these gates are constant: at KEEP_LOGIT,
    or at `erased`. `votes`: AdapterConfig's `gate_votes`.
    """

    key: Tensor
    before: Tensor | None
    value: Tensor
    gate: Tensor
    gate_bias: Tensor
    keep: Tensor | None = None
    keep_bias: Tensor | None = None
    erase: Tensor | None = None
    erase_bias: Tensor | None = None
    hidden: Tensor | None = None
    hidden_bias: Tensor | None = None
    gate_hidden: Tensor | None = None
    votes: bool = False
    erased: float = ERASED

    @classmethod
    def of(cls, adapter: Adapter) -> WriteWeights:
        """The adapter's own projections, with gradient."""
        config, stacked = adapter.config, partial(stacked_over_layers, adapter)
        return cls(
            key=stacked("memory_k_proj"),
            before=stacked("memory_k_shift_proj") if config.key_shift else None,
            value=stacked("memory_v_proj"),
            gate=stacked("beta_proj"),
            gate_bias=stacked("beta_bias"),
            keep=stacked("lambda_proj") if config.learns_lambda else None,
            keep_bias=stacked("lambda_bias") if config.learns_lambda else None,
            erase=stacked("erase_proj") if config.erase_gate else None,
            erase_bias=stacked("erase_bias") if config.erase_gate else None,
            hidden=stacked("gate_hidden_proj") if config.gate_hidden else None,
            hidden_bias=stacked("gate_hidden_bias") if config.gate_hidden else None,
            gate_hidden=stacked("beta_hidden_proj") if config.gate_hidden else None,
            votes=config.gate_votes,
        )

    def keys(self, x: Tensor, shifted: Tensor) -> Tensor:
        """Key pre-activations (layers, n, width) at inputs `x` (layers, n, hidden); `shifted`: of the tokens before."""
        keys = product(x, self.key)
        return keys if self.before is None else keys + product(shifted, self.before)

    def gates(self, x: Tensor) -> Tensor:
        """Write gate logits (layers, n, gates) at attention inputs x (layers, n, hidden)."""
        logits = product(x, self.gate) + self.gate_bias[:, None]
        if self.hidden is not None and self.hidden_bias is not None and self.gate_hidden is not None:
            logits = logits + F.silu(product(x, self.hidden) + self.hidden_bias[:, None]) @ self.gate_hidden.mT
        if not self.votes:
            return logits
        layers = torch.arange(1, len(logits) + 1, device=logits.device)
        return logits.cumsum(0) / layers[:, None, None]


@dataclass(frozen=True)
class Written:
    """The result of writing conversations.

    `state` (layers, conversations, heads, r, r). For every written token, in arbitrary order: `gates` (layers, tokens,
    gates), its write gate logits; `aside` (tokens,), True for filler and for replies to told facts.
    """

    state: Tensor
    gates: Tensor
    aside: Tensor


def compose_conversation(
    found: Activations, facts: int, asides: int, questions: int, rng: random.Random
) -> Conversation:
    """A conversation of `facts` facts about different subjects (fewer if there are not enough), in random order.

    Filler and questions are mixed in. STATEMENT_SHARE of the facts come without the reply. An earlier value of a fact
    is inserted anywhere before the fact.
    """
    alike = alike_tellings(found.attributes, facts // 2, rng) if facts > 1 and rng.random() < ALIKE_SHARE else []
    chosen = about_different(found.subjects, facts, rng, alike)
    order: list[tuple[Kind, int]] = [
        ("statements" if rng.random() < STATEMENT_SHARE else "tellings", telling) for telling in chosen
    ]
    order += [("asides", rng.randrange(len(found.asides.contents))) for _ in range(asides)]
    order += [("questions", rng.randrange(len(found.questions.contents))) for _ in range(questions)]
    rng.shuffle(order)
    for telling in chosen:
        if len(found.earlier[telling]):
            place = next(at for at, (kind, one) in enumerate(order) if one == telling and kind in _TELLS)
            order.insert(rng.randint(0, place), ("earlier", telling))
    return Conversation(tuple(chosen), tuple(order))


def alike_tellings(attributes: Sequence[str], count: int, rng: random.Random) -> list[int]:
    """Indices of at most `count` + 1 tellings of one random attribute, of any person."""
    attribute = rng.choice(attributes)
    alike = [number for number, other in enumerate(attributes) if other == attribute]
    return rng.sample(alike, min(len(alike), count + 1))


def never_told(
    found: Activations, conversations: Sequence[Conversation], count: int, rng: random.Random
) -> list[tuple[int, int]]:
    """At most `count` pairs of a conversation and a telling whose subject the conversation does not mention.

    Half of them, where possible, have an attribute that the conversation tells of another person.
    """
    pairs = []
    for number in range(count):
        row = rng.randrange(len(conversations))
        told = conversations[row].tellings
        about = frozenset().union(*(found.subjects[telling] for telling in told))
        others = [one for one in range(len(found.subjects)) if not about & found.subjects[one]]
        attributes = {found.attributes[telling] for telling in told}
        near = [one for one in others if found.attributes[one] in attributes] if number % 2 else []
        if others:
            pairs.append((row, rng.choice(near or others)))
    return pairs


def about_different(
    subjects: Sequence[frozenset[str]], count: int, rng: random.Random, first: Sequence[int] = ()
) -> list[int]:
    """Indices of up to `count` tellings with disjoint subjects. Those in `first` are preferred."""
    chosen: list[int] = []
    about: set[str] = set()
    for number in (*first, *rng.sample(range(len(subjects)), min(len(subjects), 8 * count))):
        if len(chosen) < count and not about & subjects[number]:
            chosen.append(number)
            about |= subjects[number]
    return chosen


def write_composed(
    config: AdapterConfig,
    weights: WriteWeights,
    found: Activations,
    conversations: Sequence[Conversation],
    before: Tensor | None = None,
) -> Written:
    """The states after the conversations, with gradient to the weights.

    `before` (layers, conversations, heads, r, r): initial states, default zero.
    """
    rows, laid = len(conversations), _lay_out(found, conversations)
    longest = laid.longest
    device = weights.key.device
    x, spot = laid.here.to(device), laid.spots.to(device)
    gates = weights.gates(x)

    def laid_out(values: Tensor) -> Tensor:
        """(layers, tokens, heads, n) → (layers·rows, heads, longest, n)."""
        spread = values.new_zeros(len(values), rows * longest, *values.shape[2:]).index_copy(1, spot, values)
        by_row: Tensor = spread.unflatten(1, (rows, longest))
        return by_row.flatten(0, 1).transpose(1, 2)

    k = laid_out(unit(by_head(weights.keys(x, laid.shifted.to(device)), config)))

    def gate(weight: Tensor | None, bias: Tensor | None, start: float) -> Tensor:
        if weight is None or bias is None:
            return torch.full_like(k, start)
        return laid_out(by_head(product(x, weight) + bias[:, None], config)).expand_as(k)

    writable = spot.new_zeros(rows * longest, dtype=torch.bool).index_fill(0, spot, True).view(rows, longest)
    projections = Projections(
        q=torch.zeros_like(k),
        k=k,
        v=laid_out(by_head(product(x, weights.value), config)),
        beta=laid_out(by_head(gates, config)).expand_as(k),
        lam=gate(weights.keep, weights.keep_bias, KEEP_LOGIT) if config.learns_lambda else None,
        erase=gate(weights.erase, weights.erase_bias, logit(weights.erased)) if config.erase_gate else None,
    )
    if before is None:
        before = k.new_zeros(len(x), rows, config.num_state_heads, config.rank, config.rank)
    _, state = scan_tokens(config, before.flatten(0, 1), projections, writable.repeat(len(x), 1))
    return Written(state.unflatten(0, (len(x), rows)), gates, laid.aside.to(device))


@dataclass(frozen=True)
class _Laid:
    """The tokens of all pieces, in arbitrary order.

    `here`, `shifted` (layers, tokens, hidden): attention inputs of each token and of the token before it. `aside`
    (tokens,): as in Written. `spots` (tokens,): each token's index when all conversations are padded to `longest` and
    concatenated.
    """

    here: Tensor
    shifted: Tensor
    aside: Tensor
    spots: Tensor
    longest: int


def _lay_out(found: Activations, conversations: Sequence[Conversation]) -> _Laid:
    pieces = {one: _piece(found, *one) for conversation in conversations for one in conversation.order}
    longest = max(sum(len(pieces[one].places) for one in conversation.order) for conversation in conversations)
    parts: dict[Kind, list[tuple[_Piece, Tensor]]] = {kind: [] for kind in get_args(Kind)}
    for row, conversation in enumerate(conversations):
        start = row * longest
        for one in conversation.order:
            piece = pieces[one]
            parts[one[0]].append((piece, torch.arange(start, start + len(piece.places))))
            start += len(piece.places)
    here, shifted, aside, spots = [], [], [], []
    for kind, laid in parts.items():
        if laid:
            places = torch.cat([piece.places for piece, _ in laid])
            source = _source(found, kind)
            here.append(source.at(places))
            shifted.append(source.at((places - 1).clamp_min(0)))
            aside += [piece.aside for piece, _ in laid]
            spots += [spot for _, spot in laid]
    cut = (torch.cat(here, 1), torch.cat(shifted, 1), torch.cat(aside), torch.cat(spots))
    return _Laid(*cut, longest)


def stacked_over_layers(adapter: Adapter, name: str) -> Tensor:
    """One of the adapter's projections, stacked over its layers (layers, …), with gradient."""
    return torch.stack([adapter.layer(slot).get_parameter(name) for slot in range(len(adapter.indices))])


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(layers, n, hidden) × (layers, rows, hidden) in the activations' dtype → (layers, n, rows) float32."""
    return torch.bmm(x, weight.to(x.dtype).transpose(1, 2)).float()


def logit(share: float) -> float:
    """The inverse of the sigmoid."""
    return math.log(share / (1 - share))


def by_head(values: Tensor, config: AdapterConfig) -> Tensor:
    split: Tensor = values.unflatten(-1, (config.num_state_heads, -1))
    return split


def _source(found: Activations, kind: Kind) -> Exchanges:
    source: Exchanges = getattr(found, "tellings" if kind in ("statements", "earlier") else kind)
    return source


@dataclass(frozen=True)
class _Piece:
    """The written tokens of an exchange: `places` (n,) in order; `aside` (n,), those that state no fact."""

    places: Tensor
    aside: Tensor


def _piece(found: Activations, kind: Kind, index: int) -> _Piece:
    source = _source(found, kind)
    if kind == "earlier":
        return _Piece(found.earlier[index], torch.zeros(len(found.earlier[index]), dtype=torch.bool))
    places = source.contents[index]
    if kind not in _TELLS:
        return _Piece(places, torch.ones(len(places), dtype=torch.bool))
    # A gap in the positions separates two messages: template tokens are not content.
    message = F.pad(places.diff() > 1, (1, 0)).cumsum(0)
    aside = message > message[source.told[places]].max()
    return _Piece(places, aside) if kind == "tellings" else _Piece(places[~aside], aside[~aside])
