"""Told exchanges strung together as if they were conversations, and written from activations that are cached.

The frozen model runs once over each exchange. Whatever is strung together from them afterwards, into as many
conversations as wanted, costs the memory's own projections and the update rule, and no more.
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
"""Where a keep gate that is learned starts from: next to nothing fades."""

ERASED = 0.7
"""What an erase gate takes of what a key finds, to start from."""

Kind: TypeAlias = Literal["tellings", "statements", "earlier", "asides", "questions"]
"""A telling is a whole exchange; a statement of the same number ends with the message that has the told value, and what
was said earlier told the same fact with another value."""

ALIKE_SHARE = 0.25
"""Chance that up to half of what a conversation tells is the same of several people."""

STATEMENT_SHARE = 0.7
"""Chance that a telling is written without the reply to it. Written each time, that reply would come to stand for there
being something to say, and what a model replies in use is not what it was trained on."""


_TELLS: tuple[Kind, Kind] = ("tellings", "statements")


@dataclass(frozen=True)
class Conversation:
    """Which exchanges are strung together: `order`, and those of them that tell a fact."""

    tellings: tuple[int, ...]
    order: tuple[tuple[Kind, int], ...]


@dataclass(frozen=True)
class WriteWeights:
    """What the writes of all layers are computed with: the adapter's projections, stacked (layers, …).

    Without `keep` or `erase`, gates of that kind that are learned stand at KEEP_LOGIT or take `erased`. `votes`: as
    AdapterConfig's `gate_votes`.
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
        """The adapter's own, with gradient to them."""
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
        """Pre-activations (layers, n, width) of keys at x (layers, n, hidden); `shifted`: of the tokens before."""
        keys = product(x, self.key)
        return keys if self.before is None else keys + product(shifted, self.before)

    def gates(self, x: Tensor) -> Tensor:
        """Logits (layers, n, gates) of the write gates at attention inputs x (layers, n, hidden)."""
        logits = product(x, self.gate) + self.gate_bias[:, None]
        if self.hidden is not None and self.hidden_bias is not None and self.gate_hidden is not None:
            logits = logits + F.silu(product(x, self.hidden) + self.hidden_bias[:, None]) @ self.gate_hidden.mT
        if not self.votes:
            return logits
        layers = torch.arange(1, len(logits) + 1, device=logits.device)
        return logits.cumsum(0) / layers[:, None, None]


@dataclass(frozen=True)
class Written:
    """`state` (layers, conversations, heads, r, r). For every token written, in no order that matters:
    `gates` (layers, tokens, gates) are the logits of its write gates, and `aside` (tokens,) marks what tells nothing,
    replies to what was told included."""

    state: Tensor
    gates: Tensor
    aside: Tensor


def string_together(found: Activations, facts: int, asides: int, questions: int, rng: random.Random) -> Conversation:
    """Tellings about as many different subjects, as far as there are so many, among asides and questions.

    As many of them as STATEMENT_SHARE says are statements alone. What was told earlier with another value stands
    anywhere before them.
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
    """Numbers of at most `count` + 1 tellings of one attribute, of whomever."""
    attribute = rng.choice(attributes)
    alike = [number for number, other in enumerate(attributes) if other == attribute]
    return rng.sample(alike, min(len(alike), count + 1))


def never_told(
    found: Activations, conversations: Sequence[Conversation], count: int, rng: random.Random
) -> list[tuple[int, int]]:
    """`count` pairs of a conversation and a telling about what it tells nothing of.

    Half of them, where there are such, about what it tells of others.
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
    """Numbers of `count` of them that have nothing in common, those of `first` before others, as far as there are."""
    chosen: list[int] = []
    about: set[str] = set()
    for number in (*first, *rng.sample(range(len(subjects)), min(len(subjects), 8 * count))):
        if len(chosen) < count and not about & subjects[number]:
            chosen.append(number)
            about |= subjects[number]
    return chosen


def write_strung(
    config: AdapterConfig,
    weights: WriteWeights,
    found: Activations,
    conversations: Sequence[Conversation],
    before: Tensor | None = None,
) -> Written:
    """The states that the conversations leave behind, with gradient to the weights.

    `before` (layers, conversations, heads, r, r): the states in which they begin, zero unless given.
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
    """The tokens of all pieces, in no order that matters: attention inputs `here` and `shifted`, of the token before
    each (layers, tokens, hidden); `aside` (tokens,) as in Written; `spots` (tokens,) where each stands in conversations
    padded to `longest` and laid end to end."""

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
    """One of the adapter's projections in all its layers (layers, …), with gradient to it."""
    return torch.stack([adapter.layer(slot).get_parameter(name) for slot in range(len(adapter.indices))])


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(layers, n, hidden) by (layers, rows, hidden), in the activations' own dtype, to (layers, n, rows) float32."""
    return torch.bmm(x, weight.to(x.dtype).transpose(1, 2)).float()


def logit(share: float) -> float:
    """What a sigmoid is `share` at."""
    return math.log(share / (1 - share))


def by_head(values: Tensor, config: AdapterConfig) -> Tensor:
    split: Tensor = values.unflatten(-1, (config.num_state_heads, -1))
    return split


def _source(found: Activations, kind: Kind) -> Exchanges:
    source: Exchanges = getattr(found, "tellings" if kind in ("statements", "earlier") else kind)
    return source


@dataclass(frozen=True)
class _Piece:
    """What is written of an exchange: `places` (n,) in order, and which of them tell nothing, `aside` (n,)."""

    places: Tensor
    aside: Tensor


def _piece(found: Activations, kind: Kind, index: int) -> _Piece:
    source = _source(found, kind)
    if kind == "earlier":
        return _Piece(found.earlier[index], torch.zeros(len(found.earlier[index]), dtype=torch.bool))
    places = source.contents[index]
    if kind not in _TELLS:
        return _Piece(places, torch.ones(len(places), dtype=torch.bool))
    # Between two messages stand tokens that are no contents.
    message = F.pad(places.diff() > 1, (1, 0)).cumsum(0)
    aside = message > message[source.told[places]].max()
    return _Piece(places, aside) if kind == "tellings" else _Piece(places[~aside], aside[~aside])
