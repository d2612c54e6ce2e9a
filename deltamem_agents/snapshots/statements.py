"""The statement file format: one message with its writes, stored under its own address.

    8 bytes   length of the header, little-endian
    header    {"__metadata__":{"deltamem":"<JSON>"},"keys":{"dtype":"I8",…},…}, space-padded
    data      the numbers

This is a safetensors file. The address is the beginning of the sha256 of all bytes. The metadata contains a random
salt: without it, anyone who guesses a text could confirm the guess by its address. A commit lists only addresses, so a
statement can be deleted for good while the commits that list it stay.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltamem_agents.errors import DamagedSnapshotError, NewerFormatError
from deltamem_agents.memory.writes import StoredWrites, Writes
from deltamem_agents.types import Role, ToolCall

FORGOTTEN = b"forgotten"
"""Bytes that replace a forgotten object in the store."""

STATEMENT_FORMAT = 1
ADDRESS_DIGITS = 32
PAGE = 64
"""Statements per page. A page is a stored block of statement addresses."""

_KINDS = {"I8": np.int8, "U16": np.uint16, "I32": np.int32, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(kind): name for name, kind in _KINDS.items()}
_ADDRESS_BYTES = ADDRESS_DIGITS // 2


def address(data: bytes) -> str:
    """The address of a statement or page: the first 32 hex digits of its sha256."""
    return hashlib.sha256(data).hexdigest()[:ADDRESS_DIGITS]


@dataclass(frozen=True, eq=False)
class Statement:
    """One message that an agent's memory holds.

    `id`: its address. `text`: the message's text, "" if the policy keeps no text. `place`: index of the message in its
    thread's log, from 0. `created`: ISO 8601, UTC. `tokens`: token ids of the part of the text that was processed for
    writing. `written`: indices of the tokens that wrote, ascending; `stored` has one row for each. `stored`: the
    writes. None for an adapter whose gates never close, because such an adapter keeps a full state instead. `origin`:
    the verb that made it ("turn", "absorb", "correct", …). `supersedes`: id of the statement that this one corrects.
    `spans`: start and end of each of `tokens` in the text, () if not known.
    """

    id: str
    role: Role
    text: str
    thread: str
    place: int
    created: str
    tokens: tuple[int, ...] = ()
    written: tuple[int, ...] = ()
    stored: StoredWrites | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    origin: str = "turn"
    supersedes: str | None = None
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def writes(self) -> Writes | None:
        """The statement's writes in float32."""
        return None if self.stored is None else self.stored.writes()

    @property
    def wrote(self) -> bool:
        """Whether it wrote anything. A statement that wrote nothing is kept as context for its neighbours."""
        return self.stored is None or len(self.stored.keys) > 0

    @property
    def strengths(self) -> tuple[float, ...]:
        """Write strength of each of `tokens`, from 0 to 1."""
        found = [0.0] * len(self.tokens)
        if self.stored is not None and self.tokens:
            gates = self.stored.strengths.tolist()
            for place, strength in zip(self.written, gates, strict=True):
                found[place] = strength
        return tuple(found)

    @property
    def marked(self) -> list[tuple[str, float]]:
        """The text in pieces, each with its write strength, from 0 to 1."""
        found, end = [], 0
        for (first, last), strength in zip(self.spans, self.strengths, strict=False):
            if first > end:
                found.append((self.text[end:first], 0.0))
            if last > first:
                found.append((self.text[first:last], strength))
            end = max(end, last)
        return [*found, (self.text[end:], 0.0)] if end < len(self.text) else found


def encode_statement(statement: Statement) -> bytes:
    """The bytes of a statement. `id` is ignored. Equal statements give different bytes, because of the salt."""
    fields: dict[str, Any] = {
        "format": STATEMENT_FORMAT,
        "salt": secrets.token_hex(16),
        "role": statement.role,
        "text": statement.text,
        "thread": statement.thread,
        "place": statement.place,
        "created": statement.created,
        "origin": statement.origin,
        "supersedes": statement.supersedes,
        "calls": [[call.name, dict(call.arguments), call.id] for call in statement.tool_calls],
    }
    arrays = {
        "tokens": _integers(statement.tokens),
        "written": _integers(statement.written),
        "spans": _integers([place for span in statement.spans for place in span]),
    }
    if statement.stored is not None:
        arrays |= {name: getattr(statement.stored, name).contiguous().numpy() for name in _PARTS}
    header: dict[str, Any] = {"__metadata__": {"deltamem": json.dumps(fields, separators=(",", ":"))}}
    data, start = b"", 0
    # The widest numbers come first, so that every array is aligned.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        data += array.tobytes()
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, len(data)]}
        start = len(data)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


_PARTS = ("keys", "values", "scales", "write", "erase")


def verified(data: bytes, at: str) -> bytes:
    """Returns the bytes found at an address. Raises DamagedSnapshotError if their checksum does not match it."""
    if data != FORGOTTEN and address(data) != at:
        raise DamagedSnapshotError(
            f"statement {at} is damaged: its {len(data)} bytes have the checksum {address(data)[:12]}…, expected "
            f"{at[:12]}…. Nothing was overwritten; forget this statement, or import an export of the agent"
        )
    return data


def decode_statement(data: bytes, at: str) -> Statement:
    """Decodes the verified bytes that `encode_statement` made and that were found at this address.

    Raises NewerFormatError for bytes that a later version wrote.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    fields = json.loads(header["__metadata__"]["deltamem"])
    if fields["format"] > STATEMENT_FORMAT:
        raise NewerFormatError(
            f"statement {at} has format {fields['format']}, this version of deltamem_agents reads up to "
            f"{STATEMENT_FORMAT}; upgrade the package to open it. It was left as it is"
        )

    def array(name: str) -> Any:
        said = header[name]
        first, last = said["data_offsets"]
        return np.frombuffer(data[end + first : end + last], _KINDS[said["dtype"]]).reshape(said["shape"])

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(array(name).copy())

    places = array("spans").tolist()
    stored = StoredWrites(*map(tensor, _PARTS)) if "keys" in header else None
    return Statement(
        id=at,
        role=fields["role"],
        text=fields["text"],
        thread=fields["thread"],
        place=fields["place"],
        created=fields["created"],
        tokens=tuple(array("tokens").tolist()),
        written=tuple(array("written").tolist()),
        stored=stored,
        tool_calls=tuple(ToolCall(*call) for call in fields["calls"]),
        origin=fields["origin"],
        supersedes=fields["supersedes"],
        spans=tuple(zip(places[::2], places[1::2], strict=True)),
    )


@dataclass(frozen=True)
class StatementList:
    """The list of a commit's statements, oldest first, in pages: a commit stays small, however many there are.

    `pages`: addresses of pages of at most PAGE statements each. `newest`: addresses of the statements after the last
    page.
    """

    pages: tuple[str, ...] = ()
    newest: tuple[str, ...] = ()

    def changed(
        self, pages: Mapping[str, Sequence[str]], *, add: Sequence[str] = (), drop: frozenset[str] = frozenset()
    ) -> tuple[StatementList, dict[str, tuple[str, ...]]]:
        """The list after adding and dropping statements, and the contents of its new pages, by page address.

        `pages`: the contents of this list's pages, by address; only pages that may contain `drop` are needed.
        """
        made: dict[str, tuple[str, ...]] = {}

        def page(ids: Sequence[str]) -> str:
            at = address(encode_page(ids))
            made[at] = tuple(ids)
            return at

        kept = []
        for each in self.pages:
            ids = pages.get(each, ())
            left = [one for one in ids if one not in drop]
            if len(left) == len(ids):
                kept.append(each)
            elif left:
                kept.append(page(left))
        newest = [one for one in (*self.newest, *add) if one not in drop]
        while len(newest) >= PAGE + PAGE // 2:
            kept.append(page(newest[:PAGE]))
            newest = newest[PAGE:]
        return StatementList(tuple(kept), tuple(newest)), made


def encode_page(ids: Sequence[str]) -> bytes:
    """The bytes of a page."""
    return b"page" + b"".join(map(bytes.fromhex, ids))


def decode_page(data: bytes, at: str) -> tuple[str, ...]:
    """The addresses in a page, from its verified bytes. Raises DamagedSnapshotError if they are not a page."""
    if data[:4] != b"page" or len(data) % _ADDRESS_BYTES != 4:
        raise DamagedSnapshotError(
            f"page {at} of a list of statements starts with {data[:4]!r}, expected b'page'. Nothing was overwritten; "
            "rewind to another snapshot, or import an export of the agent"
        )
    return tuple(data[place : place + _ADDRESS_BYTES].hex() for place in range(4, len(data), _ADDRESS_BYTES))


def _integers(numbers: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.uint16 if max(numbers, default=0) < 2**16 else np.int32)
