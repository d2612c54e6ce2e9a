"""Text to tokens in two ways: scaffolding, where control tokens count, and content, where they never do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol, Self

from deltamem_agents.errors import MessageError
from deltamem_agents.processes import Mutex

# The second merges with nothing: a rune, which tokenizers spell in bytes.
_ANCHORS = ("\n", "ᚠ")

# A fast tokenizer keeps "split special tokens" as a switch on itself, set by each call: two threads
# encoding at once could read a user's text with the template's setting.
_switch = Mutex()


class AddedTokenLike(Protocol):
    content: str
    special: bool


class TokenizerLike(Protocol):
    """What is used of a fast tokenizer of the transformers library."""

    chat_template: str | dict[str, str] | None
    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedTokenLike]: ...

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...

    # Called with tools, chat_template, tokenize=False and add_generation_prompt; transformers' own signature
    # differs between its tokenizer classes.
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


class Encoder:
    """Encodes pieces of a prompt. Each piece on its own, so that its tokens do not depend on neighbours.

    Control tokens are the tokenizer's special tokens and whichever of its added tokens are passed
    to `treat_as_control`. Nothing is kept of what was encoded, except in `for_one_call`.
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._added = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
        special = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
        self._controls: dict[int, str] = {token: self._added[token] for token in special}
        self._anchors = self._find_anchors()
        self._known: dict[tuple[str, bool, bool], tuple[int, ...]] | None = None

    def for_one_call(self) -> Self:
        """This encoder, for work that encodes the same texts over and over; it keeps their tokens as long as it lives.

        An encoder that lives as long as the engine must not: a forgotten agent's texts would stay in it.
        """
        twin = copy(self)
        twin._known = {}
        return twin

    @property
    def control_texts(self) -> frozenset[str]:
        return frozenset(self._controls.values())

    def treat_as_control(self, tokens: Iterable[int]) -> None:
        """Guard these added tokens like special ones: the template marks turns with them."""
        self._controls |= {token: self._added[token] for token in tokens if token in self._added}

    def is_control(self, token: int) -> bool:
        return token in self._controls

    def cuts_token(self, text: str, *places: int) -> bool:
        """Whether one of these places lies inside an added token that the text spells."""
        spelled = re.finditer(_any_of(self._added.values()), text)
        return any(found.start() < place < found.end() for found in spelled for place in places)

    def scaffold(self, text: str, *, opens: bool = False) -> tuple[int, ...]:
        """Tokens of a template's own text. `opens`: it stands at the very beginning of the prompt."""
        return self._kept(text, False, opens)

    def content(self, text: str) -> tuple[int, ...]:
        """Tokens of somebody's text, never a control token, whatever the text spells.

        Raises MessageError where the tokenizer offers no other way to write a text.
        """
        return self._kept(text, True, False)

    def _kept(self, text: str, plain: bool, opens: bool) -> tuple[int, ...]:
        if self._known is None:
            return self._encode(text, plain, opens)
        key = text, plain, opens
        if key not in self._known:
            self._known[key] = self._encode(*key)
        return self._known[key]

    def _encode(self, text: str, plain: bool, opens: bool) -> tuple[int, ...]:
        if not text:
            return ()
        tokens = self._tokens(text, plain) if opens else self._tokens_inside(text, plain)
        if not plain or not self._forged(tokens):
            return tokens
        tokens = tuple(token for part in self._broken_up(text) for token in self._tokens_inside(part, plain))
        if forged := self._forged(tokens):
            raise MessageError(
                f"the tokenizer reads plain text as the control token {self._controls[forged.pop()]!r}; "
                "remove it from the message"
            )
        return tokens

    def _forged(self, tokens: Sequence[int]) -> set[int]:
        """Control tokens among these. The unknown token stands for any strange character and is none here."""
        return (set(tokens) & self._controls.keys()) - {self._tokenizer.unk_token_id}

    def _broken_up(self, text: str) -> list[str]:
        """The text in parts which end after the first character of each control token it spells."""
        spelled = re.finditer(_any_of(self.control_texts), text)
        cuts = [0, *(found.start() + 1 for found in spelled), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(cuts)]

    def _tokens_inside(self, text: str, plain: bool) -> tuple[int, ...]:
        """Tokens of text in the middle of a prompt, without the space some tokenizers put before a first word."""
        for anchor, tokens in self._anchors.items():
            anchored = self._tokens(anchor + text, plain)
            if anchored[: len(tokens)] == tokens:
                return anchored[len(tokens) :]
        return self._tokens(text, plain)

    def _find_anchors(self) -> dict[str, tuple[int, ...]]:
        """Texts to encode behind, with their tokens; none where it makes no difference to stand at the beginning."""
        anchors = {anchor: self._tokens(anchor, True) for anchor in _ANCHORS}
        behind = self._tokens(_ANCHORS[0] + "x", True)[len(anchors[_ANCHORS[0]]) :]
        return {} if behind == self._tokens("x", True) else anchors

    def _tokens(self, text: str, plain: bool) -> tuple[int, ...]:
        with _switch:
            return tuple(self._tokenizer.encode(_encodable(text), add_special_tokens=False, split_special_tokens=plain))


def _any_of(texts: Iterable[str]) -> str:
    """A pattern of these texts, the longest first; of none, it matches nothing."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _encodable(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, replaced as a decoder would replace them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
