"""Attach a memory to a frozen model with hooks, and detach it. No class is subclassed, no forward copied.

A pre-hook on each attention module takes the call's `MemoryCall` out of the keyword arguments and reads the memory.
Hooks on the projections add the corrections. Without that keyword the model computes what it did before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltamem_agents.config import AdapterConfig, Head
from deltamem_agents.errors import AdapterError, UnsupportedModelError
from deltamem_agents.memory.attention import LayerMemory, MemoryCall, read_and_write
from deltamem_agents.memory.backbones import AttentionSite, corrected_by, find_sites
from deltamem_agents.memory.folding import FoldedCall
from deltamem_agents.memory.matcher import Matcher
from deltamem_agents.memory.pointer import Pointer
from deltamem_agents.memory.rows import PromptsCall, RowsActive, RowsCall
from deltamem_agents.memory.state import MemoryState

CALL_KEYWORD = "deltamem"
_MARK = "_deltamem_attached"


class Adapter(nn.Module):
    """The memory weights of every target layer. `indices[slot]` is the model layer of a state slot.

    A slot is a layer's index in the state. `config`: the given config with the model's layer count and hidden size
    filled in. `recall`: the fitted matcher, which chooses statements, and the pointer, which copies their tokens, or
    None; see `recall_file.py`.
    """

    def __init__(self, config: AdapterConfig, sites: tuple[AttentionSite, ...]) -> None:
        super().__init__()
        self.config = replace(config, layers=len(sites), hidden_size=sites[0].widths.hidden)
        self.indices = config.layer_indices(len(sites))
        self.layers = nn.ModuleDict({str(i): LayerMemory(config, sites[i].widths) for i in self.indices})
        matcher = Matcher.uniform(len(self.indices), config.num_state_heads)
        self.recall: tuple[Matcher, Pointer | None] = (matcher, None)

    @classmethod
    def for_model(cls, config: AdapterConfig, model: nn.Module) -> Adapter:
        """A zero-initialised adapter with `model`'s sizes; load or initialise its weights next."""
        sites = find_sites(model)
        hidden = sites[0].widths.hidden
        for name, expected, found in (
            ("layers", config.layers, len(sites)),
            ("hidden_size", config.hidden_size, hidden),
        ):
            if expected not in (None, found):
                raise AdapterError(f"adapter was made for a model with {name}={expected}, this one has {found}")
        return cls(config, sites)

    def layer(self, slot: int) -> LayerMemory:
        return cast(LayerMemory, self.layers[str(self.indices[slot])])

    def zero_state(self, batch: int = 1) -> MemoryState:
        device = self.layer(0).beta_bias.device
        return MemoryState.zeros(batch, len(self.indices), self.config.num_state_heads, self.config.rank, device)


@dataclass
class _Active:
    """The reads of the attention layer that this thread is computing, for the hooks of its projections."""

    memory: LayerMemory
    call: MemoryCall
    reads: Tensor

    def correction(self, head: Head) -> Tensor | None:
        return self.memory.correction(head, self.reads)

    def output_correction(self, slot: int) -> Tensor | None:
        return self.memory.output_correction(self.call, slot, self.reads)

    def measured(self, delta: Tensor, attended: Tensor) -> None:
        if self.call.collect:
            self.call.measured(delta, attended)


@dataclass
class _Folded:
    """The same for one token that reads a folded state; see `folding.py`."""

    parts: dict[str, Tensor]

    def correction(self, head: Head) -> Tensor | None:
        return self.parts.get(head)

    def output_correction(self, slot: int) -> Tensor | None:
        return self.parts.get("o")

    def measured(self, delta: Tensor, attended: Tensor) -> None:
        return


@dataclass(frozen=True)
class Attachment:
    """A memory that is attached to a model. `detach` restores the model object."""

    model: nn.Module
    adapter: Adapter
    _attentions: tuple[nn.Module, ...]
    _handles: tuple[RemovableHandle, ...]

    def detach(self) -> None:
        """Remove every hook. A second call does nothing, even if another memory was attached in between."""
        for handle in self._handles:
            handle.remove()
        for attention in self._attentions:
            if attention.__dict__.get(_MARK) is self._handles:
                del attention.__dict__[_MARK]


def attach(model: nn.Module, adapter: Adapter) -> Attachment:
    """Attach `adapter` to `model`.

    Raises UnsupportedModelError if the model family is unknown, or if this model or one that shares its layers has a
    memory attached already; AdapterError if the adapter was made for a model of other sizes.
    """
    sites = find_sites(model)
    attentions = tuple(site.attention for site in sites)
    if any(_MARK in attention.__dict__ for attention in attentions):
        raise UnsupportedModelError("this model object carries a memory already; detach it, or load a second model")
    _check_fit(adapter, sites)
    found: list[RemovableHandle] = []
    for slot, index in enumerate(adapter.indices):
        found += _attach_site(sites[index], adapter.layer(slot), slot)
    handles = tuple(found)
    # The mark is on the layers because wrappers and task heads share them. Its value says which attachment owns it.
    for attention in attentions:
        attention.__dict__[_MARK] = handles
    return Attachment(model, adapter, attentions, handles)


def _check_fit(adapter: Adapter, sites: tuple[AttentionSite, ...]) -> None:
    if adapter.config.layers != len(sites):
        raise AdapterError(f"adapter was made for a model of {adapter.config.layers} layers, this one has {len(sites)}")
    for slot, index in enumerate(adapter.indices):
        made_for, widths = adapter.layer(slot).widths, sites[index].widths
        if made_for != widths:
            raise AdapterError(f"adapter layer {index} was made for {made_for}, this model has {widths}")


def _attach_site(site: AttentionSite, memory: LayerMemory, slot: int) -> list[RemovableHandle]:
    running = threading.local()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        running.active = None
        if CALL_KEYWORD not in kwargs:
            return args, kwargs
        rest = {name: value for name, value in kwargs.items() if name != CALL_KEYWORD}
        call: MemoryCall | FoldedCall | RowsCall | PromptsCall = kwargs[CALL_KEYWORD]
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(call, FoldedCall):
            running.active = _Folded(call.read(slot, hidden))
            return args, rest
        if isinstance(call, RowsCall | PromptsCall):
            running.active = call.reading(memory, slot, hidden)
            return args, rest
        if call.quiet:
            if call.inputs is not None:
                call.inputs[slot] = hidden
            return args, rest
        reads = read_and_write(memory, call, slot, hidden)
        if reads.shape[1]:
            running.active = _Active(memory, call, reads)
        elif call.collect:
            call.ratios.append(reads.new_zeros(()))
        return args, rest

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        active: _Active | _Folded | RowsActive | None = running.active
        running.active = None
        delta = None if active is None else active.output_correction(slot)
        if active is None or delta is None:
            return output
        attended = output[0] if isinstance(output, tuple) else output
        active.measured(delta, attended)
        corrected = corrected_by(attended, delta)
        return (corrected, *output[1:]) if isinstance(output, tuple) else corrected

    def correcting(head: Head) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            active: _Active | _Folded | RowsActive | None = getattr(running, "active", None)
            delta = None if active is None else active.correction(head)
            return None if delta is None else site.correct(head, output, delta)

        return hook

    handles = [
        site.attention.register_forward_pre_hook(before, with_kwargs=True),
        site.attention.register_forward_hook(after),
    ]
    for head in memory.config.delta_heads:
        if head != "o":
            handles.append(site.projections[head].register_forward_hook(correcting(head)))
    return handles
