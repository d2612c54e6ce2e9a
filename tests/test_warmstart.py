"""Laws of the start from activations: each fit lowers its own loss, and the model stays as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.loading import model_fingerprint
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.training import warmstart
from deltamem_agents.training.episodes import Episode, EpisodeShape, Question, Told
from deltamem_agents.training.trainer import initialise, open_words
from deltamem_agents.types import Message
from tiny_training import CONFIGS, FULL, LEARNED_WORDS, episodes_of, renderer, silent, word_engine, word_tokenizer


@pytest.fixture(scope="module")
def found() -> tuple[DeltaMemEngine, warmstart.Activations]:
    engine = word_engine(replace(CONFIGS["shipped recipe"], delta_heads=("q", "o")))
    shape = EpisodeShape(facts=2, distractors=(0, 1), word_share=0.7)
    return engine, warmstart.collect_activations(
        engine.model, engine.adapter, renderer(), episodes_of(70, shape), torch.Generator().manual_seed(0), silent
    )


def fresh(engine: DeltaMemEngine) -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter.for_model(engine.adapter.config, engine.model)
    initialise(adapter)
    return adapter


def stacked(adapter: Adapter, name: str) -> Tensor:
    return torch.stack([adapter.layer(slot).get_parameter(name).detach() for slot in range(len(adapter.indices))])


def test_activations_stand_where_values_are_told_and_asked(
    found: tuple[DeltaMemEngine, warmstart.Activations],
) -> None:
    engine, activations = found
    count = len(activations.token)
    shape = (count, len(engine.adapter.indices), engine.model.config.hidden_size)
    assert activations.value.shape == activations.before.shape == activations.query.shape == shape
    assert len(activations.other) > count
    # The first layer's input is the token's embedding alone, normed: equal tokens, equal inputs.
    layer = engine.model.model.layers[0]
    embedded = layer.input_layernorm(engine.model.model.embed_tokens(activations.token))
    torch.testing.assert_close(activations.value[:, 0], embedded)
    labels = activations.label.tolist()
    assert len(set(labels)) > 20
    assert len({label for label in labels if labels.count(label) > 1}) > 5


def test_fitted_values_tell_told_tokens_apart(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter, output = fresh(engine), engine.model.get_output_embeddings().weight
    rows, target = warmstart.output_rows(activations, output)

    def loss() -> float:
        read, say_again = stacked(adapter, "memory_v_proj"), stacked(adapter, "delta_o_proj")
        sharpness = torch.tensor(3.0)
        return float(warmstart.value_loss(activations.value, rows, target, read, say_again, sharpness))

    before = loss()
    warmstart.fit_values(adapter, activations, output, 60, 2.0, torch.Generator().manual_seed(0))
    assert loss() < before - 0.5


def test_fitted_keys_agree_where_the_same_is_meant(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter = fresh(engine)

    def loss() -> float:
        x, before = activations.value, activations.before
        keys = torch.einsum("nld,lrd->nlr", x, stacked(adapter, "memory_k_proj"))
        keys = keys + torch.einsum("nld,lrd->nlr", before, stacked(adapter, "memory_k_shift_proj"))
        queries = torch.einsum("nld,lrd->nlr", activations.query, stacked(adapter, "memory_q_proj"))
        return float(warmstart.key_loss(keys, queries, activations.label, 1))

    before = loss()
    warmstart.fit_keys(adapter, activations, 40, torch.Generator().manual_seed(0))
    assert loss() < before - 0.1


def test_a_fitted_gate_opens_for_values(found: tuple[DeltaMemEngine, warmstart.Activations]) -> None:
    engine, activations = found
    adapter = fresh(engine)

    def loss() -> float:
        weight, bias = stacked(adapter, "beta_proj")[:, 0], stacked(adapter, "beta_bias")[:, 0]
        return float(warmstart.gate_loss(activations.value, activations.other, weight, bias))

    before = loss()
    warmstart.fit_gate(adapter, activations, 80, torch.Generator().manual_seed(0))
    # A gate that is half open everywhere scores 2 ln 2.
    assert loss() < min(before, 2 * math.log(2)) - 0.03


def test_keys_of_one_label_alone_are_no_division_by_zero() -> None:
    keys, label = torch.randn(5, 2, 8, requires_grad=True), torch.zeros(5)
    loss = warmstart.key_loss(keys, torch.randn(5, 2, 8), label, 2)
    loss.backward()
    assert bool(torch.isfinite(loss)) and keys.grad is not None and bool(torch.isfinite(keys.grad).all())


@pytest.mark.parametrize(
    "config",
    [replace(FULL, num_state_heads=2, rankwise_gates=False), replace(FULL, delta_heads=("q",), target_layers=(0,))],
    ids=["heads", "no o"],
)
def test_a_warm_start_fits_any_adapter_and_leaves_the_model_alone(config: AdapterConfig) -> None:
    engine = word_engine(config)
    before, weights = model_fingerprint(engine.model), {n: p.clone() for n, p in engine.adapter.named_parameters()}
    episodes = iter(episodes_of(10))
    warmstart.warm_start(
        engine.model,
        engine.adapter,
        renderer(),
        lambda: next(episodes),
        episodes=10,
        steps=2,
        gain=2.0,
        generator=torch.Generator().manual_seed(0),
        say=silent,
    )
    changed = {n.rsplit(".", 1)[-1] for n, p in engine.adapter.named_parameters() if not torch.equal(p, weights[n])}
    expected = {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias"}
    assert changed == expected | ({"delta_o_proj"} if "o" in config.delta_heads else set())
    assert model_fingerprint(engine.model) == before
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_a_value_with_other_tokens_in_the_reply_is_refused() -> None:
    engine = word_engine()
    question = Question("Where do I live?", "otter", "Your city is", Told(0, 0))
    episode = Episode((Message("user", "otter is where I live."), Message("assistant", "Noted.")), (question,))
    with pytest.raises(ConfigError, match="encodes a told value otherwise"):
        warmstart.collect_activations(
            engine.model, engine.adapter, renderer(), [episode], torch.Generator().manual_seed(0), silent
        )


def test_words_of_a_vocabulary_are_single_tokens_behind_a_space() -> None:
    tokenizer = word_tokenizer()
    words = open_words(tokenizer)
    assert {word for word in LEARNED_WORDS if len(word) > 2} <= set(words)
    assert words == sorted(words)
    assert all(len(tokenizer.encode(f"is {word}", add_special_tokens=False)) == 2 for word in words)
