"""Messages to token ids through the model's own chat template, with every content token's owner known.

The template is rendered with a mark in place of each content. What lies between the marks is scaffolding, where
control tokens are recognised; contents are tokenised on their own, where they are not. So a user's "<|im_end|>"
stays text, spans are exact, and a message has the same tokens wherever it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deltamem_agents.chat.tool_calls import format_tool_calls
from deltamem_agents.errors import MessageError, UnsupportedModelError, WindowError
from deltamem_agents.types import Message, Tool

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which have no template of their own."""

CACHED_TEXTS = 4096

TOOLS_TEXT = (
    "You can call these tools:\n{tools}\n"
    'To call one, reply with <tool_call>{{"name": "its name", "arguments": {{…}}}}</tool_call>. '
    "The result comes back in the next message. Otherwise reply in plain words."
)


class TokenizerLike(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    chat_template: Any
    eos_token_id: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def __call__(self, text: str, **options: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens. `owner[i]` is the message whose content token i belongs to, −1 for scaffolding."""

    ids: tuple[int, ...]
    owner: tuple[int, ...]
    text: str


@dataclass
class ChatTemplate:
    """One tokenizer's template. Rendering is pure; tokenised texts are kept for the next turn."""

    tokenizer: TokenizerLike
    _cache: dict[tuple[bool, str], tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._template: str | None = None if self.tokenizer.chat_template else PLAIN_TEMPLATE
        self._strips = _mark(0) in self._apply([{"role": "user", "content": f" {_mark(0)} "}], ()) and (
            f" {_mark(0)} " not in self._apply([{"role": "user", "content": f" {_mark(0)} "}], ())
        )
        self._has_system = self._accepts([{"role": "system", "content": _mark(0)}, {"role": "user", "content": "x"}])
        self._has_tool_role = self._accepts(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "tool", "content": _mark(0)}]
        )
        self._has_tools = self._mentions_tools()

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the end-of-sequence token and what the template closes an assistant turn with."""
        ends = self.tokenizer.eos_token_id
        found = set(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
        closing = self._apply([{"role": "user", "content": "x"}, {"role": "assistant", "content": _mark(0)}], ())
        after = self._ids(closing.split(_mark(0))[-1], special=True)
        plain = self._ids(closing.split(_mark(0))[-1], special=False)
        if after and after[0] not in plain:
            found.add(after[0])
        return frozenset(found)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> Rendered:
        """`generation_prompt`: end with the head of the assistant's reply. `continue_final`: end inside the last
        message's content, which is then to be continued.

        Raises MessageError for an order of roles that the template refuses.
        """
        rows, contents, owners = self._rows(messages, tools)
        skeleton = self._apply(rows, tools if self._has_tools else (), generation_prompt and not continue_final)
        pieces = re.split(_MARKS, skeleton)
        order = [int(number) for number in pieces[1::2]]
        if order != list(range(len(contents))):
            raise UnsupportedModelError(
                f"the chat template shows contents {order} of {len(contents)}, expected each once and in order; "
                "give the tokenizer another chat_template"
            )
        ids: list[int] = []
        owner: list[int] = []
        text: list[str] = []

        def add(part: str, belongs_to: int) -> None:
            tokens = self._ids(part, special=belongs_to < 0)
            ids.extend(tokens)
            owner.extend([belongs_to] * len(tokens))
            text.append(part)

        add(pieces[0], -1)
        for place, scaffold in zip(order, pieces[2::2], strict=True):
            add(contents[place], owners[place])
            if continue_final and place == len(contents) - 1:
                break
            add(scaffold, -1)
        return Rendered(tuple(ids), tuple(owner), "".join(text))

    def encode_answer(self, messages: Sequence[Message], answer: str) -> tuple[Rendered, tuple[int, ...]]:
        """A prompt, and the tokens of `answer` as the reply to it.

        When the last message is the assistant's, the answer continues it: both are tokenised as one text, joined
        with a space where two words would run together.
        """
        if not answer.strip():
            raise MessageError("the answer to score is empty; give at least one word")
        if not messages or messages[-1].role != "assistant":
            prompt = self.render(messages)
            return prompt, self._ids(answer, special=False)
        prefill = self._content(messages[-1])
        together = re.search(r"\w\Z", prefill) and re.match(r"\w", answer)
        whole = self._ids(f"{prefill} {answer}" if together else prefill + answer, special=False)
        alone = self._ids(prefill, special=False)
        shared = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
        shared = min(shared, len(whole) - 1)
        prompt = self.render(messages, continue_final=True)
        cut = len(prompt.ids) - (len(alone) - shared)
        return Rendered(prompt.ids[:cut], prompt.owner[:cut], prompt.text), whole[shared:]

    def fit_window(self, messages: Sequence[Message], budget: int, *, tools: Sequence[Tool] = ()) -> int:
        """Where the newest messages that fit into `budget` tokens begin, leading system messages always kept.

        A tool's result is never separated from the call it answers. Raises WindowError when not even the last
        message fits.
        """
        lead = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
        starts = [i for i in range(lead, len(messages)) if messages[i].role != "tool" or i == lead] or [len(messages)]

        def size(start: int) -> int:
            return len(self.render([*messages[:lead], *messages[start:]], tools=tools).ids)

        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            if size(starts[middle]) <= budget:
                high = middle
            else:
                low = middle + 1
        if size(starts[low]) > budget:
            raise WindowError(
                f"the newest message with its prompt takes {size(starts[low])} tokens, the window has room for {budget}; "
                "shorten the message, lower Sampling.max_tokens or raise window_tokens"
            )
        return starts[low]

    def _rows(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[str], list[int]]:
        """Rows for the template with marks for contents, the contents, and whose they are (−1: nobody's)."""
        if not messages:
            raise MessageError("there are no messages to render; give at least one")
        told = _describe(tools) if tools and not self._has_tools else ""
        rows: list[dict[str, Any]] = []
        contents: list[str] = []
        owners: list[int] = []
        instructions = [told] if told else []
        for index, message in enumerate(messages):
            content = self._content(message)
            if message.role == "system" and (told or not self._has_system) and not rows:
                instructions.append(content)
                continue
            if instructions:
                rows += self._instruct(instructions, contents, owners)
                instructions = []
            role = "user" if message.role == "tool" and not self._has_tool_role else message.role
            rows.append({"role": role, "content": self._folded(rows, len(contents))})
            contents.append(content)
            owners.append(index)
        if instructions:
            rows += self._instruct(instructions, contents, owners)
        return rows, contents, owners

    def _instruct(self, instructions: list[str], contents: list[str], owners: list[int]) -> list[dict[str, Any]]:
        """Instructions that are no single message of the caller's, as a system or else a user row."""
        contents.append("\n\n".join(reversed(instructions)))
        owners.append(-1)
        return [{"role": "system" if self._has_system else "user", "content": _mark(len(contents) - 1)}]

    def _folded(self, rows: list[dict[str, Any]], place: int) -> str:
        """The mark for a message; instructions in a user row of their own move in front of it."""
        if not self._has_system and len(rows) == 1 and rows[0]["role"] == "user" and rows[0]["content"] == _mark(0):
            return f"{rows.pop()['content']}\n\n{_mark(place)}"
        return _mark(place)

    def _content(self, message: Message) -> str:
        content = message.content
        if message.tool_calls:
            calls = format_tool_calls(message.tool_calls)
            content = f"{content}\n{calls}" if content else calls
        if message.role == "tool" and not self._has_tool_role:
            content = f"Result of {message.name or 'the tool'}: {content}"
        return content.strip() if self._strips else content

    def _mentions_tools(self) -> bool:
        probe = Tool("probe_of_tools", "a probe")
        try:
            return probe.name in self._apply([{"role": "user", "content": "x"}], (probe,))
        except MessageError:
            return False

    def _accepts(self, rows: list[dict[str, Any]]) -> bool:
        try:
            return _mark(0) in self._apply(rows, ())
        except MessageError:
            return False

    def _apply(self, rows: list[dict[str, Any]], tools: Sequence[Tool], generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                rows,
                tools=[_schema(tool) for tool in tools] or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # jinja2's own errors, and whatever a template raises on purpose
            roles = ", ".join(row["role"] for row in rows)
            raise MessageError(f"the model's chat template refuses messages of roles {roles}: {error}") from error
        return str(text)

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        key = (special, text)
        if key not in self._cache:
            if len(self._cache) >= CACHED_TEXTS:
                self._cache.clear()
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
            self._cache[key] = tuple(encoded["input_ids"])
        return self._cache[key]


_MARKS = "\ue000deltamem(\\d+)\ue001"


def _mark(place: int) -> str:
    """Private-use characters, which no template looks for."""
    return f"\ue000deltamem{place}\ue001"


def _schema(tool: Tool) -> Mapping[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
    }


def _describe(tools: Sequence[Tool]) -> str:
    return TOOLS_TEXT.format(tools="\n".join(json.dumps(_schema(tool)["function"]) for tool in tools))
