"""A run's training data: episodes, neutral exchanges, and the activations collected from them.

All of it follows from the recipe and its seed, so an interrupted run gets the same data again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from deltamem_agents.lab.corpus.episodes import Episode, EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.corpus.splits import split_values
from deltamem_agents.lab.corpus.tables import read_table
from deltamem_agents.lab.corpus.values import values_of
from deltamem_agents.lab.corpus.words import made_up_words, open_words
from deltamem_agents.lab.training.activations import Activations, Exchanges, collect_activations, collect_asides
from deltamem_agents.lab.training.batches import Renderer
from deltamem_agents.lab.training.collection import PARTS, Collection
from deltamem_agents.lab.training.preserved import DATA, Preserved
from deltamem_agents.lab.training.recipe import Recipe
from deltamem_agents.lab.training.run_folder import RunFolder
from deltamem_agents.lab.training.told_tokens import (
    WORDS_A_STATEMENT,
    Pairs,
    SpokenValues,
    collect_behind,
    collect_spoken,
    joined_pairs,
)
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.types import Message

STATEMENTS = 240
"""Number of fact statements kept with the frozen model's own replies to them."""

SPOKEN_SHAPE = EpisodeShape(distractors=(0, 0), about=("user", "person"))
"""Shape of the statements that spoken words are appended to."""

ASIDE_LENGTHS = (1, 1, 2, 4, 8, 16, 24)
"""Numbers of filler exchanges per conversation, drawn uniformly; 24 exchanges are a little over 1,000 tokens."""


class Material:
    """Everything drawn and collected for one run. `preserved`: exchanges that memory must not change.

    `adapter` must be attached to the model when activations are requested: it determines the layers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: Renderer,
        recipe: Recipe,
        folder: RunFolder,
        adapter: Adapter,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._renderer, self._recipe = loaded.model, renderer, recipe
        self._adapter, self._say = adapter, say
        self._words = open_words(loaded.tokenizer) + made_up_words(loaded.tokenizer, recipe.made_up_words)
        self._generators: dict[EpisodeShape, EpisodeGenerator] = {}
        self._collection = Collection(self._draw_part, self._collect)
        self._paired: tuple[int, Pairs] | None = None
        self.preserved = Preserved(loaded, folder, self._told, say, own=recipe.own_prompts, seed=recipe.seed)

    def generator(self, shape: EpisodeShape, facts: int) -> EpisodeGenerator:
        """The generator of episodes of this shape with `facts` facts."""
        shape = replace(shape, facts=facts)
        if shape not in self._generators:
            self._generators[shape] = EpisodeGenerator(self._words, shape)
        return self._generators[shape]

    def collected(self, step: int) -> tuple[list[Episode], Activations]:
        """The episode of each telling available at this step, and the activations."""
        return self._collection.parts_from(self._recipe.renewals_before(step))

    def pairs(self, step: int) -> Pairs:
        """Told tokens for training keys, queries and gates: those of this step's episodes and the additional ones."""
        part = self._recipe.renewals_before(step)
        if self._paired is None or self._paired[0] != part:
            _, found = self.collected(step)
            self._paired = part, replace(joined_pairs([Pairs.of(found), *self._more_pairs]), spoken=self._spoken)
        return self._paired[1]

    @cached_property
    def _more_pairs(self) -> list[Pairs]:
        parts = math.ceil(self._recipe.warm_start.addressed * PARTS / self._recipe.warm_start.episodes)
        return [Pairs.of(self._collect(self._draw_part(-number))) for number in range(1, parts + 1)]

    @cached_property
    def _spoken(self) -> SpokenValues:
        rng = random.Random(f"{self._recipe.seed} spoken")
        words = [*split_values(self._words, "train")]
        words = rng.sample(words, min(len(words), self._recipe.warm_start.spoken))
        generator = self.generator(SPOKEN_SHAPE, 1)
        statements = [generator.draw(rng) for _ in range(len(words) // WORDS_A_STATEMENT + 1)]
        return collect_spoken(self._model, self._adapter, self._renderer, statements, words)

    def introduced(self) -> SpokenValues:
        """The training split's names and jobs, appended to every phrase by which users introduce themselves."""
        statements = [
            (said, values_of(kind, "train")[start : start + WORDS_A_STATEMENT])
            for kind, leads in read_table(DATA, "introductions").items()
            for said in leads
            for start in range(0, len(values_of(kind, "train")), WORDS_A_STATEMENT)
        ]
        return collect_behind(self._model, self._adapter, self._renderer, statements)

    def _draw_part(self, number: int) -> list[Episode]:
        rng, settings = random.Random(f"{self._recipe.seed} warm {number}"), self._recipe.warm_start
        generators = [self.generator(shape, facts) for shape in settings.shapes for facts in settings.facts]
        episodes = [rng.choice(generators).draw(rng) for _ in range(max(1, settings.episodes // PARTS))]
        return sorted(episodes, key=lambda episode: _size(episode.messages))

    def _collect(self, episodes: Sequence[Episode]) -> Activations:
        return collect_activations(self._model, self._adapter, self._renderer, episodes, self._asides, self._say)

    @cached_property
    def _asides(self) -> Exchanges:
        """Filler: neutral prompts with the model's replies, small talk, and the model's replies to told facts.

        The first two are put into conversations, since a write gate's input depends on how much was said before. Of the
        last, only the reply is filler.
        """
        rng = random.Random(f"{self._recipe.seed} asides")
        neutral = [one.messages for one in self.preserved.neutral]
        said = [*neutral, *(_small_talk(rng) for _ in neutral)]
        asides = sorted(_conversations(said, rng), key=_size)
        replied = sorted((one.messages for one in self.preserved.statements), key=_size)
        return collect_asides(self._model, self._adapter, self._renderer, asides, replied)

    def _told(self) -> list[str]:
        """Users' statements of facts; the same on every call."""
        rng = random.Random(f"{self._recipe.seed} statements")
        shapes = [replace(shape, tellers=("user",), changed=0.0) for shape in self._recipe.stages[-1].shapes]
        generators = [self.generator(replace(shape, distractors=(0, 0)), 1) for shape in shapes]
        return [rng.choice(generators).draw(rng).messages[0].content for _ in range(STATEMENTS)]


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def _conversations(exchanges: Sequence[Sequence[Message]], rng: random.Random) -> list[list[Message]]:
    """The exchanges in random order, grouped into conversations of ASIDE_LENGTHS."""
    left = rng.sample(exchanges, len(exchanges))
    found = []
    while left:
        length = rng.choice(ASIDE_LENGTHS)
        found.append([message for exchange in left[:length] for message in exchange])
        left = left[length:]
    return found


def _small_talk(rng: random.Random) -> tuple[Message, ...]:
    user, reply = small_talk(rng)
    return Message("user", user), Message("assistant", reply)
