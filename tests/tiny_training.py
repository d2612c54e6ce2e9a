"""Training in miniature: a tokenizer with whole words in its vocabulary, and a tiny model for it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.lab.corpus.episodes import Episode, EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.corpus.small_talk import small_talk
from deltamem_agents.lab.corpus.values import word_values
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.training import material, preserved
from deltamem_agents.lab.training.activations import Activations, collect_activations, collect_asides
from deltamem_agents.lab.training.preserved import neutral_prompts
from deltamem_agents.lab.training.recipe import Recipe, Rehearsal, Stage, WarmStart
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.snapshots import InMemoryStore
from deltamem_agents.types import Message
from tiny_engine import CHATML, SPECIAL, random_adapter, tiny_llama
from tiny_tokenizers import CHATML as CHATML_WITH_SYSTEM

LEARNED_WORDS = sorted({word for kind in ("animal", "pet", "colour") for word in word_values()[kind][:50]})


@cache
def word_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE as in real models: frequent words are one token after a space, rare ones several."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(
        [f"What is my lucky charm? Your name is {word}." for word in LEARNED_WORDS] * 3, trainer
    )
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def word_model(template: str = CHATML) -> LoadedModel:
    tokenizer = word_tokenizer(template)
    model = tiny_llama(vocabulary=len(tokenizer))
    return replace(LoadedModel.of(model, tokenizer, "tiny"), name="tiny")


def word_engine(config: AdapterConfig | None = None, template: str = CHATML) -> DeltaMemEngine:
    """An engine with a trainable adapter: `engine.adapter` requires gradients and is attached to `engine.model`."""
    loaded = word_model(template)
    assert isinstance(loaded.model, LlamaForCausalLM)
    adapter: Adapter = random_adapter(loaded.model, config).requires_grad_(True)
    return DeltaMemEngine(loaded, adapter, InMemoryStore())


def renderer(template: str = CHATML) -> ChatTemplate:
    return ChatTemplate(word_tokenizer(template))


FULL = AdapterConfig(rank=4, alpha=8.0, delta_heads=("q", "k", "v", "o"))
UNGATED = AdapterConfig(rank=4, key_shift=True, state_update_mode="no_lambda")
GATED = replace(UNGATED, read_gate=True, gate_floor=0.25)
REPLIES = replace(GATED, read_scope="replies")
CONFIGS: Mapping[str, AdapterConfig] = {
    "shipped recipe": GATED,
    "without gates": UNGATED,
    "replies alone read": REPLIES,
    "published preset": AdapterConfig(rank=4),
    "every gate and head": replace(FULL, num_state_heads=2, couple_lambda=False, key_shift=True, read_gate=True),
    "erase gate": replace(GATED, erase_gate=True),
    "readout": replace(REPLIES, readout=True),
    "gates that see more": replace(REPLIES, gate_hidden=3, gate_on_reads=True),
    "layers that vote on gates": replace(REPLIES, gate_hidden=3, gate_votes=True),
    "one layer": replace(FULL, target_layers=(1,), rankwise_gates=False, delta_o_rmsnorm=True),
    "trained scale": replace(FULL, trainable_delta_scale=True, delta_scale_granularity="head"),
}
TEMPLATES = {"plain lead": CHATML, "system lead": CHATML_WITH_SYSTEM}
each_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
SHAPE = EpisodeShape(facts=2, distractors=(0, 2), changed=0.5, asked_before=0.5)

RECIPE = Recipe(
    model="tiny",
    adapter=REPLIES,
    stages=(
        Stage(steps=2, facts=(1,), questions=2, shapes=(EpisodeShape(distractors=(0, 0)),), warmup=1),
        Stage(
            steps=5,
            facts=(1, 2),
            questions=3,
            shapes=(EpisodeShape(distractors=(0, 1), changed=0.5, asked_before=0.5),),
            asides=(0, 2),
            question_writes=0.5,
            neutral_every=2,
            noise_weight=0.2,
            warmup=1,
        ),
        Stage(
            steps=2,
            facts=(1, 2),
            questions=3,
            asides=(0, 2),
            neutral_every=2,
            begin_weight=0.5,
            noise_weight=0.2,
            gate_weight=0.1,
            probe_weight=0.5,
            untold_weight=0.5,
            warmup=1,
            question_writes=0.5,
        ),
    ),
    warm_start=WarmStart(
        episodes=8,
        addressed=3,
        spoken=20,
        rehearsal=Rehearsal(steps=2, facts=(1, 2), questions=4, asides=2, addressing=2),
    ),
    seed=3,
    evaluate_every=3,
    save_every=2,
)
"""A run of nine steps that uses every feature."""


def episodes_of(count: int, shape: EpisodeShape = SHAPE, seed: int = 0) -> list[Episode]:
    generator, rng = EpisodeGenerator(open_words(word_tokenizer()), shape), random.Random(seed)
    return [generator.draw(rng) for _ in range(count)]


def asides_of(count: int) -> list[tuple[Message, ...]]:
    """Rows of small talk with two, no and one exchange in turn."""
    rng = random.Random(1)
    pairs = [[small_talk(rng) for _ in range((2, 0, 1)[row % 3])] for row in range(count)]
    return [
        tuple(m for user, reply in row for m in (Message("user", user), Message("assistant", reply))) for row in pairs
    ]


def histories_of(episodes: Sequence[Episode]) -> list[tuple[Message, ...]]:
    return [episode.messages for episode in episodes]


def activations_of(
    engine: DeltaMemEngine, episodes: Sequence[Episode], asides: int = 1, template: str = CHATML
) -> Activations:
    """Activations of episodes and of `asides` rows of small talk."""
    model, adapter, words = engine.model, engine.adapter, renderer(template)
    return collect_activations(
        model, adapter, words, episodes, collect_asides(model, adapter, words, said_aside(asides)), silent
    )


def said_aside(count: int) -> list[tuple[Message, ...]]:
    """The non-empty rows of `asides_of(count)`."""
    return [aside for aside in asides_of(count) if aside]


def silent(_: str) -> None:
    """Ignores progress lines."""


def few_texts(patch: pytest.MonkeyPatch) -> None:
    """Reduces the neutral prompts and the statements with replies to a few."""
    patch.setattr(preserved, "REPLY_TOKENS", 6)
    few = (*neutral_prompts()[:4], "What colour are ripe bananas?", "Help me with my garden.")
    patch.setattr(preserved, "neutral_prompts", lambda: few)
    patch.setattr(material, "STATEMENTS", 3)
