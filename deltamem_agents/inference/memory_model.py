"""A model with a memory attached, and how messages go into both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.chat.grammar import Vocabulary
from deltamem_agents.inference.decode import Measures, Pass, definition
from deltamem_agents.inference.prompts import Prompts
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.types import Message


@dataclass
class MemoryModel:
    """What every pass of an engine runs with. Holds nothing of any conversation."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    prompts: Prompts

    @property
    def per_message(self) -> bool:
        """Whether a message is written as a whole once it is over, and not token by token."""
        return self.adapter.config.memory_write_granularity == "message_mean"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What grammars run on. Slow to make, so it waits for the first one."""
        width = self.model.get_output_embeddings().weight.shape[0]
        return Vocabulary(definition(self.tokenizer), width, self.prompts.end_ids)

    def begin(self, state: MemoryState | None, *, collect: bool = False) -> Pass:
        """A new sequence that reads and writes `state`, None for the base model."""
        placed = None if state is None else state.settled().to(self.model.device)
        return Pass(self.model, placed, Measures(), collect)

    def absorb(self, run: Pass, messages: Sequence[Message], positions: Sequence[int] | None) -> int:
        """Write `messages` into the run's state, segment by segment; returns how many tokens that took.

        `positions`: which of them are written, None for all that the policy allows.
        """
        tokens = 0
        for prompt in self.prompts.segments(messages, positions):
            part = Pass(run.model, None if run.state is None else run.state.settled(), run.measures, run.collect)
            part.feed(prompt)
            run.state = part.state
            tokens += len(prompt)
        return tokens
