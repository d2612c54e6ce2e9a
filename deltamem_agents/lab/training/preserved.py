"""Exchanges that memory must not change: the model's predictions there should stay those of the frozen model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeGenerator
from deltamem_agents.lab.corpus.tables import read_table
from deltamem_agents.lab.training.batches import Exchange
from deltamem_agents.lab.training.neutral import own_prompts, own_replies
from deltamem_agents.lab.training.run_folder import NEUTRAL_FILE, STATEMENTS_FILE, RunFolder
from deltamem_agents.loading import LoadedModel
from deltamem_agents.types import Message

DATA = Path(__file__).parent / "data"

PROMPT_TOKENS, REPLY_TOKENS = 48, 48
"""Maximum length of a prompt that the model generates, and of a reply that is kept."""

NEAR = 0.5
"""Share of the questions about facts never told that ask for a told attribute of another person."""


def neutral_prompts() -> tuple[str, ...]:
    """User prompts that have nothing to do with memory. None occurs among the evaluation's unrelated prompts.

    None states or asks for a fact about anybody in the conversation, although those of "first_person" say "my" and "I".
    """
    table = read_table(DATA, "neutral_prompts")
    return (*table["prompts"], *table["short"], *table["first_person"])


class Preserved:
    """Neutral prompts and fact statements with the frozen model's own replies, and questions about facts never told.

    The replies are generated once per run and kept in its `folder`. `told`: returns the statements; called at most
    once. `own`: number of additional prompts that the frozen model generates, with `seed`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        folder: RunFolder,
        told: Callable[[], Sequence[str]],
        say: Callable[[str], None],
        *,
        own: int = 0,
        seed: int = 0,
    ) -> None:
        self._loaded, self._folder, self._told, self._say = loaded, folder, told, say
        self._own, self._seed = own, seed

    @cached_property
    def neutral(self) -> list[Exchange]:
        return self._own_replies(NEUTRAL_FILE, self._neutral_prompts)

    @cached_property
    def statements(self) -> list[Exchange]:
        return self._own_replies(STATEMENTS_FILE, self._told)

    def draw(self, rng: random.Random, generator: EpisodeGenerator, episode: Episode, kind: int) -> Exchange:
        """An exchange by `kind` mod 4: 0, a neutral prompt; 2, a fact statement; 1 and 3, a question about a fact that
        `episode` never told."""
        if kind % 4 == 0:
            return rng.choice(self.neutral)
        if kind % 4 == 2:
            return rng.choice(self.statements)
        untold = generator.never_told(rng, episode, near=rng.random() < NEAR)
        return Exchange((Message("user", untold.question), Message("assistant", untold.prefix)), cut=True)

    def _neutral_prompts(self) -> Sequence[str]:
        written = neutral_prompts()
        if not self._own:
            return written
        own = own_prompts(self._loaded, self._own, max_tokens=PROMPT_TOKENS, seed=self._seed, say=self._say)
        return (*written, *own)

    def _own_replies(self, name: str, prompts: Callable[[], Sequence[str]]) -> list[Exchange]:
        kept = self._folder.own_replies(name)
        if kept is None:
            kept = own_replies(self._loaded, prompts(), max_tokens=REPLY_TOKENS, say=self._say)
            self._folder.keep_own_replies(name, kept)
        return [Exchange(pair, cut=True) for pair in kept]
