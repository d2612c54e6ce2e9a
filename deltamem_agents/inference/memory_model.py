"""A model with a memory attached, and how messages go into both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.chat.grammar import Vocabulary
from deltamem_agents.inference.compiled import CompiledStep
from deltamem_agents.inference.passes import Measures, Pass, Piece
from deltamem_agents.inference.prompts import Prompts
from deltamem_agents.inference.quoted_words import Spelling
from deltamem_agents.inference.reply_text import definition
from deltamem_agents.inference.rows import OneToken, Rows
from deltamem_agents.inference.scheduling import Scheduler, Seat
from deltamem_agents.loading.int8 import rounded_up_to
from deltamem_agents.loading.progress import step
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import Writes
from deltamem_agents.types import Message

LONG_CHARACTERS = 16_000
"""Number of characters above which the progress of absorbing is shown."""


@dataclass
class MemoryModel:
    """The model, tokenizer and adapter that every pass of an engine uses. It holds no data of any conversation.

    `progress`: show long absorption on stderr. `scheduler`: decides who runs the model next. `new_cache`: makes an
    empty key–value cache for a turn. `compiled`: runs single tokens, None to run them as all others.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    prompts: Prompts
    progress: bool = False
    scheduler: Scheduler[OneToken] = field(default_factory=lambda: Scheduler(Rows()))
    new_cache: Callable[[], KeyValueCache] = empty_cache
    compiled: CompiledStep | None = None

    @property
    def per_message(self) -> bool:
        """Whether there is one write per message, at its end, instead of one per token."""
        return self.adapter.config.memory_write_granularity == "message_mean"

    @cached_property
    def rounded_up_to(self) -> int:
        """Maximum number of tokens in a pass that uses rounded weights; 0 if the model has none."""
        return rounded_up_to(self.model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that grammars need. It is slow to make, so it is made for the first grammar."""
        return Vocabulary(definition(self.tokenizer), self._logits, self.prompts.end_ids)

    @cached_property
    def spelling(self) -> Spelling:
        """The texts of the tokens, made for the first reply that recalls something."""
        return Spelling.of(self.tokenizer, self._logits)

    @property
    def _logits(self) -> int:
        """The number of logits, which may be larger than the tokenizer's vocabulary."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def keeps_writes(self) -> bool:
        """Whether the memory is a list of statements with their writes, and not one state."""
        return self.adapter.config.keeps_writes

    @property
    def no_writes(self) -> Writes | None:
        """An empty set of writes; None if the memory is one state."""
        return Writes.none(*self.adapter.zero_state().geometry) if self.keeps_writes else None

    def begin(
        self,
        state: MemoryState | None,
        *,
        collect: bool = False,
        applies: bool = True,
        seat: Seat[OneToken] | None = None,
    ) -> Pass:
        """A new sequence that reads `state`, None for the base model.

        `applies`: whether its writes change the state. `seat`: the turn's seat, None outside of turns.
        """
        placed = None if state is None else state.settled().to(self.model.device)
        pieces: list[Piece] | None = [] if self.keeps_writes else None
        replies_read = self.adapter.config.read_scope == "replies"
        layers = [self.adapter.layer(slot) for slot in range(len(self.adapter.indices))]
        return Pass(
            self.model,
            placed,
            replies_read,
            Measures(),
            collect,
            self.new_cache(),
            pieces,
            applies=applies,
            layers=layers,
            config=self.adapter.config,
            seat=seat or self.scheduler.seat(),
            rounded_up_to=self.rounded_up_to,
            compiled=self.compiled,
        )

    def absorbing(self, run: Pass, messages: Sequence[Message], positions: Sequence[int] | None) -> Iterator[int]:
        """Write `messages` into the run's state, segment by segment. Yields the number of tokens of each segment.

        `positions`: positions of the messages to write, None for all that the policy allows.
        """
        named = range(len(messages)) if positions is None else positions
        long = self.progress and sum(len(messages[at].content) for at in named) > LONG_CHARACTERS
        with step(f"absorbing {len(named)} messages that the prompt has no room for", long) as report:
            done = 0
            for prompt in self.prompts.segments(messages, positions):
                part = replace(run, state=None if run.state is None else run.state.settled(), cache=empty_cache())
                part.feed(prompt)
                run.state = part.state
                done += prompt.messages
                report(done, len(named))
                yield len(prompt)
