"""The training loop: resumable, logged line by line, on CPU or GPU."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents.errors import ConfigError
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.adapter_file import load_adapter, save_adapter
from deltamem_agents.memory.attach import Adapter, attach
from deltamem_agents.training.batches import Renderer, history_batch, neutral_batch, question_batch
from deltamem_agents.training.chatter import chatter
from deltamem_agents.training.episodes import EpisodeGenerator, EpisodeShape
from deltamem_agents.training.objective import Outcome, answer_questions, disturbance, judge, write_history
from deltamem_agents.training.recipe import Recipe, Stage
from deltamem_agents.training.warmstart import warm_start
from deltamem_agents.types import Message

LOG_FILE = "log.jsonl"
PROGRESS_FILE = "progress.json"
OPTIMISER_FILE = "optimiser.safetensors"
RECIPE_FILE = "recipe.json"
EVALUATED_QUESTIONS = 48


@dataclass(frozen=True)
class Report:
    """One line of the log."""

    step: int
    seconds: float
    facts: int
    loss: float
    answer_nats: float
    first: float
    whole: float
    beta: float
    neutral: float | None = None


def open_words(tokenizer: Any) -> list[str]:
    """Every word that is one token of the vocabulary behind a space, lower-case or capitalised."""
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    return sorted({text[1:] for text in texts if re.fullmatch(r" [A-Z]?[a-z]{2,}", text)})


class Trainer:
    """One run in one folder. Starting it again continues where it was saved last."""

    def __init__(
        self, loaded: LoadedModel, renderer: Renderer, recipe: Recipe, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._model, self._renderer, self._recipe, self._folder, self._say = (
            loaded.model,
            renderer,
            recipe,
            folder,
            say,
        )
        self._device = next(loaded.model.parameters()).device
        self._words = open_words(loaded.tokenizer)
        self._generators: dict[EpisodeShape, EpisodeGenerator] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._keep_recipe()
        self.step, self.seconds = self._progress()
        self.adapter = self._adapter()
        self._attachment = attach(loaded.model, self.adapter)
        self._optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        if self.step:
            self._load_optimiser()

    def run(self) -> None:
        """Train to the recipe's end, saving on the way."""
        if self.step == 0 and self._recipe.warm_start is not None:
            self._warm_start()
        begun = time.monotonic() - self.seconds
        while self.step < self._recipe.steps:
            report = self._train_step(begun)
            self._log(report.__dict__)
            self.step += 1
            self.seconds = time.monotonic() - begun
            if self.step % self._recipe.save_every == 0 or self.step == self._recipe.steps:
                self.save()
            if self.step % self._recipe.evaluate_every == 0 or self.step == self._recipe.steps:
                self._evaluate()
        self._attachment.detach()

    def save(self) -> None:
        """Adapter, optimiser and progress, each file replaced whole and the progress last."""
        save_adapter(self.adapter, self._folder)
        names = {parameter: name for name, parameter in self.adapter.named_parameters()}
        moments = {
            f"{key}:{names[parameter]}": value
            for parameter, kept in self._optimiser.state.items()
            for key, value in kept.items()
        }
        part = self._folder / (OPTIMISER_FILE + ".part")
        save_file({name: value.detach().cpu().contiguous() for name, value in moments.items()}, part)
        part.replace(self._folder / OPTIMISER_FILE)
        part = self._folder / (PROGRESS_FILE + ".part")
        part.write_text(json.dumps({"step": self.step, "seconds": self.seconds}), encoding="utf-8")
        part.replace(self._folder / PROGRESS_FILE)

    def _keep_recipe(self) -> None:
        path, text = self._folder / RECIPE_FILE, json.dumps(self._recipe.to_json(), indent=2) + "\n"
        if (self._folder / PROGRESS_FILE).exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{self._folder} holds a run of another recipe; continue it with its own {RECIPE_FILE}, "
                "or choose another folder"
            )
        path.write_text(text, encoding="utf-8")

    def _progress(self) -> tuple[int, float]:
        path = self._folder / PROGRESS_FILE
        if not path.exists():
            return 0, 0.0
        data = json.loads(path.read_text(encoding="utf-8"))
        return int(data["step"]), float(data["seconds"])

    def _adapter(self) -> Adapter:
        if self.step:
            return load_adapter(self._folder, self._model).requires_grad_(True)
        torch.manual_seed(self._recipe.seed)
        adapter = Adapter.for_model(self._recipe.adapter, self._model)
        initialise(adapter)
        return adapter.to(self._device)

    def _load_optimiser(self) -> None:
        parameters = dict(self.adapter.named_parameters())
        for name, value in load_file(self._folder / OPTIMISER_FILE).items():
            key, _, parameter = name.partition(":")
            state = self._optimiser.state[parameters[parameter]]
            state[key] = value if key == "step" else value.to(self._device)

    def _warm_start(self) -> None:
        settings = self._recipe.warm_start
        assert settings is not None
        rng = random.Random(f"{self._recipe.seed} warm")
        shape = EpisodeShape(facts=1, distractors=(0, 1), word_share=0.7)
        generator = self._generator(shape)
        begun = time.monotonic()
        warm_start(
            self._model,
            self.adapter,
            self._renderer,
            lambda: generator.draw(rng),
            episodes=settings.episodes,
            steps=settings.steps,
            gain=settings.gain,
            generator=torch.Generator().manual_seed(self._recipe.seed),
            say=self._say,
        )
        self.seconds = time.monotonic() - begun
        self._evaluate()

    def _generator(self, shape: EpisodeShape) -> EpisodeGenerator:
        if shape not in self._generators:
            self._generators[shape] = EpisodeGenerator(self._words, shape)
        return self._generators[shape]

    def _train_step(self, begun: float) -> Report:
        stage, into = self._recipe.stage_at(self.step)
        rng = random.Random(f"{self._recipe.seed} {self.step}")
        for group in self._optimiser.param_groups:
            group["lr"] = _rate(stage, into)
        facts = rng.choice(stage.facts)
        generator = self._generator(stage.shape(facts))
        episodes = [generator.draw(rng) for _ in range(max(1, stage.questions // facts))]
        history = history_batch(self._renderer, [episode.messages for episode in episodes]).to(self._device)
        state, beta = write_history(self._model, self.adapter, history)
        questions = question_batch(self._renderer, episodes).to(self._device)
        writes = rng.random() < stage.question_writes
        outcome = judge(answer_questions(self._model, state, questions, writes=writes), questions, beta)
        loss, neutral = outcome.loss + stage.beta_weight * beta, None
        if stage.neutral_every and self.step % stage.neutral_every == 0:
            exchanges = [self._neutral(rng, generator, episode, index) for index, episode in enumerate(episodes)]
            extra = disturbance(self._model, state, neutral_batch(self._renderer, exchanges).to(self._device))
            loss, neutral = loss + stage.neutral_weight * extra, float(extra.detach())
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self._optimiser.step()
        return _report(self.step, time.monotonic() - begun, facts, outcome, neutral)

    def _neutral(
        self, rng: random.Random, generator: EpisodeGenerator, episode: Any, index: int
    ) -> tuple[Message, ...]:
        """Small talk, and every other time a question about something never told."""
        if index % 2:
            return (Message("user", generator.untold(rng, episode)),)
        user, reply = chatter(rng)
        return Message("user", user), Message("assistant", reply)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Recall of values never trained on, by number of facts: a progress figure without controls."""
        recall: dict[str, float] = {}
        stage = self._recipe.stages[-1]
        for facts in sorted({facts for stage in self._recipe.stages for facts in stage.facts}):
            rng = random.Random("progress")
            generator = self._generator(EpisodeShape(facts, stage.distractors, split="evaluation"))
            right: list[Tensor] = []
            first: list[Tensor] = []
            while sum(map(len, right)) < EVALUATED_QUESTIONS:
                episodes = [generator.draw(rng) for _ in range(max(1, 16 // facts))]
                history = history_batch(self._renderer, [episode.messages for episode in episodes]).to(self._device)
                state, beta = write_history(self._model, self.adapter, history)
                questions = question_batch(self._renderer, episodes).to(self._device)
                outcome = judge(answer_questions(self._model, state, questions, writes=False), questions, beta)
                right.append(outcome.all_right)
                first.append(outcome.first_right)
            recall[f"{facts} facts, whole answer"] = float(torch.cat(right).float().mean())
            recall[f"{facts} facts, first token"] = float(torch.cat(first).float().mean())
        self._log({"step": self.step, "seconds": self.seconds, "held_out_values": recall})

    def _log(self, line: dict[str, Any]) -> None:
        with (self._folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if "held_out_values" in line:
            figures = ", ".join(f"{name} {value:.2f}" for name, value in line["held_out_values"].items())
            self._say(f"step {line['step']}: held-out values: {figures}")
        elif line["step"] % 20 == 0:
            self._say(
                f"step {line['step']} of {self._recipe.steps}, {line['seconds']:.0f} s: {line['facts']} facts, "
                f"loss {line['loss']:.2f}, answer {line['answer_nats']:.2f} nats, whole {line['whole']:.2f}, "
                f"β {line['beta']:.3f}"
            )


def initialise(adapter: Adapter) -> None:
    """The published start for what no warm start sets: kaiming-uniform memory projections, small corrections."""
    for name, value in adapter.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind.startswith("memory_") or kind in ("beta_proj", "lambda_proj"):
            torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5))
        elif kind == "beta_bias":
            torch.nn.init.constant_(value, -1.5)
        elif kind == "lambda_bias":
            torch.nn.init.constant_(value, 6.0)
        elif kind.startswith("delta_") and kind.endswith("_proj"):
            torch.nn.init.normal_(value, std=0.01)


def _rate(stage: Stage, into: int) -> float:
    if into < stage.warmup:
        return stage.rate * (into + 1) / stage.warmup
    done = (into - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate_end + (stage.rate - stage.rate_end) * 0.5 * (1 + math.cos(math.pi * done))


def _report(step: int, seconds: float, facts: int, outcome: Outcome, neutral: float | None) -> Report:
    return Report(
        step=step,
        seconds=round(seconds, 1),
        facts=facts,
        loss=round(float(outcome.loss.detach()), 4),
        answer_nats=round(outcome.answer_nats, 4),
        first=round(float(outcome.first_right.float().mean()), 3),
        whole=round(float(outcome.all_right.float().mean()), 3),
        beta=round(outcome.beta, 4),
        neutral=None if neutral is None else round(neutral, 4),
    )
