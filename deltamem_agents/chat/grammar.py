"""Grammars that restrict a reply, token by token.

`reply_grammar` describes the valid replies. A `Vocabulary` compiles the description into a `Matcher`, which says after
every token which tokens may follow. llguidance compiles grammars; it is installed with the extra "tools", and nothing
else in this package needs it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltamem_agents.chat.schemas import RESPONSE_SCHEMA, as_parameters, as_schema, held, without_lookaround
from deltamem_agents.chat.tool_calls import CLOSE, OPEN
from deltamem_agents.errors import ConfigError, GrammarError
from deltamem_agents.types import Tool, ToolChoice

if TYPE_CHECKING:
    from llguidance import LLMatcher

MOST_CALLS = 8
"""Maximum number of calls in one reply. Otherwise a small model may repeat calls until `max_tokens`."""

CLOSING_TOKENS = 128
"""Number of remaining tokens at which a matcher starts to look for a way to finish the reply."""

_MARGIN = 8
_FORK = 8
"""Maximum number of allowed next tokens for which every alternative is tried in the search for an ending."""

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CLOSERS = frozenset(b'"}]')
_LISTING = re.compile(r"\s*\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")


@dataclass(frozen=True)
class Grammar:
    """A set of valid replies, in llguidance's dialect of Lark. `source`: what it was made from, for error messages."""

    lark: str
    source: str


def reply_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice = "auto",
    *,
    parallel: bool = True,
    schema: Mapping[str, Any] | None = None,
) -> Grammar | None:
    """The grammar of replies that call these tools, in the form of `format_tool_calls`. None allows any reply.

    `choice`: "auto" is any text, but a call that is opened must be finished as a valid call; "any" is only calls; a
    tool's name is one call of that tool; "none" is no call. `parallel`: whether several calls may follow each other.
    `schema`: a JSON schema that a reply without calls must fit, on one line; `{"type": "object"}` is any object.

    Objects may have only the properties that their schema lists, unless the schema allows others. Keywords that no
    grammar can express are ignored in a tool's parameters, because the tool checks its own arguments. In `schema` such
    a keyword is an error when the grammar is compiled, because the caller relies on the whole schema. Raises
    ConfigError if `choice` names no tool of `tools`, and for invalid tools and schemas.
    """
    offered = () if choice == "none" else tools
    chosen = offered if choice in ("auto", "any", "none") else [tool for tool in tools if tool.name == choice]
    if not chosen and choice not in ("auto", "none"):
        names = ", ".join(repr(tool.name) for tool in tools) or "no tool"
        raise ConfigError(
            f"tool_choice is {choice!r}, but the call offers {names}; expected 'auto', 'any', 'none' or a tool's name"
        )
    if not chosen and schema is None:
        return None
    starts, rules = [], ["%llguidance {}"]
    if chosen:
        several = parallel and choice in ("auto", "any")
        more = f'("\\n" {_text(OPEN)} call){{0,{MOST_CALLS - 1}}}' if several else ""
        free = choice == "auto" and schema is None
        starts.append(f"opened call {more}" if free else f"{_text(OPEN)} call {more}")
        rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(chosen))))
        rules += [_call_rules(place, tool) for place, tool in enumerate(chosen)]
        if free:
            starts.append("plain")
            rules += [f"opened[lazy]: OPENED\nOPENED: /(.|\\n)*/ {_text(OPEN)}", "plain: /(.|\\n)*/"]
    if schema is not None and choice in ("auto", "none"):
        starts.append("answer")
        rules.append(f"answer: %json {_spaced(as_schema(schema), RESPONSE_SCHEMA, lenient=False)}")
    source = [RESPONSE_SCHEMA] * (schema is not None) + [f"tool {tool.name!r}" for tool in chosen]
    return Grammar("\n".join([*rules, "start: " + " | ".join(starts)]), ", ".join(source))


def grammars_available() -> bool:
    """Whether llguidance is installed."""
    return importlib.util.find_spec("llguidance") is not None


class Vocabulary:
    """A tokenizer's tokens in the form that grammars need. Takes about a second to make; share one per model.

    `definition`: the tokenizer as JSON of the tokenizers library. `size`: the model's number of logits. `end_ids`:
    tokens that end a reply.

    Raises GrammarError if llguidance is not installed or cannot read the tokenizer.
    """

    def __init__(self, definition: str, size: int, end_ids: Collection[int]) -> None:
        if not grammars_available():
            raise GrammarError(
                "a required tool call or a response schema needs llguidance, which is not installed; "
                "run: pip install 'deltamem-agents[tools]'"
            )
        from llguidance import LLTokenizer

        self.size = size
        try:
            self._tokenizer = LLTokenizer(definition, eos_token=sorted(end_ids))
        except (ValueError, RuntimeError) as error:
            raise GrammarError(f"llguidance cannot read this model's tokenizer ({error}); use another model") from None
        self._end_ids = frozenset(end_ids)

    def matcher(self, grammar: Grammar, *, max_tokens: int | None = None) -> Matcher:
        """A new matcher. `max_tokens`: maximum length of the reply. Near it, the matcher steers the reply to an end.

        Raises GrammarError if the grammar does not compile.
        """
        from llguidance import LLMatcher

        compiled = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar.lark), log_level=0)
        if compiled.is_error():
            raise GrammarError(
                f"the {grammar.source} cannot be turned into a grammar: {_reason(compiled.get_error())}; "
                "leave that part out of the schema, or check it in the caller"
            )
        if not _mask(compiled).any() or (compiled.is_stopped() and not compiled.is_accepting()):
            raise GrammarError(f"nothing fits the {grammar.source}; expected a schema that allows some value")
        return Matcher(compiled, self, max_tokens)

    @cached_property
    def endings(self) -> NDArray[np.int64]:
        """(tokens,) rank of each token for finishing a JSON text; the lowest rank is the best."""
        ranks = np.empty(len(self._texts), dtype=np.int64)
        for token, text in enumerate(self._texts):
            # A closing token must contain a quote: inside a string, braces are ordinary letters, and would be chosen
            # forever.
            closes = b'"' in text and _CLOSERS.issuperset(text)
            kind = 0 if closes else 1 if text in (b"0", b"null") else 3 if text.startswith(b",") else 2
            length = min(len(text), 63)
            ranks[token] = (kind * 64 + (63 - length if closes else length)) * len(ranks) + token
        return ranks

    @cached_property
    def braces(self) -> NDArray[np.bool_]:
        """(tokens,) which tokens consist only of closing braces and brackets."""
        return np.array([bool(text) and set(text) <= set(b"]}") for text in self._texts])

    @cached_property
    def letter(self) -> int:
        """A token that is a single letter. It is allowed only inside strings, so it shows where the grammar is."""
        return self._texts.index(b"Z") if b"Z" in self._texts else 0

    @cached_property
    def _texts(self) -> list[bytes]:
        return [self._tokenizer.decode_bytes([token]).strip() for token in range(self._tokenizer.vocab_size)]

    def is_end(self, token: int) -> bool:
        return token in self._end_ids


class Matcher:
    """Follows one reply through a grammar."""

    def __init__(self, compiled: LLMatcher, vocabulary: Vocabulary, max_tokens: int | None = None) -> None:
        self._compiled, self._vocabulary = compiled, vocabulary
        self._remaining = max_tokens

    def allowed(self) -> NDArray[np.bool_]:
        """Bool (vocabulary,): which tokens may come next. Never all False."""
        mask = _mask(self._compiled)
        if self._remaining is not None and self._remaining <= CLOSING_TOKENS:
            mask = self._toward_an_end(mask, self._remaining)
        return self._padded(mask)

    def accept(self, token: int) -> None:
        """Advances by `token`. Raises GrammarError if the grammar does not allow it."""
        if self._remaining is not None:
            self._remaining -= 1
        if self._vocabulary.is_end(token) and self._compiled.is_accepting():
            return
        if not self._compiled.consume_token(token):
            raise GrammarError(f"token {token} does not fit the grammar: {_reason(self._compiled.get_error())}")

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens complete the reply. Changes nothing."""
        ahead = self._compiled.deep_copy()
        return bool(ahead.consume_tokens(list(tokens)) and ahead.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether the reply is complete and no token may be added."""
        return bool(self._compiled.is_stopped())

    def way_out(self, limit: int = 4 * CLOSING_TOKENS) -> list[int] | None:
        """A short continuation that completes the reply: [] if it is complete, None if none is found within `limit`."""
        way = self._ending(limit)
        # Some forms, such as a number above 0, are never finished by always taking the best-ranked token.
        return self._ending(limit, varied=True) if way is None else way

    def _toward_an_end(self, mask: NDArray[np.bool_], remaining: int) -> NDArray[np.bool_]:
        """The tokens of `mask` after which the reply can still be finished in time. The search is not exhaustive."""
        way = self.way_out()
        if way and len(way) + _MARGIN >= remaining:
            return _mask_of(mask, way[:1])
        choices = np.flatnonzero(mask).tolist()
        if len(choices) > _FORK:
            return mask
        return _mask_of(mask, [token for token in choices if self._in_time(token, remaining - 1)] or choices)

    def _in_time(self, token: int, remaining: int) -> bool:
        if self._vocabulary.is_end(token):
            return True
        return self._ending(remaining, first=[token]) is not None

    def _ending(self, limit: int, first: Sequence[int] = (), *, varied: bool = False) -> list[int] | None:
        """Tokens that finish the reply after `first`. `varied`: a token that was used is ranked behind the others."""
        ahead, way, ranks = self._compiled.deep_copy(), list[int](), self._vocabulary.endings
        if not ahead.consume_tokens(list(first)):
            return None
        ranks = ranks.copy() if varied else ranks
        while not ahead.is_accepting():
            step = ahead.compute_ff_tokens() or [self._best_token(_mask(ahead), ranks)]
            if len(way) + len(step) > limit or not ahead.consume_tokens(step):
                return None
            way += step
            if varied and len(step) == 1 and ranks[step[0]] >= 64 * len(ranks):
                # Closing quotes keep their rank, because each string needs one.
                ranks[step[0]] += 4 * 64 * len(ranks)
        return way

    def _best_token(self, mask: NDArray[np.bool_], ranks: NDArray[np.int64]) -> int:
        candidates = np.flatnonzero(mask[: len(ranks)])
        # A brace ends an object, but inside a string it is an ordinary letter.
        if not mask[self._vocabulary.letter]:
            closing = candidates[self._vocabulary.braces[candidates]]
            candidates = closing if len(closing) else candidates
        return int(candidates[ranks[candidates].argmin()])

    def _padded(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        size = self._vocabulary.size
        return mask[:size] if len(mask) >= size else np.pad(mask, (0, size - len(mask)))


def _mask(compiled: LLMatcher) -> NDArray[np.bool_]:
    packed = np.frombuffer(compiled.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little").view(np.bool_)


def _mask_of(mask: NDArray[np.bool_], tokens: Sequence[int]) -> NDArray[np.bool_]:
    few = np.zeros_like(mask)
    few[list(tokens)] = True
    return few


def _call_rules(place: int, tool: Tool) -> str:
    head = f'\n{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
    return (
        f"call_{place}: {_text(head)} arguments_{place} {_text('}' + chr(10) + CLOSE)}\n"
        f"arguments_{place}: %json {_spaced(as_parameters(tool), f'tool {tool.name!r}', lenient=True)}"
    )


def _spaced(schema: Mapping[str, Any], source: str, *, lenient: bool) -> str:
    """The schema as JSON for llguidance, with the white space that `format_tool_calls` writes."""
    guidance = {**_SPACING, "lenient": lenient}
    try:
        said = held(without_lookaround(schema) if lenient else schema)
        return json.dumps({**said, "x-guidance": guidance}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"the {source} is not JSON ({error}); expected a JSON schema of plain values") from None


def _text(text: str) -> str:
    # llguidance's parser does not accept a raw DEL character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")


def _reason(error: str) -> str:
    """llguidance's error message without the listing of the grammar, which the caller has never seen."""
    lines = takewhile(lambda line: not _LISTING.match(line), error.strip().splitlines())
    return _PLACE.sub("", " ".join(" ".join(lines).split())) or "unknown error"
