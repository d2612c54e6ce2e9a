"""The frozen model's own words: what is said, memory or not, where nothing is asked of the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from deltamem_agents.loading import LoadedModel
from deltamem_agents.types import Message

BATCH = 24
DRAWN_AT_ONCE = 48

LIKELIEST = 0.95
"""Prompts are drawn from the likeliest tokens that have so much of the probability together."""

DRAWS_A_PROMPT = 8
"""So many are drawn at most for each that is wanted: a model that never ends a message gives none."""

PLACE = "{content}"

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


@torch.no_grad()
def own_prompts(
    loaded: LoadedModel, count: int, *, max_tokens: int, seed: int, say: Callable[[str], None]
) -> list[str]:
    """`count` different messages of at most `max_tokens` tokens that users might send, drawn from the model itself.

    An instructed model that is shown where a user's message begins goes on with one (arXiv 2406.08464). Equal seeds
    give equal messages on one machine.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    shown = cast(str, tokenizer.apply_chat_template([{"role": "user", "content": PLACE}], tokenize=False))
    lead, _, rest = shown.partition(PLACE)
    lead_ids = torch.tensor([tokenizer.encode(lead, add_special_tokens=False)], device=model.device)
    ends = tokenizer.encode(rest, add_special_tokens=False)[:1]
    special = set(tokenizer.get_added_vocab().values())
    given = lead_ids.expand(DRAWN_AT_ONCE, -1)
    found: dict[str, None] = {}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(-(-DRAWS_A_PROMPT * count // DRAWN_AT_ONCE)):
            if len(found) >= count:
                break
            ids = cast(Any, model).generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=LIKELIEST,
                top_k=0,
                eos_token_id=ends,
            )
            for row in ids[:, lead_ids.shape[1] :].tolist():
                # One that was cut short, or holds the template's own tokens, is not what anybody would send.
                message = row[: row.index(ends[0])] if ends[0] in row else []
                if special.isdisjoint(message) and (text := cast(str, tokenizer.decode(message)).strip()):
                    found.setdefault(text)
            say(f"prompts of the frozen model: {min(len(found), count)} of {count}")
    return list(found)[:count]
