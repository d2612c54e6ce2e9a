"""The snapshot file format: a safetensors file with its own checksum, and the snapshot's id.

    8 bytes   length of the header, little-endian
    header    {"__metadata__":{"deltamem":"<digest> <JSON>"},"state":{"dtype":"F32",…}}, space-padded
    data      the state's float32 numbers, little-endian, (layers, heads, r, r)

If the state is computed from statements, the file has "base" instead of "state": (1, layers, heads, r, r), or (0, …)
for zeros. If statements were dropped because of a bound, "folded" follows it, with the same shape.

The digest is the sha256 of every other byte of the file and is at a fixed position. That rule and the
JSON's "format" key hold for all later formats, so a reader can tell a damaged file from a newer one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from deltamem_agents.errors import ConfigError, DamagedSnapshotError, NewerFormatError, StateError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.memory.writes import ScannedState
from deltamem_agents.snapshots.snapshot import FORMAT, Counters, Fingerprint, Snapshot
from deltamem_agents.snapshots.statements import ADDRESS_DIGITS, StatementList
from deltamem_agents.types import ThreadLog

_PREFIX = b'{"__metadata__":{"deltamem":"'
_DIGEST = slice(8 + len(_PREFIX), 8 + len(_PREFIX) + 64)
_FIELDS = {"format", *(field.name for field in dataclasses.fields(Snapshot))} - {"state", "base", "folded", "went"}
_FIELDS_1 = _FIELDS - {"statements", "fades"}
_ADDRESSES = re.compile(f"([0-9a-f]{{{ADDRESS_DIGITS}}})*")
_MESSAGE_DIGEST = re.compile("[suat]:[0-9a-f]{32}")
_T = TypeVar("_T")


def snapshot_id(data: bytes) -> str:
    """A snapshot's id: the sha256 of its bytes, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as safetensors bytes. Equal snapshots give equal bytes."""
    header: dict[str, Any] = {"__metadata__": {"deltamem": f"{'0' * 64} {_metadata(snapshot)}"}}
    data = b""
    for name, numbers in _tensors(snapshot).items():
        start = len(data)
        data += numbers.detach().to("cpu").contiguous().numpy().astype("<f4", copy=False).tobytes()
        header[name] = {"dtype": "F32", "shape": list(numbers.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    whole = bytearray(len(text).to_bytes(8, "little") + text + data)
    whole[_DIGEST] = _digest(whole).encode("ascii")
    return bytes(whole)


def _tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """The tensors that are stored, by name."""
    if snapshot.base is None:
        return {"state": snapshot.state.matrices[0]}
    base = {"base": snapshot.base.matrices[: int(bool(snapshot.base.matrices.any()))]}
    return base if snapshot.folded is None else {**base, "folded": snapshot.folded.matrices}


Scan: TypeAlias = Callable[[StatementList, MemoryState, bool], MemoryState]
"""Computes the state after the statements' writes on a base. Its last argument is `Snapshot.fades`."""


def decode(data: bytes, scan: Scan | None = None) -> Snapshot:
    """Decodes the bytes that `encode` made. `scan`: the store's function that computes the state from statements.

    Raises DamagedSnapshotError if the bytes are not, or no longer, a snapshot. Raises NewerFormatError if a later
    version of this package wrote them.
    """
    length = _header_length(data)
    if data[_DIGEST] != _digest(data).encode("ascii"):
        _damaged(f"its checksum is {data[_DIGEST][:12]!r}…", f"{_digest(data)[:12]!r}…")
    fields = _fields(data, length)
    try:
        return _snapshot(fields, _read_tensors(data), scan)
    except (ConfigError, StateError) as error:
        _damaged(str(error), "a snapshot as save writes it")


@dataclasses.dataclass(frozen=True)
class Links:
    """A snapshot's references to other snapshots and to statements; see `Snapshot`."""

    thread: str
    threads: Mapping[str, str]
    parent: str | None
    statements: StatementList | None


def decode_links(data: bytes) -> Links:
    """Decodes only a snapshot's links, much faster than `decode`. `data` must already be verified against the id.

    Raises DamagedSnapshotError and NewerFormatError as `decode` does.
    """
    fields = _fields(data, _header_length(data))
    try:
        return Links(fields["thread"], dict(fields["threads"]), fields["parent"], _statements(fields.get("statements")))
    except (KeyError, TypeError, ValueError) as error:
        _damaged(f"its metadata has other fields ({error!r})", "'thread', 'threads' and 'parent'")


def _fields(data: bytes, length: int) -> dict[str, Any]:
    """The metadata in a header of `length` bytes."""
    try:
        header = json.loads(data[8 : 8 + length])
        fields: dict[str, Any] = json.loads(header["__metadata__"]["deltamem"][65:])
        version = fields["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _damaged(f"its metadata does not parse ({error!r})", "JSON with a 'format'")
    if type(version) is not int or version < 1:
        _damaged(f"its format is {version!r}", f"a number from 1 to {FORMAT}")
    if version > FORMAT:
        raise NewerFormatError(
            f"snapshot has format {version}, this version of deltamem_agents reads up to {FORMAT}; "
            "upgrade the package to open it. It was left as it is"
        )
    return fields


def _digest(data: bytes | bytearray) -> str:
    view = memoryview(data)
    digest = hashlib.sha256(view[: _DIGEST.start])
    digest.update(view[_DIGEST.stop :])
    return digest.hexdigest()


def _header_length(data: bytes) -> int:
    """Length of the header in bytes. Raises DamagedSnapshotError if the file does not start as a snapshot does."""
    if len(data) < _DIGEST.stop:
        _damaged(f"it has {len(data)} bytes", f"more than {_DIGEST.stop}")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        _damaged(f"it has {len(data)} bytes", f"a header of {length} bytes and numbers after it")
    if data[8 : _DIGEST.start] != _PREFIX:
        _damaged(f"it starts with {data[8:24]!r}", f"{_PREFIX[:16]!r}…")
    return length


def _metadata(snapshot: Snapshot) -> str:
    made_by, counters, absorbed = snapshot.fingerprint, snapshot.counters, snapshot.absorbed
    fields: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": [made_by.model, made_by.tokenizer, made_by.adapter],
        "thread": snapshot.thread,
        "absorbed": {
            "count": absorbed.count,
            "tail": _packed_digests(absorbed.tail),
            "opening": _packed_digests(absorbed.opening),
        },
        "threads": list(snapshot.threads.items()),
        "parent": snapshot.parent,
        "counters": [counters.turns, counters.messages, counters.tokens],
        "created": snapshot.created,
        "note": snapshot.note,
        "origin": snapshot.origin,
        "statements": None
        if snapshot.statements is None
        else {"pages": "".join(snapshot.statements.pages), "newest": "".join(snapshot.statements.newest)},
        "fades": snapshot.fades,
    }
    if snapshot.went:
        fields["went"] = snapshot.went
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def _read_tensors(data: bytes) -> dict[str, MemoryState]:
    """The stored tensors by name: "state", or "base" and possibly "folded"."""
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        _damaged(f"its numbers cannot be read ({error})", "safetensors")
    places = {"state": 4, "base": 5, "folded": 5}
    fit = all(each.dtype == torch.float32 and each.ndim == places.get(name) for name, each in tensors.items())
    if not fit or set(tensors) not in ({"state"}, {"base"}, {"base", "folded"}):
        found = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
        _damaged(f"it holds {found}", "'state', torch.float32, (layers, heads, r, r)")
    if "state" in tensors:
        return {"state": MemoryState(tensors["state"][None].clone())}
    return {
        name: MemoryState(each.clone() if len(each) else torch.zeros(1, *each.shape[1:]))
        for name, each in tensors.items()
    }


def _packed_digests(digests: Sequence[str]) -> str | list[str]:
    """Message digests in a shorter form: 17 bytes each, base64."""
    if not all(map(_MESSAGE_DIGEST.fullmatch, digests)):
        return list(digests)
    return b64encode(b"".join(each[0].encode() + bytes.fromhex(each[2:]) for each in digests)).decode()


def _unpacked_digests(value: object) -> tuple[str, ...]:
    if not isinstance(value, str):
        return _texts(value, "absorbed")
    try:
        data = b64decode(value, validate=True)
    except ValueError as error:
        _damaged(f"its 'absorbed' does not parse ({error})", "base64")
    if len(data) % 17:
        _damaged(f"its 'absorbed' has {len(data)} bytes", "17 for each message")
    return tuple(f"{chr(data[at])}:{data[at + 1 : at + 17].hex()}" for at in range(0, len(data), 17))


def _statements(value: object) -> StatementList | None:
    if value is None:
        return None
    lists = _require_type(value, dict, "statements")

    def addresses(name: str) -> tuple[str, ...]:
        text = _require_type(lists.get(name), str, "statements")
        if not _ADDRESSES.fullmatch(text):
            _damaged(f"its 'statements' hold {text[:40]!r}", f"addresses of {ADDRESS_DIGITS} hex digits each")
        return tuple(text[at : at + ADDRESS_DIGITS] for at in range(0, len(text), ADDRESS_DIGITS))

    return StatementList(addresses("pages"), addresses("newest"))


def _snapshot(fields: object, numbers: Mapping[str, MemoryState], scan: Scan | None) -> Snapshot:
    if not isinstance(fields, dict) or set(fields) - {"went"} != (_FIELDS_1 if fields.get("format") == 1 else _FIELDS):
        _damaged("its metadata has other fields", ", ".join(sorted(_FIELDS)))
    absorbed = _require_type(fields["absorbed"], dict, "absorbed")
    threads = [_texts(pair, "threads") for pair in _require_type(fields["threads"], list, "threads")]
    if any(len(pair) != 2 for pair in threads):
        _damaged("its 'threads' hold something else", "pairs of name and id")
    parent = fields["parent"]
    made_by = _texts(fields["fingerprint"], "fingerprint")
    if len(made_by) != 3:
        _damaged(f"its fingerprint has {len(made_by)} parts", "model, tokenizer, adapter")
    state, base, folded = (numbers.get(name) for name in ("state", "base", "folded"))
    statements, fades = _statements(fields.get("statements")), _require_type(fields.get("fades", False), bool, "fades")
    if base is not None:
        if statements is None:
            _damaged("it has a 'base' and no statements", "both, or a 'state'")
        start = base if folded is None else folded
        state = start if scan is None else ScannedState(start, partial(scan, statements, start, fades))
    assert state is not None
    return Snapshot(
        state=state,
        fingerprint=Fingerprint(*made_by),
        thread=_require_type(fields["thread"], str, "thread"),
        absorbed=ThreadLog(
            _counts([absorbed.get("count")], 1)[0],
            _unpacked_digests(absorbed.get("tail")),
            () if fields["format"] == 1 else _unpacked_digests(absorbed.get("opening")),
        ),
        threads={name: newest for name, newest in threads},
        parent=None if parent is None else _require_type(parent, str, "parent"),
        counters=Counters(*_counts(fields["counters"], 3)),
        created=_time(fields["created"]),
        note=_require_type(fields["note"], str, "note"),
        origin=_require_type(fields["origin"], str, "origin"),
        statements=statements,
        base=base,
        fades=fades,
        folded=folded,
        went=_counts([fields.get("went", 0)], 1)[0],
    )


def _require_type(value: object, kind: type[_T], name: str) -> _T:
    if not isinstance(value, kind):
        _damaged(f"its {name!r} is {type(value).__name__}", kind.__name__)
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    items = _require_type(value, list, name)
    # Most snapshots have hundreds of them, so they are checked one by one only if one has a wrong type.
    return tuple(items) if set(map(type, items)) <= {str} else tuple(_require_type(item, str, name) for item in items)


def _counts(value: object, wanted: int) -> tuple[int, ...]:
    counts = tuple(_require_type(item, int, "counters") for item in _require_type(value, list, "counters"))
    if len(counts) != wanted or min(counts) < 0 or any(isinstance(count, bool) for count in counts):
        _damaged(f"its counters are {counts}", f"{wanted} numbers from 0")
    return counts


def _time(value: object) -> str:
    text = _require_type(value, str, "created")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        _damaged(f"its time is {text!r}", "ISO 8601")
    return text


def _damaged(found: str, expected: str) -> NoReturn:
    raise DamagedSnapshotError(
        f"snapshot is damaged: {found}, expected {expected}. Nothing was overwritten; "
        "rewind to another snapshot of the agent's log, or import an export of the agent"
    )
