"""Offline batches: absorb, reply to or score many sequences in the same forward passes.

Each row is a sequence with its own memory, and rows do not interact. A row's result equals that of the sequence alone,
up to the rounding of larger matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from deltamem_agents.inference.passes import PREFILL_CHUNK, Piece, Prompt, pieces_of
from deltamem_agents.inference.pointing import Pointing, newest_queries
from deltamem_agents.inference.prompts import Prompts
from deltamem_agents.memory.attach import CALL_KEYWORD
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache, last_place, with_cache
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import collected
from deltamem_agents.types import Message, Score

BATCH_TOKENS = 2048
"""Most tokens of one batch, padding included; a single longer row is allowed.

Larger batches take longer per token, since their activations no longer fit a CPU's cache.
"""


def absorb_batch(
    model: nn.Module,
    prompts: Prompts,
    states: Sequence[MemoryState],
    conversations: Sequence[Sequence[Message]],
    advance: Callable[[int], None],
) -> list[MemoryState]:
    """The states after absorbing one conversation each, in the segments in which a single one would be absorbed.

    `states`: on the model's device and settled. `advance(tokens)` is called after tokens are written.
    """
    found = list(states)
    waiting = [prompts.segments(messages, None) for messages in conversations]
    rows = list(range(len(waiting)))
    while rows:
        due = [(row, segment) for row in rows if (segment := next(waiting[row], None)) is not None]
        rows = [row for row, _ in due]
        for part in _fitting(due):
            state = MemoryState.cat([found[row] for row, _ in part])
            state = write_batch(model, state, [segment for _, segment in part])
            for place, (row, segment) in enumerate(part):
                found[row] = state[place]
                advance(len(segment))
    return found


def collect_batch(
    model: nn.Module,
    prompts: Prompts,
    empty: MemoryState,
    conversations: Sequence[Sequence[Message]],
    advance: Callable[[int], None],
) -> list[list[Piece]]:
    """The writes of each conversation, the same as for that conversation alone; the memory is not read.

    `empty`: the empty memory. `advance(tokens)` is called after tokens are written.
    """
    found: list[list[Piece]] = [[] for _ in conversations]
    waiting = [prompts.segments(messages, None) for messages in conversations]
    rows = list(range(len(waiting)))
    while rows:
        due = [(row, segment) for row in rows if (segment := next(waiting[row], None)) is not None]
        rows = [row for row, _ in due]
        for part in _fitting(due):
            state = MemoryState.cat([empty] * len(part))
            write_batch(model, state, [segment for _, segment in part], [found[row] for row, _ in part])
            advance(sum(len(segment) for _, segment in part))
    return found


@torch.no_grad()
def write_batch(
    model: nn.Module, state: MemoryState, prompts: Sequence[Prompt], pieces: Sequence[list[Piece]] | None = None
) -> MemoryState:
    """The state after each prompt was processed and written; one row per prompt.

    `pieces`: if given, each prompt's writes are appended there, and the state is not changed.
    """
    rows = _Rows(prompts, model, left=False)
    cache = rows.cache_of_lead()
    for start in range(0, rows.width, PREFILL_CHUNK):
        part = slice(start, start + PREFILL_CHUNK)
        call = MemoryCall(
            state,
            rows.reads[:, part],
            rows.writes[:, part],
            rows.message_ids[:, part],
            rows.replies[:, part],
            unfinished=part.stop < rows.width,
            written=None if pieces is None else {},
            applies=pieces is None,
        )
        # Right padding: in a causal model the tokens do not see what comes after them.
        model(
            input_ids=rows.ids[:, part],
            logits_to_keep=last_place(rows.ids.device),
            **with_cache(model, cache),
            **{CALL_KEYWORD: call},
        )
        state = call.new_state()
        if pieces is not None:
            own = slice(part.start + rows.lead, part.stop + rows.lead)
            for (places, writes), prompt, into in zip(collected(call), prompts, pieces, strict=True):
                into.extend(pieces_of(places, writes, prompt, own))
    return state.settled()


@torch.no_grad()
def greedy_batch(
    model: nn.Module,
    state: MemoryState | None,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    end_ids: frozenset[int],
    pointing: Sequence[Pointing | None] | None = None,
) -> list[list[int]]:
    """Greedy replies, each reading its own row of `state`; nothing is written.

    `pointing`: for each reply, what raises the logits of recalled tokens; None for nothing.
    """
    rows = _Rows(prompts, model, left=True)
    tokens, reads, speaks, attended = rows.ids, rows.reads, rows.replies, rows.attended
    cache = rows.cache_of_lead()
    replies: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for _ in range(max_tokens):
        positions = (attended.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        queries: dict[int, Tensor] | None = None if pointing is None else {}
        call = None if state is None else MemoryCall(state, reads, replies=speaks, queries=queries)
        memory = {} if call is None else {CALL_KEYWORD: call}
        out = model(
            input_ids=tokens,
            attention_mask=attended,
            position_ids=positions,
            logits_to_keep=last_place(rows.ids.device),
            **with_cache(model, cache),
            **memory,
        )
        logits = out.logits[:, -1].float()
        if call is not None and pointing is not None:
            asked = newest_queries(call)
            for row, each in enumerate(pointing):
                if each is not None and running[row]:
                    logits[row] = each.added(logits[row], asked[row], int(tokens[row, -1]))
        chosen = logits.argmax(-1)
        for index, token in enumerate(chosen.tolist()):
            running[index] = running[index] and token not in end_ids
            if running[index]:
                replies[index].append(token)
        if not any(running):
            break
        tokens = chosen[:, None]
        reads = speaks = torch.ones_like(tokens, dtype=torch.bool)
        attended = torch.cat([attended, torch.ones_like(tokens)], dim=1)
    return replies


@torch.no_grad()
def score_batch(
    model: nn.Module, state: MemoryState | None, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[Score]:
    """Score each answer's tokens after its prompt, which reads its own row of `state`; nothing is written."""
    shown = [_followed(prompt, answer[:-1]) for prompt, answer in zip(prompts, answers, strict=True)]
    rows = _Rows(shown, model, left=True)
    longest = max(map(len, answers))
    logits = model(
        input_ids=rows.ids,
        attention_mask=rows.attended,
        position_ids=(rows.attended.cumsum(-1) - 1).clamp_min(0)[:, -rows.width :],
        logits_to_keep=torch.arange(-longest, 0, device=rows.ids.device),
        **with_cache(model, rows.cache_of_lead()),
        **({} if state is None else {CALL_KEYWORD: MemoryCall(state, rows.reads, replies=rows.replies)}),
    ).logits
    scores = []
    for row, answer in enumerate(answers):
        targets = torch.tensor(answer, device=logits.device)
        predicted = logits[row, -len(answer) :].float()
        logprobs = predicted.log_softmax(-1).gather(1, targets[:, None])
        greedy = bool((predicted.argmax(-1) == targets).all())
        scores.append(Score(float(logprobs.double().sum()), len(answer), greedy))
    return scores


def _followed(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """The prompt followed by `tokens`, which read the memory and are not written."""
    count = len(tokens)
    return Prompt(
        (*prompt.ids, *tokens),
        prompt.reads + (True,) * count,
        prompt.writes + (False,) * count,
        prompt.message_ids + (-1,) * count,
        prompt.replies + (True,) * count,
    )


class _Rows:
    """Prompts as padded tensors (rows, width), without the lead: the first tokens, which all of them share.

    `attended`: (rows, lead + width), 0 for padding, else 1. `lead`: number of tokens of the lead.
    """

    def __init__(self, prompts: Sequence[Prompt], model: nn.Module, *, left: bool) -> None:
        self._model, self._count = model, len(prompts)
        self._device = next(model.parameters()).device
        lead = _shared_lead(prompts)
        self._lead, self.lead = prompts[0].ids[:lead], lead
        self.width = max(map(len, prompts)) - lead

        def padded(values: Callable[[Prompt], Sequence[int]], fill: int, dtype: torch.dtype) -> Tensor:
            rows = []
            for prompt in prompts:
                own, padding = list(values(prompt))[lead:], [fill] * (self.width + lead - len(prompt))
                rows.append(padding + own if left else own + padding)
            return torch.tensor(rows, dtype=dtype, device=self._device)

        self.ids = padded(lambda prompt: prompt.ids, 0, torch.long)
        self.reads = padded(lambda prompt: prompt.reads, False, torch.bool)
        self.writes = padded(lambda prompt: prompt.writes, False, torch.bool)
        self.replies = padded(lambda prompt: prompt.replies, False, torch.bool)
        self.message_ids = padded(lambda prompt: prompt.message_ids, -1, torch.long)
        own = padded(lambda prompt: (1,) * len(prompt), 0, torch.long)
        self.attended = torch.cat([own.new_ones(len(prompts), lead), own], dim=1)

    def cache_of_lead(self) -> KeyValueCache:
        """A cache with the lead's keys and values in every row; they are computed once."""
        cache = empty_cache()
        if self._lead:
            ids = torch.tensor([self._lead], device=self._device)
            self._model(input_ids=ids, logits_to_keep=last_place(self._device), **with_cache(self._model, cache))
            cache.batch_repeat_interleave(self._count)
        return cache


def _shared_lead(prompts: Sequence[Prompt]) -> int:
    """Length of the common prefix of all prompts whose tokens neither read nor write, so that no memory affects it.

    At least one token of every prompt is left after it.
    """
    shortest = min(map(len, prompts)) - 1
    columns = zip(*(prompt.ids[:shortest] for prompt in prompts), strict=True)
    untouched = zip(*(map(any, zip(p.reads, p.writes, strict=True)) for p in prompts), strict=False)
    places = (len(set(ids)) == 1 and not any(touched) for ids, touched in zip(columns, untouched, strict=False))
    return next((place for place, shared in enumerate(places) if not shared), shortest)


def _fitting(due: Sequence[tuple[int, Prompt]]) -> Iterator[list[tuple[int, Prompt]]]:
    """The rows in batches of similar lengths, to keep padding small."""
    part: list[tuple[int, Prompt]] = []
    for row, segment in sorted(due, key=lambda one: len(one[1]), reverse=True):
        if part and (len(part) + 1) * len(part[0][1]) > BATCH_TOKENS:
            yield part
            part = []
        part.append((row, segment))
    if part:
        yield part
