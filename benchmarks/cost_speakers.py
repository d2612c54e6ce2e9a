"""Who replies in `cost.py`: an agent of an engine, transformers' `generate`, and llama.cpp, each timed alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from deltamem_agents import DeltaMemEngine, Message, Sampling
from deltamem_agents.loading.embedded import EMBEDDED_MODEL, installed_gguf


@dataclass(frozen=True)
class Said:
    """One reply: seconds to its first token, tokens a second from there on, and what it was a reply to."""

    first: float
    rate: float
    tokens: int
    prompt_tokens: int
    prefilled_tokens: int


class Speaker(Protocol):
    """Whoever replies. Called with messages and how many tokens to say."""

    def __call__(self, messages: Sequence[Message], tokens: int) -> Said: ...


@dataclass
class Engine:
    """An agent of an engine. `options`: of each of its turns."""

    engine: DeltaMemEngine
    agent: str = "ada"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, messages: Sequence[Message], tokens: int) -> Said:
        begun, first, turn = time.perf_counter(), None, None
        sampling = Sampling(max_tokens=tokens, temperature=0)
        for chunk in self.engine.stream_turn(self.agent, messages, sampling=sampling, **self.options):
            if first is None and chunk.text:
                first = time.perf_counter()
            turn = chunk.turn or turn
        assert turn is not None
        usage, facts = turn.usage, turn.facts
        rate = (usage.completion_tokens - 1) / facts.decode_seconds if usage.completion_tokens > 1 else 0.0
        wait = (first or time.perf_counter()) - begun
        return Said(wait, rate, usage.completion_tokens, usage.prompt_tokens, facts.prefilled_tokens)


class _Clock(StoppingCriteria):
    """Notes when each token is there, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.BoolTensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]


@dataclass
class Generate:
    """transformers' own loop, which begins anew with every prompt. `most`: tokens of a prompt."""

    model: PreTrainedModel
    tokenizer: Any
    most: int

    def __call__(self, messages: Sequence[Message], tokens: int) -> Said:
        return self.batch([messages], tokens)[0]

    def batch(self, each: Sequence[Sequence[Message]], tokens: int) -> list[Said]:
        """Replies of equal length to several, in one batch."""
        rows = [self.prompt(messages) for messages in each]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        clock, begun = _Clock(), time.perf_counter()
        self.model.generate(
            input_ids=torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        times = clock.times
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        return [Said(times[0] - begun, rate, len(times), len(row), len(row)) for row in rows]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of the newest messages that fit, behind the first one."""
        said = [{"role": message.role, "content": message.content} for message in messages]
        start = 1
        while len(ids := self.encoded([said[0], *said[start:]])) > self.most:
            if start >= len(said) - 1:
                raise ValueError(f"the newest message takes {len(ids)} tokens, the context has room for {self.most}")
            start = min(start + max(2, (len(ids) - self.most) // 40), len(said) - 1)
        return ids

    def encoded(self, said: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass
class LlamaCpp:
    """llama.cpp on the .gguf file, through its server's own queue."""

    server: Any
    prompts: Generate

    @classmethod
    def opened(cls, model: str, prompts: Generate, at_once: int) -> LlamaCpp | None:
        """None where it is not installed, which is said."""
        gguf = installed_gguf() if model == EMBEDDED_MODEL else None
        try:
            import xllamacpp
        except ImportError:
            print("llama.cpp is left out: no wheel is installed (the extra 'benchmark')", file=sys.stderr)
            return None
        if gguf is None:
            print("llama.cpp is left out: the .gguf of this model is not installed", file=sys.stderr)
            return None
        options = xllamacpp.CommonParams()
        options.model.path = str(gguf)
        options.n_ctx, options.n_parallel = 1024 * at_once, at_once
        options.n_gpu_layers, options.verbosity = 0, -1
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
        return cls(xllamacpp.Server(options), prompts)

    def __call__(self, messages: Sequence[Message], tokens: int) -> Said:
        asked = {"prompt": self.prompts.prompt(messages), "max_tokens": tokens, "temperature": 0}
        begun = time.perf_counter()
        times = self.server.handle_completions({**asked, "ignore_eos": True, "cache_prompt": False})["timings"]
        seconds, decoding, count = time.perf_counter() - begun, times["predicted_ms"] / 1000, times["predicted_n"]
        rate = (count - 1) / decoding if count > 1 else 0.0
        return Said(seconds - decoding, rate, count, times["prompt_n"], times["prompt_n"])
