"""Messages to prompts: which tokens are fed, which of them read the memory, and which are written to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from deltamem_agents.chat.speaking import lead_length, replies
from deltamem_agents.chat.template import ChatTemplate, Rendered
from deltamem_agents.errors import WindowError
from deltamem_agents.inference.decode import Prompt
from deltamem_agents.types import Message, Role, Tool


@dataclass(frozen=True)
class Window:
    """The prompt of a turn. `start`: the first message in it that is no leading system message.

    `overflow`: positions of the new messages before `start`, which are absorbed ahead of the prompt.
    """

    prompt: Prompt
    start: int
    overflow: tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """Renders with one template. `tokens` bounds a prompt together with its reply; `roles` may be written.

    The lead, up to one token before the first content that is not a system message, neither reads nor writes: it is
    the same for every memory.
    """

    template: ChatTemplate
    tokens: int
    roles: tuple[Role, ...]

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self.template.end_ids

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end a reply, for models without a chat template of their own."""
        return self.template.stop_texts

    def window(
        self, messages: Sequence[Message], tools: Sequence[Tool], reply_tokens: int, new: Collection[int]
    ) -> Window:
        """The newest messages that leave room for `reply_tokens`, those at positions `new` to be written.

        Raises WindowError when the newest message alone does not fit.
        """
        budget = self.tokens - reply_tokens
        if budget <= 0:
            raise WindowError(
                f"a reply of up to {reply_tokens} tokens leaves no room for a prompt in a window of {self.tokens}; "
                "lower Sampling.max_tokens or raise window_tokens"
            )
        start = self.template.fit_window(messages, budget, tools=tools)
        kept = _leading_system(messages, start) + list(range(start, len(messages)))
        rendered = self.template.render([messages[i] for i in kept], tools=tools)
        writes = {place for place, position in enumerate(kept) if position in new}
        overflow = tuple(position for position in sorted(new) if position not in kept)
        prompt = self._prompt(rendered, [messages[i] for i in kept], writes, prompted=True)
        return Window(prompt, start, overflow)

    def segments(self, messages: Sequence[Message], positions: Collection[int] | None) -> Iterator[Prompt]:
        """Prompts of bounded size that together write `messages`, whole messages as far as they fit.

        `positions`: which are written, None for all whose role may be.
        """
        wanted = range(len(messages)) if positions is None else positions
        pieces = [
            piece
            for position, message in enumerate(messages)
            if position in wanted and message.role in self.roles
            for piece in self._fitting(message)
        ]
        start = 0
        while start < len(pieces):
            stop = self._fill(pieces, start)
            chosen = pieces[start:stop]
            yield self._prompt(self.template.render(chosen, generation_prompt=False), chosen, range(len(chosen)))
            start = stop

    def content_tokens(self, messages: Sequence[Message]) -> int:
        rendered = self.template.render(messages, generation_prompt=False)
        return sum(owner >= 0 for owner in rendered.owner)

    def with_answer(self, messages: Sequence[Message], answer: str) -> tuple[Prompt, tuple[int, ...]]:
        """A prompt that only reads, and the tokens of an answer to it."""
        rendered, tokens = self.template.encode_answer(messages, answer)
        return self._prompt(rendered, messages, (), prompted=True), tokens

    def reading(self, messages: Sequence[Message]) -> Prompt:
        """A prompt that only reads; it ends inside the last message when that is the assistant's."""
        prefilled = bool(messages) and messages[-1].role == "assistant"
        rendered = self.template.render(messages, generation_prompt=not prefilled, continue_final=prefilled)
        return self._prompt(rendered, messages, (), prompted=True)

    def _prompt(
        self, rendered: Rendered, messages: Sequence[Message], writes: Collection[int], *, prompted: bool = False
    ) -> Prompt:
        lead = lead_length(rendered.owner, messages)
        return Prompt(
            ids=tuple(rendered.ids),
            reads=tuple(place >= lead for place in range(len(rendered.ids))),
            writes=tuple(owner in writes for owner in rendered.owner),
            message_ids=tuple(rendered.owner),
            replies=replies(rendered.owner, messages, prompted=prompted),
        )

    def _size(self, messages: Sequence[Message]) -> int:
        return len(self.template.render(messages, generation_prompt=False).ids)

    def _fill(self, pieces: Sequence[Message], start: int) -> int:
        """One past the last message that fits into a segment with those from `start`; at least one does."""
        low, high = start + 1, len(pieces)
        while low < high:
            middle = (low + high + 1) // 2
            if self._size(pieces[start:middle]) <= self.tokens:
                low = middle
            else:
                high = middle - 1
        return low

    def _fitting(self, message: Message) -> Iterator[Message]:
        """The message, in halves of halves where it is larger than a segment."""
        if self._size([message]) <= self.tokens or len(message.content) < 2:
            yield message
            return
        middle = len(message.content) // 2
        space = message.content.rfind(" ", 0, middle)
        cut = space if space > 0 else middle
        for part in (message.content[:cut], message.content[cut:]):
            yield from self._fitting(Message(message.role, part, (), message.tool_call_id, message.name))


def _leading_system(messages: Sequence[Message], start: int) -> list[int]:
    """Positions of the system messages at the front, as far as the window cut them off."""
    count = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return list(range(min(count, start)))
