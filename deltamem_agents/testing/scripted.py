"""An engine with scripted replies, for fast offline tests of code that uses an engine.

Everything but the text of the replies is real. A tiny random model reads and writes a memory in a store, so alignment,
commits, streaming, usage and the facts of a turn behave as with a trained model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltamem_agents.chat.grammar import grammars_available
from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.inference.decode import Reply
from deltamem_agents.inference.kept import KEPT_BYTES
from deltamem_agents.inference.reply_text import as_text, stop_place
from deltamem_agents.loading import LoadedModel
from deltamem_agents.memory.attach import Adapter
from deltamem_agents.snapshots import LazyStore, StoreLike
from deltamem_agents.turns.planning import WritePolicy
from deltamem_agents.turns.running import Outcome, TurnRequest, TurnRunner
from deltamem_agents.types import Message, Tool, ToolCall, ToolChoice

WINDOW_TOKENS = 16_384
_CONTEXT = 32_768
_MARKS = ("<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


SELECTIVE = AdapterConfig(
    rank=4,
    key_shift=True,
    gate_floor=0.6,
    state_update_mode="no_lambda",
    rankwise_gates=False,
    read_scope="replies",
)
"""Config of a small adapter whose gates can close, so that it keeps statements."""

_DEFAULT = AdapterConfig(rank=4)


@dataclass(frozen=True)
class Asked:
    """The input of a script function."""

    agent: str | None
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice


Scripted: TypeAlias = "str | Message"
Script: TypeAlias = "Scripted | Sequence[Scripted] | Callable[[Asked], Scripted]"


class ScriptedEngine(DeltaMemEngine):
    """An engine whose replies come from a script. One byte is one token.

    `script`: one reply for every turn, a sequence with one reply per turn, or a function. With None the random model
    generates its own text, so only a grammar can make a reply valid. A Message may contain tool calls. If a reply does
    not match the grammar of a forced tool call or response schema, a short valid one replaces it. Stop strings and
    `max_tokens` apply as usual. `config`: the adapter's config. With `SELECTIVE` the engine keeps statements, which
    replies recall and which can be forgotten one by one.
    """

    def __init__(
        self,
        script: Script | None = "ok",
        store: StoreLike | LazyStore = "memory:",
        *,
        window_tokens: int = WINDOW_TOKENS,
        policy: WritePolicy = WritePolicy(),
        config: AdapterConfig = _DEFAULT,
        kept_cache_bytes: int = KEPT_BYTES,
        name: str = "scripted",
    ) -> None:
        model = _tiny_model()
        loaded = replace(LoadedModel.of(model, _byte_tokenizer(), name), name=name)
        adapter = _random_adapter(model, config)
        super().__init__(
            loaded, adapter, store, window_tokens=window_tokens, policy=policy, kept_cache_bytes=kept_cache_bytes
        )
        self._answer = None if script is None else _answers(script)

    def _turns(self) -> TurnRunner:
        runner = super()._turns()
        if self._answer is None:
            return runner
        return _ScriptedRunner(
            **{each.name: getattr(runner, each.name) for each in fields(runner)}, answer=self._answer
        )


@dataclass(frozen=True)
class _ScriptedRunner(TurnRunner):
    """Uses `answer` instead of the model's reply."""

    answer: Callable[[Asked], Scripted]

    def attempt(self, request: TurnRequest, number: int, forced: Reply | None = None) -> Generator[str, None, Outcome]:
        return (yield from super().attempt(request, number, forced or self._scripted(request)))

    def _scripted(self, request: TurnRequest) -> Reply:
        reply = self.answer(Asked(request.agent, request.messages, request.tools, request.tool_choice))
        text = reply if isinstance(reply, str) else _spelled(reply)
        ids = self._ids(text[: stop_place(text, request.sampling.stop, request.unstopped)])
        whole = True
        if request.grammar is not None and grammars_available():
            matcher = self.speaker.vocabulary.matcher(request.grammar)
            if not matcher.accepts(ids):
                way = matcher.way_out()
                ids, whole = tuple(way or ()), way is not None
        room = request.sampling.max_tokens
        kept = ids[:room]
        text = as_text(self.speaker.tokenizer, kept)
        return Reply(kept, text, "stop" if whole and len(kept) == len(ids) else "length", None)

    def _ids(self, text: str) -> tuple[int, ...]:
        encoded = self.speaker.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(cast("list[int]", encoded["input_ids"]))


def oblige(asked: Asked) -> Scripted:
    """A script for tests of tool loops: calls a tool, repeats a tool's result, or echoes the last message.

    It calls the required tool, else a tool named in the last message, else the first one. Required arguments are made
    up from the last message.
    """
    last = asked.messages[-1]
    if last.role == "tool":
        return f"It is {last.content}."
    if not asked.tools or asked.tool_choice == "none":
        return f"You said: {last.content}"
    named = [tool for tool in asked.tools if tool.name == asked.tool_choice]
    mentioned = [tool for tool in asked.tools if tool.name in last.content]
    tool = (named or mentioned or list(asked.tools))[0]
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    return Message(
        "assistant", "", (ToolCall(tool.name, {name: _argument(properties[name], last.content) for name in required}),)
    )


def _argument(schema: Mapping[str, Any], text: str) -> object:
    """A value that matches the schema, taken from the text if possible."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind in ("integer", "number"):
        number = re.search(r"\d+", text)
        return int(number.group()) if number else 0
    if kind == "boolean":
        return True
    name = re.search(r"[^\x00-\x7f]+|(?<=[a-z,] )[A-Z]\w+", text)
    return name.group() if name else text


def _answers(script: Script) -> Callable[[Asked], Scripted]:
    if isinstance(script, (str, Message)):
        return lambda _: script
    if callable(script):
        return script
    replies, lock = iter(script), threading.Lock()

    def following(_: Asked) -> Scripted:
        with lock:
            return _next(replies)

    return following


def _next(replies: Iterator[Scripted]) -> Scripted:
    for reply in replies:
        return reply
    raise ConfigError("the script has no reply left for this turn; give one reply for each turn")


def _spelled(message: Message) -> str:
    calls = format_tool_calls(message.tool_calls)
    return "\n".join(filter(None, [message.content, calls]))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in _MARKS])
    end = _MARKS[1]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end, chat_template=_TEMPLATE)


def _tiny_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256 + len(_MARKS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=257,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def _random_adapter(model: LlamaForCausalLM, config: AdapterConfig) -> Adapter:
    """An adapter with weights large enough that different conversations leave different memories."""
    adapter = Adapter.for_model(config, model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in adapter.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return adapter.requires_grad_(False)
