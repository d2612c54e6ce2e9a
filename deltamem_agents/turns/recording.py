"""Makes statements, and their bytes, from a turn's messages and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import accumulate, pairwise

from deltamem_agents.inference.passes import REPLY, Pass, Piece
from deltamem_agents.inference.reply_text import spelled
from deltamem_agents.loading import TokenizerObject
from deltamem_agents.memory.writes import StoredWrites, Writes
from deltamem_agents.snapshots import Statement, address, encode_statement, utc_now
from deltamem_agents.turns.planning import Plan
from deltamem_agents.types import Message

LEAST_KEPT = 0.02
"""Mean write gate below which a token's writes are not stored."""


@dataclass
class Recorder:
    """Makes the statements of one turn, one per message, in the order in which they are written.

    `messages`: the request's messages. `keep_text`: see `WritePolicy`. `nothing`: an empty set of writes, None if the
    memory keeps no writes of statements. `times`: time of each message; if empty, the current time is used.
    """

    messages: Sequence[Message]
    thread: str
    keep_text: bool
    nothing: Writes | None
    tokenizer: TokenizerObject
    origin: str = "turn"
    times: Sequence[str] = ()
    statements: list[Statement] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)

    def record(self, run: Pass, plan: Plan, positions: Sequence[int], reply: Message | None = None) -> None:
        """Makes statements of the messages at these positions, and of the reply."""
        places = {position: plan.places[position] for position in positions}
        if reply is not None:
            places[REPLY] = plan.log.count + len(plan.new) - plan.edited
        self.add(run.pieces, places, reply)

    def add(self, pieces: Sequence[Piece] | None, places: Mapping[int, int], reply: Message | None = None) -> None:
        """Makes statements of messages. `places`: each message's place in its thread's log, by position."""
        for position, place in places.items():
            if position not in self._known:
                self._known.add(position)
                message = self.messages[position] if reply is None or position != REPLY else reply
                created = self.times[position] if self.times else utc_now()
                self._add(message, place, self._joined(pieces, position), created)

    def replace_one(self, run: Pass, earlier: Statement) -> None:
        """Makes the statement that replaces `earlier`, from the only message. Makes none if it wrote nothing."""
        piece = self._joined(run.pieces, 0)
        if piece is not None and len(piece.writes):
            self._add(self.messages[0], earlier.place, piece, utc_now(), supersedes=earlier.id)

    def _add(
        self, message: Message, place: int, piece: Piece | None, created: str, supersedes: str | None = None
    ) -> None:
        """Adds a statement. A message that wrote nothing is added only if text is kept, as context for others."""
        if not self.keep_text and (piece is None or not len(piece.writes)):
            return
        tokens = piece.tokens if piece is not None and self.keep_text else ()
        made = Statement(
            id="",
            role=message.role,
            text=message.content if self.keep_text else "",
            thread=self.thread,
            place=place,
            created=created,
            tokens=tokens,
            written=piece.written if piece is not None and self.keep_text else (),
            stored=None if piece is None else StoredWrites.of(piece.writes),
            tool_calls=message.tool_calls if self.keep_text else (),
            origin=self.origin,
            supersedes=supersedes,
            spans=spans_of(spelled(self.tokenizer, tokens), message.content),
        )
        data = encode_statement(made)
        self.statements.append(replace(made, id=address(data)))
        self.objects[address(data)] = data

    def _joined(self, pieces: Sequence[Piece] | None, position: int) -> Piece | None:
        """All writes of one message; None if the memory keeps no writes of statements."""
        if self.nothing is None:
            return None
        own = [_strong(piece) for piece in pieces or () if piece.position == position]
        return reduce(Piece.then, own) if own else Piece(position, (), (), self.nothing)


def spans_of(pieces: Sequence[str], text: str) -> tuple[tuple[int, int], ...]:
    """Start and end in a text of each token's piece.

    The pieces may be the whole text, its beginning and end, or the text with more around it, such as a reply's tool
    calls. Returns () if they match in none of these ways.
    """
    said, told, half = "".join(pieces), text.strip(), (len(pieces) + 1) // 2
    head, tail = "".join(pieces[:half]), "".join(pieces[half:])
    if said in text:
        return _placed(pieces, text.find(said), len(text))
    if told and told in said:
        return _placed(pieces, text.find(told) - said.find(told), len(text))
    if head in text and text.rfind(tail) >= text.find(head) + len(head):
        behind = _placed(pieces[half:], text.rfind(tail), len(text))
        return (*_placed(pieces[:half], text.find(head), len(text)), *behind)
    return ()


def _placed(pieces: Sequence[str], start: int, length: int) -> tuple[tuple[int, int], ...]:
    """The spans of consecutive pieces from `start` on, clipped to a text of this length."""
    ends = accumulate(map(len, pieces), initial=start)
    inside = [min(max(end, 0), length) for end in ends]
    return tuple(pairwise(inside))


def _strong(piece: Piece) -> Piece:
    """The piece without its weak writes, which are not worth their bytes."""
    strong = piece.writes.strengths >= LEAST_KEPT
    written = tuple(place for place, kept in zip(piece.written, strong.tolist(), strict=True) if kept)
    return Piece(piece.position, piece.tokens, written, piece.writes.select(strong))
