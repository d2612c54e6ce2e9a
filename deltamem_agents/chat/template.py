"""Converts messages to token ids with the model's chat template, and records which message each token belongs to.

The template is rendered once with a mark in place of each content, which gives the scaffolding (the template's own
text), and once with the contents, which shows how the template changes them. Scaffolding is encoded with control
tokens, contents without. So a user's "<|im_end|>" stays text, spans are exact, and a message has the same tokens at
every position. A single space at the end of scaffolding is encoded with the content after it, because tokenizers join
it to the word.

A model without a template gets "User: …" and "Assistant: …" lines after the plain system text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

from deltamem_agents.chat.blocks import steady_start
from deltamem_agents.chat.encoding import Encoder, TokenizerLike
from deltamem_agents.chat.layout import NOBODY, Segment, Slot, Traits, lay_out
from deltamem_agents.chat.spans import Located, locate, shared_length
from deltamem_agents.chat.tool_calls import parse_tool_calls
from deltamem_agents.chat.wire import Mask, wire_slot, wire_tool
from deltamem_agents.errors import MessageError, UnsupportedModelError, WindowError
from deltamem_agents.types import Message, Tool, ToolCall

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens. `owner[i]`: index of the message that token i belongs to, −1 for scaffolding."""

    ids: tuple[int, ...]
    owner: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class _Piece:
    """A part of the prompt that is encoded separately. `plain`: a message's text, encoded without control tokens."""

    text: str
    owner: int
    plain: bool


class ChatTemplate:
    """One tokenizer's chat template. It does not cache what it renders.

    Raises UnsupportedModelError if the contents of even a plain exchange cannot be found in the rendered text.
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._template = None if tokenizer.chat_template else _plain_template(tokenizer)
        self.traits = self._probe()
        self._guard_turn_marks()

    def for_one_call(self) -> Self:
        """A copy of this template with a cache of tokens, for work that renders the same messages repeatedly."""
        twin = copy(self)
        twin._encoder = self._encoder.for_one_call()
        return twin

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply: end of sequence, and the control token that closes an assistant's turn."""
        closing = self._encoder.scaffold(self._exchange()[-1].text)[:1]
        ends = {token for token in closing if self._encoder.is_control(token)}
        end = self._tokenizer.eos_token_id
        return frozenset(ends if end is None else {*ends, end})

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end a reply. A model without a template has no end token and would continue as the user."""
        return () if self._template is None else ("\nUser:",)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> Rendered:
        """The prompt for these messages.

        `generation_prompt`: whether to end with the start of the assistant's next turn. `continue_final`: end inside
        the last message instead, which must be the assistant's, so that it is continued. An assistant's tool calls
        count as its content.

        Raises MessageError if there are no messages or the template refuses them, UnsupportedModelError if contents
        cannot be found in the rendered text.
        """
        if not messages:
            raise MessageError("there are no messages to render; give at least one")
        if continue_final:
            _require_prefill(messages[-1])
            if not messages[-1].content.strip():
                return self.render(messages[:-1], tools=tools)
        return self._render(messages, tools, generation_prompt and not continue_final, continue_final)

    def content(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as they are inside a message."""
        return self._encoder.content(text)

    def count(self, messages: Sequence[Message], *, tools: Sequence[Tool] = ()) -> int:
        """Number of tokens of the prompt for these messages."""
        return len(self.render(messages, tools=tools).ids)

    def encode_answer(
        self, messages: Sequence[Message], answer: str, *, tools: Sequence[Tool] = ()
    ) -> tuple[Rendered, tuple[int, ...]]:
        """A prompt, and the tokens of `answer` as the reply to it.

        If the last message is the assistant's, the answer continues it. Then both are encoded as one text, with a space
        between two words, and the prompt ends at the first token that differs from the message alone.
        """
        if not answer.strip():
            raise MessageError("the answer is empty; give at least one word")
        if messages and messages[-1].role == "assistant" and messages[-1].content.strip():
            prompt = self.render(messages, tools=tools, continue_final=True)
            joined = replace(messages[-1], content=_continued(messages[-1].content, answer))
            whole = self.render([*messages[:-1], joined], tools=tools, continue_final=True).ids
            pairs = enumerate(zip(prompt.ids, whole, strict=False))
            cut = next((i for i, (a, b) in pairs if a != b), min(len(prompt.ids), len(whole) - 1))
            return Rendered(prompt.ids[:cut], prompt.owner[:cut], prompt.text), whole[cut:]
        asked = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        reply = Message("assistant", answer)
        replied = self.render([*asked, reply], tools=tools, continue_final=True)
        return self.render(asked, tools=tools), replied.ids[replied.owner.index(len(asked)) :]

    def fit_window(self, messages: Sequence[Message], budget: int, *, tools: Sequence[Tool] = ()) -> int:
        """Index of the message where a window of the newest messages begins that fits into `budget` tokens.

        Leading system messages are kept and count. A tool's result is not separated from its call. If messages have to
        be left out, more than necessary are left out, so that the window begins at the same message for many turns
        (see `blocks`). Raises WindowError if not even the newest message fits.
        """
        lead, starts = lead_and_starts(messages)
        first = starts.index(self.widest_window(messages, budget, tools=tools))
        if first == 0:
            return starts[0]
        return steady_start(messages, *self._places(messages, lead, starts[first:], tools))

    def _places(
        self, messages: Sequence[Message], lead: int, starts: Sequence[int], tools: Sequence[Tool]
    ) -> tuple[list[int], list[int]]:
        """Those of `starts` that show anything, the first one in any case, and where each begins in tokens."""
        owner = self.render([*messages[:lead], *messages[starts[0] :]], tools=tools).owner
        place: dict[int, int] = {}
        for at, message in enumerate(owner):
            place.setdefault(message - lead + starts[0], at)
        behind = {start: place[start] for start in starts if start in place}
        places = {starts[0]: min(behind.values(), default=0), **behind}
        return list(places), list(places.values())

    def widest_window(self, messages: Sequence[Message], budget: int, *, tools: Sequence[Tool] = ()) -> int:
        """Index of the message where the longest window of newest messages begins that fits into `budget` tokens."""
        lead, starts = lead_and_starts(messages)

        def size(start: int) -> int:
            return self.count([*messages[:lead], *messages[start:]], tools=tools)

        # Search from the newest message in doubling steps, so that messages far outside the window are not rendered.
        first = len(starts) - 1
        if (found := size(starts[first])) > budget:
            raise WindowError(
                f"the newest message with its prompt takes {found} tokens, the window has room for {budget}; "
                "shorten the message, the system message or the tools, lower Sampling.max_tokens or raise window_tokens"
            )
        step = 1
        while first > 0 and size(starts[max(0, first - step)]) <= budget:
            first, step = max(0, first - step), step * 2
        low = max(0, first - step)
        while low < first:
            middle = (low + first) // 2
            low, first = (low, middle) if size(starts[middle]) <= budget else (middle + 1, first)
        return starts[first]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], generation_prompt: bool, continue_final: bool
    ) -> Rendered:
        try:
            return self._render_with(self.traits, messages, tools, generation_prompt, continue_final)
        except UnsupportedModelError:
            if not self.traits.tools:
                raise
            # One unusual call must not make the whole conversation fail, so tools are written in this package's form.
            own = replace(self.traits, tools=False)
            return self._render_with(own, messages, tools, generation_prompt, continue_final)

    def _render_with(
        self,
        traits: Traits,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        generation_prompt: bool,
        continue_final: bool,
    ) -> Rendered:
        slots = lay_out(messages, tools, traits)
        native = tools if traits.tools else ()
        mask = self._mask(slots, native)
        located = self._locate(slots, native, mask, generation_prompt)
        pieces = list(self._pieces(slots, located, native, mask))
        if continue_final:
            last = max(place for place, piece in enumerate(pieces) if piece.owner == len(messages) - 1)
            pieces = pieces[: last + 1]
        return self._encoded(pieces, mask)

    def _encoded(self, pieces: Sequence[_Piece], mask: Mask) -> Rendered:
        ids: list[int] = []
        owners: list[int] = []
        for place, piece in enumerate(_with_leading_spaces(pieces)):
            if piece.plain:
                tokens = self._encoder.content(piece.text)
            else:
                parts = mask.parts(piece.text)
                encoded = [self._encode_part(part, hidden, place == 0) for part, hidden in parts]
                tokens = tuple(token for part in encoded for token in part)
            ids += tokens
            owners += [piece.owner] * len(tokens)
        text = "".join(piece.text if piece.plain else mask.shown(piece.text) for piece in pieces)
        return Rendered(tuple(ids), tuple(owners), text)

    def _encode_part(self, part: str, hidden: bool, opens: bool) -> tuple[int, ...]:
        return self._encoder.content(part) if hidden else self._encoder.scaffold(part, opens=opens)

    def _pieces(self, slots: Sequence[Slot], located: Located, tools: Sequence[Tool], mask: Mask) -> Iterator[_Piece]:
        """The rendered text, split where the owner changes."""
        cursor = 0
        written: list[tuple[int, str]] = []
        for slot, span in zip(slots, located.spans, strict=True):
            if span is not None:
                yield from _gap_pieces(located.text[cursor : span[0]], written)
                yield from _content_pieces(slot, located.text[span[0] : span[1]])
                cursor, written = span[1], []
            if slot.calls:
                written.append((slot.owner, self._calls_text(slot, tools, mask)))
        yield from _gap_pieces(located.text[cursor:], written)

    def _calls_text(self, slot: Slot, tools: Sequence[Tool], mask: Mask) -> str:
        """The calls of a message as the template writes them, found by rendering one turn with and without them."""
        asked = Slot("user", (Segment("x"),))
        contents = ["x", slot.content]
        with_calls = self._apply([asked, slot], contents, tools, mask)
        without = self._apply([asked, replace(slot, calls=())], contents, tools, mask)
        longest = shared_length(with_calls, without)
        shortest = len(without) - shared_length(with_calls[::-1], without[::-1])
        added = len(with_calls) - len(without)
        # The added text may share its beginning with what follows, or its end with what precedes. Any such cut fits.
        cuts = range(longest, shortest - 1, -1)
        cut = next((cut for cut in cuts if not self._encoder.cuts_token(with_calls, cut, cut + added)), None)
        if added <= 0 or cut is None:
            raise UnsupportedModelError(
                f"the tool calls of message {slot.owner} cannot be separated from the rest of what the chat template "
                "renders; expected a template that adds them to the assistant's turn, or ignores tools altogether"
            )
        return with_calls[cut : cut + added]

    def _locate(self, slots: Sequence[Slot], tools: Sequence[Tool], mask: Mask, generation_prompt: bool) -> Located:
        contents = [slot.content for slot in slots]
        return locate(lambda given: self._apply(slots, given, tools, mask, generation_prompt), contents)

    def _apply(
        self,
        slots: Sequence[Slot],
        contents: Sequence[str],
        tools: Sequence[Tool],
        mask: Mask,
        generation_prompt: bool = False,
    ) -> str:
        """The template's text for these turns with the given contents."""
        rows = [wire_slot(slot, content, mask) for slot, content in zip(slots, contents, strict=True)]
        schemas = [wire_tool(tool, mask) for tool in tools]
        try:
            text: str = self._tokenizer.apply_chat_template(
                rows,
                tools=schemas or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
            return text
        except Exception as error:  # A template is third-party code and may raise anything.
            roles = ", ".join(slot.role for slot in slots)
            raise MessageError(
                f"the model's chat template refuses messages of roles {roles} ({error}); reorder or merge them"
            ) from error

    def _mask(self, slots: Sequence[Slot], tools: Sequence[Tool]) -> Mask:
        return Mask.of(slots, tools, self._encoder.control_texts)

    def _exchange(self) -> list[_Piece]:
        slots = [Slot("user", (Segment("x"),)), Slot("assistant", (Segment("y"),))]
        mask = self._mask(slots, ())
        return list(self._pieces(slots, self._locate(slots, (), mask, False), (), mask))

    def _probe(self) -> Traits:
        if not self._takes("user assistant user"):
            raise UnsupportedModelError(
                "the chat template does not render user, assistant, user so that each content is found once and in "
                "order; give the tokenizer another chat_template"
            )
        system = self._takes("system user assistant user")
        return Traits(
            system=system,
            system_anywhere=system and self._takes("user system user assistant system user"),
            repeats=self._takes("user user assistant assistant user"),
            assistant_first=self._takes("assistant user"),
            tools=self._takes_tools(),
        )

    def _takes(self, roles: str) -> bool:
        """Whether the template renders these roles and its contents can be found."""
        slots = [Slot(role, (Segment(f"Probe {i}."),)) for i, role in enumerate(roles.split())]  # type: ignore[arg-type]
        try:
            return self._locate(slots, (), self._mask(slots, ()), False).faithful
        except (MessageError, UnsupportedModelError):
            return False

    def _takes_tools(self) -> bool:
        """Whether the template supports tools fully, and writes calls in a form that `parse_tool_calls` reads.

        Fully means: descriptions, a text with calls, each of several calls, and each result.
        """
        tools = (Tool("probe_tool", "Probes."),)
        calls = tuple(ToolCall("probe_tool", {"probe": value}, f"probe000{value}") for value in (1, 2))
        messages = [
            Message("user", "Probe 0."),
            Message("assistant", "Probe 1.", calls),
            *(Message("tool", f"Probe result {call.id}.", (), call.id, call.name) for call in calls),
            Message("assistant", "Probe 2."),
            Message("user", "Probe 3."),
            Message("assistant", "", calls),
            *(Message("tool", f"Probe result {call.id}.", (), call.id, call.name) for call in calls),
        ]
        slots = lay_out(messages, tools, Traits())
        try:
            mask = self._mask(slots, tools)
            located = self._locate(slots, tools, mask, True)
            pieces = list(self._pieces(slots, located, tools, mask))
        except (MessageError, UnsupportedModelError):
            return False
        written = ["".join(piece.text for piece in pieces if piece.owner == i and not piece.plain) for i in (1, 6)]
        readable = all(_same_calls(parse_tool_calls(text).calls, calls) for text in written)
        return located.faithful and readable and "probe_tool" in pieces[0].text

    def _guard_turn_marks(self) -> None:
        """Treats added tokens that mark turns as control tokens, even if the tokenizer does not call them special."""
        marks = (self._encoder.scaffold(piece.text) for piece in self._exchange() if not piece.plain)
        self._encoder.treat_as_control(token for tokens in marks for token in tokens)


def lead_and_starts(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """The number of leading system messages, and the indices after them where a window may begin.

    A window may not begin at a tool's result.
    """
    lead = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return lead, [i for i in range(lead, len(messages)) if i == lead or messages[i].role != "tool"] or [lead]


def _plain_template(tokenizer: TokenizerLike) -> str:
    first = tokenizer.encode("x", add_special_tokens=True, split_special_tokens=False)[0]
    begins = tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id
    return ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE


def _require_prefill(message: Message) -> None:
    if message.role != "assistant" or message.tool_calls:
        found = f"role {message.role}" + (" with tool calls" if message.tool_calls else "")
        raise MessageError(f"only an assistant's text can be continued, the last message is of {found}")


def _continued(text: str, answer: str) -> str:
    run_together = re.search(r"\w\Z", text) and re.match(r"\w", answer)
    return f"{text} {answer}" if run_together else text + answer


def _same_calls(found: Sequence[ToolCall], expected: Sequence[ToolCall]) -> bool:
    return [(call.name, call.arguments) for call in found] == [(call.name, call.arguments) for call in expected]


def _gap_pieces(gap: str, written: Sequence[tuple[int, str]]) -> Iterator[_Piece]:
    """Splits scaffolding at the calls that the template wrote into it. Calls belong to their messages."""
    cursor = 0
    for owner, calls in written:
        at = gap.find(calls, cursor)
        if at < 0:
            raise UnsupportedModelError(
                f"the tool calls of message {owner} cannot be found in what the chat template renders; "
                "expected them as it writes them for a single message. Use a simpler chat_template"
            )
        yield _Piece(gap[cursor:at], NOBODY, False)
        yield _Piece(calls, owner, False)
        cursor = at + len(calls)
    yield _Piece(gap[cursor:], NOBODY, False)


def _content_pieces(slot: Slot, text: str) -> Iterator[_Piece]:
    """A turn's rendered content, split into its segments again."""
    whole = slot.content
    start = len(whole) - len(text) if whole.endswith(text) else whole.find(text)
    if start < 0:
        owners = [segment.owner for segment in slot.segments if segment.owner != NOBODY]
        yield _Piece(text, owners[-1] if owners else NOBODY, True)
        return
    cursor = -start
    for segment in slot.segments:
        kept = text[max(0, cursor) : max(0, cursor + len(segment.text))]
        cursor += len(segment.text)
        if kept:
            yield _Piece(kept, segment.owner, True)


def _with_leading_spaces(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """The pieces, with a space at the end of scaffolding moved to the start of the content after it."""
    carried = ""
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        text = carried + piece.text
        moves = not piece.plain and text.endswith(" ") and following is not None and following.plain
        carried = " " if moves else ""
        yield replace(piece, text=text[:-1] if moves else text)
