"""Forward passes over one token of one sequence, compiled by torch.compile with the memory's hooks inside.

Compiling takes a minute or more and needs a C++ compiler. Passes that the compiled step does not fit run as usual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deltamem_agents.errors import ConfigError
from deltamem_agents.loading import make_opaque
from deltamem_agents.loading.progress import step
from deltamem_agents.memory.attach import CALL_KEYWORD, Adapter
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache, is_plain, last_place, with_cache
from deltamem_agents.memory.folding import FoldedCall, FoldedState

_WARM_TOKENS = 4


class CompiledStep:
    """One compiled step for every token that reads a folded state, or nothing.

    A token that reads nothing reads a state of zeros, which adds zeros: two steps would take twice as long to compile.
    """

    def __init__(self, model: PreTrainedModel, nothing: FoldedState) -> None:
        self._model, self._nothing = model, nothing
        make_opaque(model)
        self._step = torch.compile(model.forward, fullgraph=True, dynamic=True)

    @classmethod
    def of(cls, model: PreTrainedModel, adapter: Adapter, progress: bool) -> CompiledStep:
        """Compiles the step for a model with this adapter attached.

        Raises ConfigError if the adapter's reads cannot be folded, or if compiling fails.
        """
        layers = [adapter.layer(slot) for slot in range(len(adapter.indices))]
        nothing = FoldedState.of(adapter.config, layers, adapter.zero_state())
        if nothing is None:
            raise ConfigError(
                "compile_decode is for models on the CPU with an adapter like the default one, whose reads of a "
                "constant state are linear, and this is another one; leave compile_decode out"
            )
        compiled = cls(model, nothing)
        with step("compiling the decoding step, a minute or more", progress, long=False):
            try:
                compiled._warm_up()
            except Exception as error:
                raise ConfigError(
                    f"compile_decode could not compile this model: {_reason(error)}; "
                    "it needs a C++ compiler such as g++; leave compile_decode out to do without"
                ) from error
        return compiled

    @torch.no_grad()
    def _warm_up(self) -> None:
        cache = empty_cache()
        ids = torch.zeros(1, _WARM_TOKENS, dtype=torch.long)
        self._model(input_ids=ids, **with_cache(self._model, cache))
        for layer in cache.layers:
            for kept in (layer.keys, layer.values):  # type: ignore[union-attr]
                torch._dynamo.mark_dynamic(kept, 2)
        self._run(0, cache, FoldedCall(self._nothing, {}, {}))

    def fits(self, ids: Sequence[int], cache: KeyValueCache, call: MemoryCall | FoldedCall | None) -> bool:
        """Whether the step computes this pass."""
        if len(ids) != 1 or not (call is None or isinstance(call, FoldedCall)):
            return False
        return bool(cache.layers) and all(is_plain(layer) and layer.is_initialized for layer in cache.layers)

    def __call__(self, token: int, cache: KeyValueCache, call: FoldedCall | None) -> Tensor:
        """The logits (vocabulary,) float32 after one more token. `call` is filled in."""
        # The step is compiled for calls that collect everything.
        full = FoldedCall(self._nothing if call is None else call.state, {}, {})
        with torch.compiler.set_stance("eager_on_recompile"):
            logits = self._run(token, cache, full)
        for mine, found in () if call is None else ((call.inputs, full.inputs), (call.queries, full.queries)):
            if mine is not None:
                mine.update(found or {})
        return logits

    def _run(self, token: int, cache: KeyValueCache, call: FoldedCall) -> Tensor:
        out = self._step(
            input_ids=torch.tensor([[token]]),
            logits_to_keep=last_place(self._model.device),
            **with_cache(self._model, cache),
            **{CALL_KEYWORD: call},
        )
        logits: Tensor = out.logits[0, -1].float()
        return logits


def _reason(error: Exception) -> str:
    """The beginning of torch's message, whose first line names only the backend."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
