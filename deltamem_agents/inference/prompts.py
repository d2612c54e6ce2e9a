"""Turns messages into prompts: token ids, which tokens read the memory, and which are written to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.chat.shortening import Stretch, counts, head_and_tail, in_parts, keep
from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.chat.template import ChatTemplate, Rendered, lead_and_starts
from deltamem_agents.errors import WindowError
from deltamem_agents.inference.passes import Prompt
from deltamem_agents.types import Message, Role, Tool

LEAST_SHOWN = 64
"""Fewest content tokens of a shortened message that are worth showing."""

Shown = Mapping[int, Sequence[Stretch]]
"""The shown parts of a prompt's messages, by position in the prompt. A message that is missing is shown whole."""


@dataclass(frozen=True)
class Window:
    """The prompt of a turn. `start`: position of its first message that is not a leading system message.

    `absorbed`: positions of new messages that are absorbed before the prompt, because it does not show them whole.
    `unshown`: number of tokens of its messages that were left out.
    """

    prompt: Prompt
    start: int
    absorbed: tuple[int, ...]
    unshown: int


@dataclass(frozen=True)
class Prompts:
    """Renders prompts with one template.

    `tokens`: maximum of a prompt and its reply together. `roles`: messages of these roles may be written.
    `message_tokens`: maximum number of tokens written of one message, from its head and tail. Which tokens these are
    does not depend on the message's position.
    The lead is everything up to one token before the first content that is not a system message. It neither reads nor
    writes, so it is the same for every memory.
    """

    template: ChatTemplate
    tokens: int
    roles: tuple[Role, ...]
    message_tokens: int

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self.template.end_ids

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end a reply, for models without a chat template of their own."""
        return self.template.stop_texts

    def window(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        reply_tokens: int,
        new: Collection[int],
        *,
        start: int | None = None,
    ) -> Window:
        """The window of the newest messages that leaves room for `reply_tokens`. Messages at `new` are written.

        `start`: position of the first message if that fits. If it does not fit, or is None, the window chooses.
        If the newest message alone does not fit, its head and tail are shown. Then it is absorbed before the prompt,
        and so are the new messages before it, so that all are written in order.
        Raises WindowError if there is no room even for head and tail.
        """
        budget = self.tokens - reply_tokens
        if budget <= 0:
            raise WindowError(
                f"a reply of up to {reply_tokens} tokens leaves no room for a prompt in a window of {self.tokens}; "
                "lower Sampling.max_tokens or raise window_tokens"
            )
        template = self.template.for_one_call()
        cut: dict[int, tuple[Stretch, ...]] = {}
        spared = unshown = 0
        try:
            if start is None or template.count(_from(messages, start), tools=tools) > budget:
                start = template.fit_window(messages, budget, tools=tools)
        except WindowError:
            cut, spared, unshown = self._shortened(template, messages, tools, budget)
            if not cut:
                raise
            start = template.fit_window(messages, budget + spared, tools=tools)
        kept = _leading_system(messages, start) + list(range(start, len(messages)))
        ahead = max((position for position in cut if position in new), default=-1)
        rendered = template.render([messages[i] for i in kept], tools=tools)
        prompt = self._prompt(
            rendered,
            [messages[i] for i in kept],
            {place for place, position in enumerate(kept) if position in new and position > ahead},
            shown={place: cut[position] for place, position in enumerate(kept) if position in cut},
            prompted=True,
        )
        prompt = replace(prompt, positions=tuple(kept))
        absorbed = tuple(position for position in sorted(new) if position not in kept or position <= ahead)
        return Window(prompt, start, absorbed, unshown)

    def segments(self, messages: Sequence[Message], positions: Collection[int] | None) -> Iterator[Prompt]:
        """Prompts of bounded size that together write `messages`. A message is split only if it does not fit whole.

        `positions`: positions of the messages to write, None for all whose role may be written.
        """
        template = self.template.for_one_call()
        wanted = range(len(messages)) if positions is None else positions
        parts = [
            replace(part, position=position)
            for position, message in enumerate(messages)
            if position in wanted and message.role in self.roles
            for part in self._parts(template, message)
        ]
        start = 0
        while start < len(parts):
            stop = self._fill(template, parts, start)
            yield self._segment(template, parts[start:stop])
            start = stop

    def content_tokens(self, messages: Sequence[Message]) -> int:
        rendered = self.template.render(messages, generation_prompt=False)
        return sum(owner >= 0 for owner in rendered.owner)

    def with_answer(self, messages: Sequence[Message], answer: str) -> tuple[Prompt, tuple[int, ...]]:
        """A prompt that only reads, and the tokens of an answer to it."""
        rendered, tokens = self.template.encode_answer(messages, answer)
        return self._prompt(rendered, messages, (), prompted=True), tokens

    def reading(self, messages: Sequence[Message]) -> Prompt:
        """A prompt that only reads. It ends inside the last message if that is the assistant's."""
        prefilled = bool(messages) and messages[-1].role == "assistant"
        rendered = self.template.render(messages, generation_prompt=not prefilled, continue_final=prefilled)
        return self._prompt(rendered, messages, (), prompted=True)

    def _prompt(
        self,
        rendered: Rendered,
        messages: Sequence[Message],
        writes: Collection[int],
        *,
        shown: Shown | None = None,
        prompted: bool = False,
    ) -> Prompt:
        sizes = counts(rendered.owner)
        kept = keep(rendered.ids, rendered.owner, shown or {}, self._mark)
        lead = lead_length(kept.owner, messages)
        written = {owner: head_and_tail(sizes.get(owner, 0), self.message_tokens) for owner in writes}
        return Prompt(
            ids=kept.ids,
            reads=tuple(place >= lead for place in range(len(kept.ids))),
            writes=tuple(
                owner in written and any(place in stretch for stretch in written[owner])
                for owner, place in zip(kept.owner, kept.place, strict=True)
            ),
            message_ids=kept.owner,
            replies=replies(kept.owner, messages, prompted=prompted),
            messages=sum(sizes.get(owner, 0) > 0 for owner in writes),
            unwritten=sum(max(0, sizes.get(owner, 0) - self.message_tokens) for owner in writes),
        )

    def _segment(self, template: ChatTemplate, parts: Sequence[_Part]) -> Prompt:
        """The prompt that writes these parts. A message is counted with its first part."""
        messages = [part.message for part in parts]
        rendered = template.render(messages, generation_prompt=False)
        prompt = self._prompt(rendered, messages, range(len(parts)), shown=_kept(parts))
        first = [part for part in parts if part.first]
        return replace(
            prompt,
            messages=sum(bool(part.kept) for part in first),
            unwritten=sum(part.unwritten for part in first),
            positions=tuple(part.position for part in parts),
        )

    def _shortened(
        self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool], budget: int
    ) -> tuple[dict[int, tuple[Stretch, ...]], int, int]:
        """The shown parts of the newest messages when these do not fit whole; empty if there is too little room.

        Also returns the number of tokens saved and of tokens left out. A quarter of the room is for earlier messages.
        """
        lead, starts = lead_and_starts(messages)
        rendered = template.render([*messages[:lead], *messages[starts[-1] :]], tools=tools)
        found = counts(rendered.owner).items()
        sizes = {owner - lead + starts[-1]: size for owner, size in found if owner >= lead}
        room = budget - len(rendered.ids) + sum(sizes.values())
        for reserve in (budget // 4 if starts[-1] > lead else 0, 0):
            limit = self._limit(sizes.values(), room - reserve)
            if limit >= LEAST_SHOWN:
                cut = {position: size for position, size in sizes.items() if size > limit}
                left_out = sum(size - limit for size in cut.values())
                marks = sum(len(self._mark(size - limit)) for size in cut.values())
                shown = {position: head_and_tail(size, limit) for position, size in cut.items()}
                return shown, left_out - marks, left_out
        return {}, 0, 0

    def _limit(self, sizes: Collection[int], room: int) -> int:
        """The number of tokens to show of each message so that all fit. Shorter messages are shown whole."""

        def taken(limit: int) -> int:
            return sum(size if size <= limit else limit + len(self._mark(size - limit)) for size in sizes)

        low, high = 0, max(sizes, default=0)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if taken(middle) <= room else (low, middle - 1)
        return low

    def _mark(self, left_out: int) -> tuple[int, ...]:
        return self.template.content(f"\n[... {left_out:,} tokens left out ...]\n")

    def _parts(self, template: ChatTemplate, message: Message) -> list[_Part]:
        """The written part of the message, split where it is larger than a segment."""
        rendered = template.render([message], generation_prompt=False)
        size = counts(rendered.owner).get(0, 0)
        kept = head_and_tail(size, self.message_tokens)
        unwritten = size - sum(map(len, kept))
        around = len(rendered.ids) - size + (len(self._mark(unwritten)) if unwritten else 0)
        parts = in_parts(kept, max(1, self.tokens - around))
        return [_Part(message, part, number == 0, unwritten) for number, part in enumerate(parts)]

    def _fill(self, template: ChatTemplate, parts: Sequence[_Part], start: int) -> int:
        """The end (exclusive) of the parts from `start` that fit into one segment. It holds at least one."""

        def fits(stop: int) -> bool:
            chosen = parts[start:stop]
            rendered = template.render([part.message for part in chosen], generation_prompt=False)
            return len(keep(rendered.ids, rendered.owner, _kept(chosen), self._mark).ids) <= self.tokens

        low, step = start + 1, 1
        while low < len(parts) and fits(min(low + step, len(parts))):
            low, step = min(low + step, len(parts)), step * 2
        high = min(low + step, len(parts))
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fits(middle + 1) else (low, middle)
        return low


@dataclass(frozen=True)
class _Part:
    """Stretches of a message that are written together.

    `unwritten`: number of the message's tokens that no part writes. `position`: the message's position in the history.
    """

    message: Message
    kept: tuple[Stretch, ...]
    first: bool
    unwritten: int
    position: int = 0


def _kept(parts: Sequence[_Part]) -> Shown:
    return {place: part.kept for place, part in enumerate(parts)}


def _leading_system(messages: Sequence[Message], start: int) -> list[int]:
    """Positions of the leading system messages that stand before the window's start."""
    count = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return list(range(min(count, start)))


def _from(messages: Sequence[Message], start: int) -> list[Message]:
    return [messages[position] for position in (*_leading_system(messages, start), *range(start, len(messages)))]
