"""Tokenizers trained in milliseconds, and chat templates like those of known model families."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The user says: hello there, my name is Ada and I live in Oslo. You are a helpful assistant.",
    "Where do I live? You live in Oslo, the capital of Norway. The code is blue. Thanks, and good bye!",
    'system user assistant tool\n\n{"name": "get_weather", "arguments": {"city": "Oslo"}} {"type": "object"}',
]

CHATML = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor -%}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif -%}
{% for m in messages -%}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{% set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor -%}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Turns without control tokens, a space before the content, and strict about roles.
INST = """{{ bos_token }}{% if messages[0]['role'] == 'system' -%}
{% set told = messages[0]['content'] %}{% set rest = messages[1:] -%}
{% else %}{% set rest = messages %}{% endif -%}
{% for m in rest -%}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{% if m['role'] == 'user' -%}
{% if loop.last and told is defined %}{{ '[INST] ' + told + '\\n\\n' + m['content'] + ' [/INST]' -}}
{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif -%}
{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"""

# Writes tools, calls and results itself, joins results of one round in one turn, and drops old reasoning.
TOOLED = """{% if tools -%}
{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}
{{ 'Tools:\\n<tools>' }}{% for t in tools %}{{ '\\n' }}{{ t | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' -}}
{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif -%}
{% for m in messages -%}
{% if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{% elif m.role == 'assistant' -%}
{% set content = m.content -%}
{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif -%}
{{ '<|im_start|>assistant' -}}
{% if loop.last and '</think>' in m.content -%}
{{ '\\n<think>\\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() + '\\n</think>\\n\\n' + content -}}
{% elif loop.last %}{{ '\\n<think>\\n\\n</think>\\n\\n' + content -}}
{% elif content or not m.tool_calls %}{{ '\\n' + content }}{% endif -%}
{% for c in m.tool_calls or [] -%}
{{ '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson -}}
{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' -}}
{% elif m.role == 'tool' -%}
{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}{% endif -%}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The same with calls directly between two control tokens.
TIGHT = (
    TOOLED.replace("'<|im_start|>assistant' -", "'<|assistant|>' -")
    .replace("'\\n<tool_call>\\n{", "'<|python_tag|>{")
    .replace("'}\\n</tool_call>'", "'}<|eom|>'")
)

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|assistant|>", "<|python_tag|>", "<|eom|>",
)  # fmt: skip
TURN_ENDS = {
    CHATML: "<|im_end|>",
    LLAMA3: "<|eot_id|>",
    GEMMA: "<end_of_turn>",
    INST: "</s>",
    TOOLED: "<|im_end|>",
    TIGHT: "<|im_end|>",
}
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "inst": INST,
    "tooled": TOOLED,
    "tight": TIGHT,
    "plain": None,
}


@cache
def byte_bpe(template: str | None, *, special: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE. `special` False: turn marks are added tokens that the tokenizer does not call special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return _finished(backend, template, special, adds_bos)


@cache
def sentence_bpe(template: str | None, *, spells_bytes: bool = True, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A BPE like SentencePiece: "▁" for a space, one before the first word, bytes for unknown characters."""
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = spaces
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)] if spells_bytes else []
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *spelled, *learned["vocab"]])}
    merges = [tuple(merge) for merge in learned["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=spells_bytes))
    backend.pre_tokenizer = spaces
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _finished(backend, template, True, adds_bos, unk_token=None if spells_bytes else "<unk>")


def _finished(
    backend: Tokenizer, template: str | None, special: bool, adds_bos: bool, unk_token: str | None = None
) -> PreTrainedTokenizerFast:
    add = backend.add_special_tokens if special else backend.add_tokens
    add([AddedToken(text, special=special, normalized=False) for text in SPECIAL])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token=unk_token,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
