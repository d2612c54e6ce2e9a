"""The training loop: resumable, with one log line per step, on CPU or GPU."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltamem_agents.config import AdapterConfig
from deltamem_agents.errors import ConfigError, TrainingDivergedError
from deltamem_agents.lab.corpus.episodes import Episode
from deltamem_agents.lab.training.activations import Activations
from deltamem_agents.lab.training.batches import Renderer, history_batch, neutral_batch, question_batch
from deltamem_agents.lab.training.composing import (
    ERASED,
    KEEP_LOGIT,
    Conversation,
    WriteWeights,
    compose_conversation,
    logit,
    never_told,
)
from deltamem_agents.lab.training.direct_path import gate_loss
from deltamem_agents.lab.training.gate_fit import HIDDEN, LINEAR, fit_gates
from deltamem_agents.lab.training.material import Material
from deltamem_agents.lab.training.objective import (
    Outcome,
    answer_questions,
    disturbance,
    judge,
    output_directions,
    write_history,
)
from deltamem_agents.lab.training.probe import Probe
from deltamem_agents.lab.training.recipe import GateFit, Recipe, Rehearsal, Stage
from deltamem_agents.lab.training.replay import replay
from deltamem_agents.lab.training.run_folder import LOG_FILE, Checkpoint, RunFolder
from deltamem_agents.lab.training.told_tokens import draw_asked
from deltamem_agents.lab.training.warm_start import warm_start
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.memory.state import MemoryState

__all__ = ["LOG_FILE", "Report", "Trainer", "initialise"]

EVALUATED_QUESTIONS = 48

PROBE = "probe."

FACTS_BESIDE_ASIDES = 8
"""A stage's `asides` is the number of filler exchanges per this many facts of a conversation."""

PROBED_AT_ONCE = 64
"""Number of facts among which the probe's matching loss has each question find its own."""

USUAL_SIZE = 0.05
"""Root mean square of most weights. Larger weights, such as the readout's, get a learning rate larger by the same
factor: the size of Adam's steps is the learning rate, which would hardly move them."""

NEUTRAL_EXCHANGES = 8
"""Number of neutral exchanges in a step that computes the neutral loss."""


@dataclass(frozen=True)
class Report:
    """One step's line in the log.

    `loss`, `answer_nats`, `noise`: as in Outcome. `first`, `whole`: share of answers whose first token, or every token,
    was the likeliest. `untold`, `neutral`: KL divergence, in nats, from the frozen model in replies to questions about
    facts never told, and to unrelated prompts. `direct`: share of answer tokens that the probe got right. Where not
    measured, `neutral` and `direct` are null and `untold` is 0.
    """

    step: int
    seconds: float
    facts: int
    loss: float
    answer_nats: float
    first: float
    whole: float
    noise: float
    untold: float = 0.0
    neutral: float | None = None
    direct: float | None = None


class Trainer:
    """One training run in one folder. A new Trainer on the same folder continues from the last checkpoint.

    `step`: steps done so far. `seconds`: their wall time. `adapter`: the adapter being trained. `say` is called with
    progress lines.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: Renderer,
        recipe: Recipe,
        folder: Path,
        say: Callable[[str], None],
        start: Adapter | None = None,
    ) -> None:
        """`start`: an adapter of the recipe's geometry to begin from, instead of a rehearsal.

        Raises ConfigError when the folder holds a damaged run or a run of another recipe, or when `start` has another
        geometry.
        """
        self._model, self._renderer, self._recipe, self._say = loaded.model, renderer, recipe, say
        self._device = next(loaded.model.parameters()).device
        self._folder = RunFolder(folder, recipe)
        self.step, self.seconds = 0, 0.0
        self.adapter = self._new_adapter(start)
        self._material = Material(loaded, renderer, recipe, self._folder, self.adapter, say)
        self._started = start is not None
        self._probe = Probe(self.adapter).to(self._device) if any(s.probe_weight for s in recipe.stages) else None
        self._names = dict(self.adapter.named_parameters())
        if self._probe is not None:
            # The prefix keeps the probe in checkpoints but out of the saved adapter.
            self._names |= {PROBE + name: value for name, value in self._probe.named_parameters()}
        kinds: dict[str, list[Tensor]] = {}
        for name, value in self._names.items():
            kinds.setdefault(name.rsplit(".", 1)[-1], []).append(value)
        groups = [{"params": values} for values in kinds.values()]
        self._optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        saved = self._folder.checkpoint()
        self._begun = saved is not None
        if saved is not None:
            self._restore(saved)

    def run(self) -> None:
        """Trains to the recipe's end and saves checkpoints. The adapter is attached to the model meanwhile.

        Raises TrainingDivergedError when a loss is not finite, ConfigError when another process trains in the folder.
        """
        with self._folder.claimed():
            attachment = attach(self._model, self.adapter)
            try:
                self._folder.cut_log(self.step if self._begun else -1)
                with _eager_attention_on_cpu(self._model):
                    self._train()
            finally:
                attachment.detach()

    def save(self) -> None:
        """Saves a checkpoint from which a later Trainer continues."""
        moments = {
            (kind, name): value
            for name, parameter in self._names.items()
            for kind, value in self._optimiser.state.get(parameter, {}).items()
        }
        weights = {name: parameter.detach() for name, parameter in self._names.items()}
        self._folder.save(Checkpoint(self.step, self.seconds, weights, moments), self.adapter)
        self._begun = True

    def _train(self) -> None:
        rehearsal, gate_fit = self._recipe.warm_start.rehearsal, self._recipe.warm_start.gate_fit
        if not self._begun and (self._started or rehearsal is not None or gate_fit is not None):
            if rehearsal is not None and not self._started:
                self._warm_start(rehearsal)
            if gate_fit is not None:
                self._fit_gates(gate_fit)
            if self._probe is not None:
                self._probe.begin(self.adapter)
            self._evaluate()
            self.save()
        begun = time.monotonic() - self.seconds
        while self.step < self._recipe.steps:
            self._log(asdict(self._train_step(begun)))
            self.step += 1
            self.seconds = time.monotonic() - begun
            last = self.step == self._recipe.steps
            # Evaluate before saving, so an interruption in between repeats the evaluation instead of skipping it.
            if last or self.step % self._recipe.evaluate_every == 0:
                self._evaluate()
            if last or self.step % self._recipe.save_every == 0:
                self.save()

    def _new_adapter(self, start: Adapter | None) -> Adapter:
        torch.manual_seed(self._recipe.seed)
        adapter = Adapter.for_model(self._recipe.adapter, self._model)
        initialise(adapter, self._recipe.erased)
        if start is not None:
            _check_geometry(start.config, adapter.config)
            # Strict, except that the gates' hidden units may be new.
            adapter.load_state_dict(adapter.state_dict() | start.state_dict())
        return adapter.to(self._device)

    def _restore(self, saved: Checkpoint) -> None:
        self.step, self.seconds = saved.step, saved.seconds
        with torch.no_grad():
            for name, parameter in self._names.items():
                parameter.copy_(saved.weights[name])
        for (kind, name), value in saved.moments.items():
            # The optimiser's step counter stays on the CPU on every device.
            self._optimiser.state[self._names[name]][kind] = value if kind == "step" else value.to(self._device)

    def _warm_start(self, plan: Rehearsal) -> None:
        begun, seed = time.monotonic(), self._recipe.seed
        episodes, found = self._material.collected(self.step)
        pairs = self._material.pairs(self.step)
        warm_start(self._model, self.adapter, self._renderer, episodes, found, pairs, plan, seed=seed, say=self._say)
        self.seconds = time.monotonic() - begun

    def _fit_gates(self, plan: GateFit) -> None:
        begun = time.monotonic() - self.seconds
        _, found = self._material.collected(self.step)
        rng = random.Random(f"{self._recipe.seed} gates")
        pairs, introduced = self._material.pairs(self.step), self._material.introduced()
        fit_gates(self.adapter, found, pairs, plan, introduced, rng, self._say)
        self.seconds = time.monotonic() - begun

    @cached_property
    def _directions(self) -> Tensor:
        return output_directions(self._model)

    def _train_step(self, begun: float) -> Report:
        drawn = self._recipe.drawn_step(self.step)
        stage, rng = drawn.stage, drawn.rng
        episodes, state, outcome = self._replayed(rng, stage, drawn.facts)
        loss = outcome.loss + stage.noise_weight * outcome.noise + stage.gate_weight * outcome.gates
        loss = loss + stage.begin_weight * outcome.begun + stage.probe_weight * outcome.probed
        loss = loss + stage.untold_weight * outcome.untold
        neutral = None
        if stage.neutral_every and self.step % stage.neutral_every == 0:
            # Every other kind asks about facts never told. The untold loss, where used, already covers those.
            kinds = range(0, NEUTRAL_EXCHANGES, 2 if stage.untold_weight else 1)
            rows = [kind % len(episodes) for kind in kinds]
            generator = self._material.generator(drawn.shape, drawn.facts)
            exchanges = [
                self._material.preserved.draw(rng, generator, episodes[row], kind)
                for kind, row in zip(kinds, rows, strict=True)
            ]
            batch = neutral_batch(self._renderer, exchanges, rows).to(self._device)
            neutral = disturbance(self._model, state, batch)
            loss = loss + stage.neutral_weight * neutral
        self._descend(loss, _rate(stage, drawn.into), gates_kept=stage.gates_kept)
        return _report(self.step, time.monotonic() - begun, drawn.facts, outcome, neutral)

    def _replayed(self, rng: random.Random, stage: Stage, facts: int) -> tuple[list[Episode], MemoryState, Outcome]:
        """Conversations composed of collected exchanges, as episodes; their states; how questions are answered."""
        episodes, found = self._material.collected(self.step)
        conversations = drawn_conversations(found, stage, facts, rng)
        lead = question_batch(self._renderer, episodes[:1]).lead.to(self._device)
        probe: Callable[[Tensor], tuple[Tensor, float]] | None = None
        if stage.probe_weight and self._probe is not None:
            pairs = self._material.pairs(self.step)
            asked = draw_asked(pairs, PROBED_AT_ONCE, rng)
            probe = partial(
                self._probe.loss, self.adapter, found, conversations, pairs, asked, rng, rows=self._directions
            )
        writes = rng.random() < stage.question_writes
        untold = never_told(found, conversations, stage.questions // 3, rng) if stage.untold_weight else []
        state, outcome = replay(
            self._model, self.adapter, found, lead, conversations, probe, writes=writes, untold=untold
        )
        if stage.gate_weight:
            gates = gate_loss(WriteWeights.of(self.adapter), self._material.pairs(self.step), found.asides, rng)
            outcome = replace(outcome, gates=outcome.gates + gates)
        return [_joined([episodes[index] for index in one.tellings]) for one in conversations], state, outcome

    def _descend(self, loss: Tensor, rate: float, *, gates_kept: bool) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate * max(1.0, _root_mean_square(group["params"]) / USUAL_SIZE)
        self._optimiser.zero_grad()
        loss.backward()
        if gates_kept:
            for name, value in self._names.items():
                if name.rsplit(".", 1)[-1] in (*LINEAR, *HIDDEN):
                    value.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._names.values(), 1.0)
        if not bool(torch.isfinite(norm)):
            raise TrainingDivergedError(
                f"step {self.step}: the loss is {float(loss.detach())}, its gradient's norm {float(norm)}, expected "
                "finite numbers; this step was not saved. Lower the recipe's learning rates"
            )
        self._optimiser.step()

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Logs recall of values of the validation split, by number of facts. It has no controls: for progress only."""
        recall: dict[str, float] = {}
        shape = replace(self._recipe.stages[-1].shapes[0], split="validation", changed=0.0)
        for facts in sorted({facts for stage in self._recipe.stages for facts in stage.facts}):
            rng = random.Random("progress")
            generator = self._material.generator(shape, facts)
            found: list[Outcome] = []
            while sum(len(outcome.all_right) for outcome in found) < EVALUATED_QUESTIONS:
                episodes = [generator.draw(rng) for _ in range(max(1, 16 // facts))]
                found.append(self._answered(episodes))
            recall[f"{facts} facts, whole answer"] = _share([outcome.all_right for outcome in found])
            recall[f"{facts} facts, first token"] = _share([outcome.first_right for outcome in found])
        self._log({"step": self.step, "seconds": self.seconds, "held_out_values": recall})

    def _answered(self, episodes: Sequence[Episode]) -> Outcome:
        """How questions about episodes are answered when the whole episodes run through the model, as in use."""
        history = history_batch(self._renderer, [episode.messages for episode in episodes]).to(self._device)
        questions = question_batch(self._renderer, episodes).to(self._device)
        state = write_history(self._model, self.adapter, history)
        return judge(answer_questions(self._model, state, questions, writes=False), questions)

    def _log(self, line: Mapping[str, Any]) -> None:
        self._folder.log(line)
        if "held_out_values" in line:
            figures = ", ".join(f"{name} {value:.2f}" for name, value in line["held_out_values"].items())
            self._say(f"step {line['step']}: held-out values: {figures}")
        elif line["step"] % 20 == 0:
            self._say(
                f"step {line['step']} of {self._recipe.steps}, {line['seconds']:.0f} s: {line['facts']} facts, "
                f"loss {line['loss']:.2f}, answer {line['answer_nats']:.2f} nats, whole {line['whole']:.2f}, "
                f"noise {line['noise']:.4f}"
            )


def drawn_conversations(found: Activations, stage: Stage, facts: int, rng: random.Random) -> list[Conversation]:
    """A step's conversations of `facts` facts each, composed of the collected exchanges."""
    # Conversations with more facts get more filler.
    share = -(-facts // FACTS_BESIDE_ASIDES)
    return [
        compose_conversation(found, facts, share * rng.randint(*stage.asides), rng.randint(*stage.asides), rng)
        for _ in range(max(1, stage.questions // facts))
    ]


@contextmanager
def _eager_attention_on_cpu(model: Any) -> Iterator[None]:
    """Uses eager attention on a CPU, where the fused attention's backward pass makes a step a quarter longer."""
    kept = model.config._attn_implementation
    if next(model.parameters()).device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kept)


def _root_mean_square(weights: Sequence[Tensor]) -> float:
    """Root mean square of all the weights."""
    power = sum(float(value.detach().square().sum()) for value in weights)
    return math.sqrt(power / sum(value.numel() for value in weights))


def _joined(episodes: Sequence[Episode]) -> Episode:
    """One episode with the messages, questions and subjects of all of them."""
    return Episode(
        tuple(message for episode in episodes for message in episode.messages),
        tuple(question for episode in episodes for question in episode.questions),
        tuple(subject for episode in episodes for subject in episode.subjects),
    )


def _check_geometry(start: AdapterConfig, wanted: AdapterConfig) -> None:
    """Raises ConfigError if `start` has another geometry. Hidden units or votes of write gates may be added."""
    start = replace(
        start,
        gate_hidden=start.gate_hidden or wanted.gate_hidden,
        gate_votes=start.gate_votes or wanted.gate_votes,
    )
    found, expected = (replace(config, base_model=None).to_json() for config in (start, wanted))
    differing = [name for name in expected if found[name] != expected[name]]
    if differing:
        raise ConfigError(
            f"the adapter to begin from has {', '.join(f'{name}={found[name]!r}' for name in differing)}, the recipe "
            f"expects {', '.join(f'{name}={expected[name]!r}' for name in differing)}; change the recipe's adapter"
        )


def initialise(adapter: Adapter, erased: float = ERASED) -> None:
    """The paper's initialisation: kaiming-uniform memory projections, small output corrections.

    A warm start overwrites what it fits. `erased`: initial value of erase gates, above 0 and below 1.
    """
    for name, value in adapter.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind.startswith("memory_") or kind in ("beta_proj", "gate_hidden_proj", "read_proj", "lambda_proj"):
            torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5))
        elif kind in ("beta_bias", "read_bias"):
            torch.nn.init.constant_(value, _logit_of(0.18 if kind == "beta_bias" else 0.82, adapter.config.gate_floor))
        elif kind == "lambda_bias":
            torch.nn.init.constant_(value, KEEP_LOGIT)
        elif kind == "erase_bias":
            torch.nn.init.constant_(value, logit(erased))
        elif kind.startswith("delta_") and kind.endswith("_proj"):
            torch.nn.init.normal_(value, std=0.01)


def _logit_of(gate: float, floor: float) -> float:
    """The logit at which a gate with this floor has the value `gate`."""
    return logit(floor + (1 - floor) * gate)


def _rate(stage: Stage, into: int) -> float:
    if into < stage.warmup:
        return stage.rate * (into + 1) / stage.warmup
    done = (into - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate_end + (stage.rate - stage.rate_end) * 0.5 * (1 + math.cos(math.pi * done))


def _share(right: Sequence[Tensor]) -> float:
    return float(torch.cat(list(right)).float().mean())


def _report(step: int, seconds: float, facts: int, outcome: Outcome, neutral: Tensor | None) -> Report:
    return Report(
        step=step,
        seconds=round(seconds, 1),
        facts=facts,
        loss=round(float(outcome.loss.detach()), 4),
        answer_nats=round(outcome.answer_nats, 4),
        first=round(_share([outcome.first_right]), 3),
        whole=round(_share([outcome.all_right]), 3),
        noise=round(float(outcome.noise.detach()), 5),
        untold=round(float(outcome.untold.detach()), 4),
        neutral=None if neutral is None else round(float(neutral.detach()), 4),
        direct=None if outcome.direct is None else round(outcome.direct, 3),
    )
