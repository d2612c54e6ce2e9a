"""Encodes text to tokens: with control tokens for the template's own text, without them for message contents.

The template's own text is called scaffolding throughout this package.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol, Self

from deltamem_agents.errors import MessageError
from deltamem_agents.processes import Mutex

# The second anchor is a rune, which tokenizers encode as bytes, so that it merges with nothing.
_ANCHORS = ("\n", "ᚠ")

# A fast tokenizer stores "split special tokens" as its own attribute, which each call sets. Without this lock, a user's
# text could be encoded with the setting that another thread made for the template.
_switch = Mutex()


class AddedTokenLike(Protocol):
    content: str
    special: bool


class TokenizerLike(Protocol):
    """The part of transformers' fast tokenizers that this package uses."""

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
    """Encodes pieces of a prompt. Each piece is encoded separately, so that its tokens do not depend on neighbours.

    Control tokens are the tokenizer's special tokens and the added tokens passed to `treat_as_control`. Encoded texts
    are not cached, except in `for_one_call`.
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._added = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
        special = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
        self._controls: dict[int, str] = {token: self._added[token] for token in special}
        self._anchors = self._find_anchors()
        self._known: dict[tuple[str, bool, bool], tuple[int, ...]] | None = None

    def for_one_call(self) -> Self:
        """A copy of this encoder with a cache, for work that encodes the same texts repeatedly.

        The engine's own encoder must not have a cache, because texts of a forgotten agent would stay in it.
        """
        twin = copy(self)
        twin._known = {}
        return twin

    @property
    def control_texts(self) -> frozenset[str]:
        return frozenset(self._controls.values())

    def treat_as_control(self, tokens: Iterable[int]) -> None:
        """Treats these added tokens like special tokens, because the template marks turns with them."""
        self._controls |= {token: self._added[token] for token in tokens if token in self._added}

    def is_control(self, token: int) -> bool:
        return token in self._controls

    def cuts_token(self, text: str, *places: int) -> bool:
        """Whether one of these positions is inside an added token's text."""
        spelled = re.finditer(_any_of(self._added.values()), text)
        return any(found.start() < place < found.end() for found in spelled for place in places)

    def scaffold(self, text: str, *, opens: bool = False) -> tuple[int, ...]:
        """Tokens of the template's own text. `opens`: whether the text is the beginning of the prompt."""
        return self._kept(text, False, opens)

    def content(self, text: str) -> tuple[int, ...]:
        """Tokens of a message's text. They never include a control token, even if the text looks like one.

        Raises MessageError if the tokenizer cannot encode the text without a control token.
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
        """The control tokens among these. The unknown token does not count, because it stands for any character."""
        return (set(tokens) & self._controls.keys()) - {self._tokenizer.unk_token_id}

    def _broken_up(self, text: str) -> list[str]:
        """The text split after the first character of each control token's text."""
        spelled = re.finditer(_any_of(self.control_texts), text)
        cuts = [0, *(found.start() + 1 for found in spelled), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(cuts)]

    def _tokens_inside(self, text: str, plain: bool) -> tuple[int, ...]:
        """Tokens of a text inside a prompt, without the space that some tokenizers add before the first word."""
        for anchor, tokens in self._anchors.items():
            anchored = self._tokens(anchor + text, plain)
            if anchored[: len(tokens)] == tokens:
                return anchored[len(tokens) :]
        return self._tokens(text, plain)

    def _find_anchors(self) -> dict[str, tuple[int, ...]]:
        """Texts to put in front of a text to encode, with their tokens. Empty if the beginning makes no difference."""
        anchors = {anchor: self._tokens(anchor, True) for anchor in _ANCHORS}
        behind = self._tokens(_ANCHORS[0] + "x", True)[len(anchors[_ANCHORS[0]]) :]
        return {} if behind == self._tokens("x", True) else anchors

    def _tokens(self, text: str, plain: bool) -> tuple[int, ...]:
        with _switch:
            return tuple(self._tokenizer.encode(_encodable(text), add_special_tokens=False, split_special_tokens=plain))


def _any_of(texts: Iterable[str]) -> str:
    """A regular expression for these texts, the longest first. Without texts it matches nothing."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced as a decoder replaces them, because no tokenizer accepts them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
