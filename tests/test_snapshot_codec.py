"""The snapshot file format: a round trip is exact, and any other bytes are refused."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError, DamagedSnapshotError, ForeignSnapshotError, NewerFormatError, StateError
from deltamem_agents.memory.state import MemoryState
from deltamem_agents.names import NAME_LENGTH
from deltamem_agents.snapshots import (
    FORMAT,
    Counters,
    Entry,
    Fingerprint,
    InMemoryStore,
    Move,
    Snapshot,
    decode,
    encode,
    snapshot_id,
)
from deltamem_agents.snapshots.codec import decode_links
from deltamem_agents.snapshots.snapshot import NOTE_LENGTH, THREADS
from deltamem_agents.testing import example_snapshot
from deltamem_agents.types import ThreadLog

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBERS = st.integers(0, 2**70)
MADE_BY = Fingerprint("model", "tokenizer", "adapter")


def state(layers: int = 2, heads: int = 1, rank: int = 4) -> MemoryState:
    return MemoryState(torch.randn(1, layers, heads, rank, rank))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    layers, heads, rank = (draw(st.integers(1, 3)) for _ in range(3))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    size = layers * heads * rank * rank
    matrices = torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size))).reshape(1, layers, heads, rank, rank)
    tail = tuple(draw(st.lists(ANY_TEXT, max_size=5)))
    return Snapshot(
        state=MemoryState(matrices),
        fingerprint=Fingerprint(draw(ANY_TEXT), draw(ANY_TEXT), draw(ANY_TEXT)),
        thread=draw(ANY_TEXT),
        absorbed=ThreadLog(len(tail) + draw(NUMBERS), tail, tuple(draw(st.lists(ANY_TEXT, max_size=5)))),
        threads=draw(st.dictionaries(ANY_TEXT, IDS, max_size=5)),
        parent=draw(st.none() | IDS),
        counters=Counters(draw(NUMBERS), draw(NUMBERS), draw(NUMBERS)),
        note=draw(ANY_TEXT),
        origin=draw(st.sampled_from(["turn", "absorb", "re-absorb"])),
    )


@given(snapshots())
def test_encoding_and_decoding_is_the_identity(snapshot: Snapshot) -> None:
    data = encode(snapshot)
    back = decode(data)
    assert torch.equal(back.state.matrices.view(torch.int32), snapshot.state.matrices.view(torch.int32))
    for name in ("fingerprint", "thread", "absorbed", "parent", "counters", "created", "note", "origin"):
        assert getattr(back, name) == getattr(snapshot, name), name
    # Order matters: it says which thread was idle longest.
    assert list(back.threads.items()) == list(snapshot.threads.items())
    assert encode(back) == data


@given(snapshots())
def test_decode_links_agrees_with_decode(snapshot: Snapshot) -> None:
    links = decode_links(encode(snapshot))
    assert (links.thread, links.threads, links.parent) == (snapshot.thread, snapshot.threads, snapshot.parent)
    assert list(links.threads) == list(snapshot.threads)


def test_the_id_is_the_sha256_of_the_bytes() -> None:
    data = encode(example_snapshot())
    assert snapshot_id(data) == hashlib.sha256(data).hexdigest()


def test_equal_snapshots_have_equal_bytes_and_any_difference_changes_the_id() -> None:
    first = example_snapshot()
    assert encode(replace(first)) == encode(first)
    # A view, other strides or another autograd history do not change the numbers.
    strided = first.state.matrices.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    assert encode(replace(first, state=MemoryState(strided))) == encode(first)
    others = [replace(first, note="x"), replace(first, thread="x"), replace(first, parent="f" * 64)]
    others.append(replace(first, state=MemoryState(first.state.matrices + 1e-6)))
    assert len({snapshot_id(encode(each)) for each in [first, *others]}) == 5


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    snapshot = example_snapshot(note="for any reader")
    path = tmp_path / "snapshot.safetensors"
    path.write_bytes(encode(snapshot))
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.keys()) == ["state"]
        assert torch.equal(file.get_tensor("state"), snapshot.state.matrices[0])
        assert json.loads(file.metadata()["deltamem"][65:])["note"] == "for any reader"


def test_a_loaded_state_shares_no_memory_with_the_bytes() -> None:
    data = encode(example_snapshot())
    decode(data).state.matrices.zero_()
    assert decode(data).state.norm() > 0


DATA = encode(example_snapshot(3, thread="t", note="a note"))


def test_any_flipped_bit_is_damage() -> None:
    for bit in range(len(DATA) * 8):
        flipped = bytearray(DATA)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedSnapshotError, match=r"expected .* Nothing was overwritten"):
            decode(bytes(flipped))


def test_any_truncation_is_damage() -> None:
    for length in range(len(DATA)):
        with pytest.raises(DamagedSnapshotError, match="expected"):
            decode(DATA[:length])


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda extra: DATA + b"\0" + extra))
def test_other_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedSnapshotError):
        decode(data)


def forged(change: dict[str, object], *, drop: str = "", tensors: str = "", data: bytes | None = None) -> bytes:
    """A snapshot with a valid checksum and invalid contents."""
    length = int.from_bytes(DATA[:8], "little")
    header = json.loads(DATA[8 : 8 + length])
    fields = json.loads(header["__metadata__"]["deltamem"][65:]) | change
    fields.pop(drop, None)
    header["__metadata__"]["deltamem"] = "0" * 64 + " " + json.dumps(fields)
    if tensors:
        header = {"__metadata__": header["__metadata__"], **json.loads(tensors)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = bytearray(len(text).to_bytes(8, "little") + text + (DATA[8 + length :] if data is None else data))
    at = whole.index(b"0" * 64)
    whole[at : at + 64] = hashlib.sha256(whole[:at] + whole[at + 64 :]).hexdigest().encode()
    return bytes(whole)


def test_a_forgery_without_changes_decodes() -> None:
    assert decode(forged({})).note == "a note"


def test_a_newer_format_is_refused_whatever_else_the_file_contains() -> None:
    for data in (
        forged({"format": FORMAT + 1}),
        forged({"format": 99, "threads": {"a": 1}, "new key": []}, drop="absorbed"),
        forged(
            {"format": FORMAT + 1},
            tensors='{"other":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}',
            data=b"\0" * 8,
        ),
    ):
        with pytest.raises(NewerFormatError, match=r"format \d+, .* reads up to 2; upgrade"):
            decode(data)


@pytest.mark.parametrize(
    "data",
    [
        forged({"format": 0}),
        forged({"format": "1"}),
        forged({"format": True}),
        forged({}, drop="format"),
        forged({}, drop="note"),
        forged({"more": 1}),
        forged({"thread": 7}),
        forged({"thread": "x" * 513}),
        forged({"threads": [["a"]]}),
        forged({"threads": [["a", "../../etc/passwd"]]}),
        forged({"threads": [[f"{n}", "f" * 64] for n in range(THREADS + 1)]}),
        forged({"parent": "../../etc/passwd"}),
        forged({"counters": [1, 2]}),
        forged({"counters": [1, 2, -3]}),
        forged({"counters": [1, 2, True]}),
        forged({"counters": [1, 2, 0.5]}),
        forged({"absorbed": {"count": 0, "tail": ["a"]}}),
        forged({"absorbed": {"count": 300, "tail": ["a"] * 257}}),
        forged({"absorbed": {"count": 1, "tail": ["a"]}}),
        forged({"absorbed": {"count": 1, "tail": ["a"], "opening": ["a"] * 129}}),
        forged({"absorbed": {"count": 1, "tail": ["a"], "opening": "a"}}),
        forged({"absorbed": None}),
        forged({"fingerprint": ["a", "b"]}),
        forged({"created": "yesterday"}),
        forged({"origin": "two words"}),
        forged({}, tensors='{"state":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', data=b"\0" * 16),
        forged({}, tensors='{"state":{"dtype":"I32","shape":[1,1,1,1],"data_offsets":[0,4]}}', data=b"\0" * 4),
        forged({}, tensors='{"state":{"dtype":"F32","shape":[1,1,1,2],"data_offsets":[0,8]}}', data=b"\0" * 8),
        forged({}, tensors='{"state":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[0,8]}}', data=b"\0" * 8),
        forged({}, tensors='{"state":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[0,4]}}', data=b"\0\0\xc0\x7f"),
        forged({}, tensors='{"other":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[0,4]}}', data=b"\0" * 4),
        forged({}, tensors='{"state":[[[[1]]]]}'),
        forged({}, data=b""),
    ],
)
def test_invalid_contents_with_a_valid_checksum_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedSnapshotError, match="expected"):
        decode(data)


# Bytes that version 0.1 wrote.
FORMAT_1 = (
    b'X\x02\0\0\0\0\0\0{"__metadata__":{"deltamem":"36120652b6f1eb9fee304a1c2567166e4ead9ea2f3368e811f7ec1b2c5b8d801 '
    b'{\\"absorbed\\":{\\"count\\":300,\\"tail\\":[\\"u:1\\",\\"a:1\\"]},\\"counters\\":[3,300,900],'
    b'\\"created\\":\\"2025-11-01T12:00:00.000+00:00\\",\\"fingerprint\\":[\\"model\\",\\"tokenizer\\",\\"adapter\\"],'
    b'\\"format\\":1,\\"note\\":\\"written by 0.1\\",\\"origin\\":\\"turn\\",\\"parent\\":\\"' + b"cd" * 32 + b'\\",'
    b'\\"thread\\":\\"t\\",\\"threads\\":[[\\"other\\",\\"' + b"ab" * 32 + b'\\"]]}"},'
    b'"state":{"dtype":"F32","shape":[1,1,2,2],"data_offsets":[0,16]}}    '
    b"\0\0\x80?\0\0\0@\0\0@@\0\0\x80@"
)


def test_a_snapshot_of_format_1_is_read() -> None:
    snapshot = decode(FORMAT_1)
    assert snapshot_id(FORMAT_1) == "893fdaedf5cf248e260b72ef70238823f912e821c79de3b1926004aca63b746e"
    assert snapshot.state.matrices.flatten().tolist() == [1, 2, 3, 4]
    assert snapshot.absorbed == ThreadLog(300, ("u:1", "a:1"))
    assert (snapshot.thread, snapshot.threads, snapshot.parent) == ("t", {"other": "ab" * 32}, "cd" * 32)
    assert snapshot.counters == Counters(3, 300, 900) and snapshot.note == "written by 0.1"
    snapshot.fingerprint.require(MADE_BY)
    assert encode(decode(encode(snapshot))) == encode(snapshot) != FORMAT_1


def test_an_agent_of_format_1_can_be_continued_forked_and_exported() -> None:
    store, at = InMemoryStore(), snapshot_id(FORMAT_1)
    store._append("a", Move("turn", at, "2025-11-01T12:00:00.000+00:00"), FORMAT_1, None)
    later = store.save("a", example_snapshot(1, store.load("a")), expected=at)
    store.fork("a", "b", at)
    file = io.BytesIO()
    store.export("a", file)
    store.import_(file, "c")
    assert [entry.id for entry in store.log("c")] == [entry.id for entry in store.log("a")] == [later, at]
    assert store._blob("b", at) == store._blob("c", at) == FORMAT_1


def test_a_foreign_fingerprint_is_refused_and_the_error_names_the_parts() -> None:
    MADE_BY.require(Fingerprint("model", "tokenizer", "adapter"))
    with pytest.raises(ForeignSnapshotError, match="adapter is 'adapter', expected 'other'") as caught:
        MADE_BY.require(replace(MADE_BY, adapter="other"))
    assert "model is" not in str(caught.value)
    assert "tokenizer is" not in str(caught.value)
    with pytest.raises(ForeignSnapshotError, match=r"model is 'model', expected 'm'; format is 2, expected 3\. "):
        MADE_BY.require(replace(MADE_BY, model="m", format=3))


@pytest.mark.parametrize(
    "bad",
    [
        MemoryState(torch.zeros(2, 1, 1, 2, 2)),
        MemoryState(torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64)),
        MemoryState(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 2)),
        MemoryState(torch.full((1, 1, 1, 2, 2), float("nan"))),
        MemoryState(torch.full((1, 1, 1, 2, 2), float("inf"))),
    ],
    ids=["two sequences", "float64", "mid forward", "nan", "inf"],
)
def test_a_state_that_may_not_be_saved_makes_no_snapshot(bad: MemoryState) -> None:
    with pytest.raises(StateError):
        Snapshot(bad, MADE_BY)


def test_fields_out_of_bounds_make_no_snapshot() -> None:
    good = Snapshot(state(), MADE_BY, thread="x" * NAME_LENGTH, note="x" * NOTE_LENGTH)
    for change in (
        {"thread": "x" * (NAME_LENGTH + 1)},
        {"note": "x" * (NOTE_LENGTH + 1)},
        {"threads": {f"{n}": "f" * 64 for n in range(THREADS + 1)}},
        {"threads": {"a": "not an id"}},
        {"parent": "F" * 64},
        {"absorbed": ThreadLog(1, ("a", "b"))},
        {"absorbed": ThreadLog(300, ("a",) * 257)},
        {"origin": ""},
        {"origin": "Turn"},
        {"origin": "-"},
    ):
        with pytest.raises(ConfigError, match="expected"):
            replace(good, **change)


def test_each_thread_is_found_from_the_newest_snapshot() -> None:
    entry, newest = None, {}
    for turn, thread in enumerate(["a", "b", "a", "", "c", "b"]):
        entry = Entry(f"{turn:064x}", example_snapshot(turn, entry, thread=thread))
        newest[thread] = entry.id
    assert entry is not None
    assert {thread: entry.newest(thread) for thread in ("a", "b", "c", "")} == newest
    assert entry.newest("never seen") is None
    assert list(entry.threads()) == ["a", "", "c", "b"]


@pytest.mark.slow
def test_bytes_do_not_grow_with_the_conversation() -> None:
    entry = None
    sizes = []
    for turn in range(3 * THREADS):
        snapshot = replace(example_snapshot(turn, entry, thread=f"{turn:08d}"), absorbed=ThreadLog(9, ("f" * 64,) * 9))
        entry = Entry(f"{turn:064x}", snapshot)
        if turn in (2 * THREADS, 3 * THREADS - 1):
            sizes.append(len(encode(snapshot)))
    assert entry is not None
    assert len(entry.threads()) == THREADS
    assert entry.newest(f"{2 * THREADS - 1:08d}") is not None
    assert entry.newest(f"{2 * THREADS - 2:08d}") is None
    assert abs(sizes[1] - sizes[0]) <= 16
