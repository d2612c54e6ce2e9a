"""The frozen model's own replies: what is said, memory or not, where nothing is asked of the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from deltamem_agents.loading import LoadedModel
from deltamem_agents.types import Message

BATCH = 24

Neutral = tuple[Message, Message]


@torch.no_grad()
def own_replies(
    loaded: LoadedModel, prompts: Sequence[str], *, max_tokens: int, say: Callable[[str], None]
) -> list[Neutral]:
    """Each prompt with the model's greedy reply of at most `max_tokens` tokens. Empty replies are left out."""
    model, tokenizer = loaded.model, loaded.tokenizer
    found: list[Neutral] = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        given = cast(
            "dict[str, Any]",
            tokenizer.apply_chat_template(
                [[{"role": "user", "content": prompt}] for prompt in some],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                padding=True,
                return_tensors="pt",
                tokenizer_kwargs={"padding_side": "left"},
            ),
        )
        inputs = {name: value.to(model.device) for name, value in given.items()}
        ids = cast(Any, model).generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs = zip(some, texts, strict=True)
        found += [
            (Message("user", prompt), Message("assistant", text.strip())) for prompt, text in pairs if text.strip()
        ]
        say(f"replies of the frozen model: {min(start + BATCH, len(prompts))} of {len(prompts)}")
    return found
