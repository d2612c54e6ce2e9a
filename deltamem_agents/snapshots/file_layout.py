"""The file formats of a FileStore: its marker, refs and journals, with their checks."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deltamem_agents.errors import DamagedSnapshotError, NewerFormatError
from deltamem_agents.snapshots.durable import append, replacing
from deltamem_agents.snapshots.records import Move, Removed
from deltamem_agents.snapshots.statements import FORGOTTEN

LAYOUT = 1
STATEMENTS = "statements"


@dataclass(frozen=True)
class Ref:
    """Which files of an agent's folder are committed. `length`: committed bytes of the journal; later bytes are not."""

    agent: str
    head: str
    journal: str
    length: int
    tags: Mapping[str, str]

    @property
    def incarnation(self) -> str:
        """The token shared by all journals of one agent. Another agent of the same name has another token."""
        return self.journal.removeprefix("journal-").split(".")[0]


def snapshot_file(folder: Path, snapshot: str) -> Path:
    return folder / "snapshots" / f"{snapshot}.safetensors"


def statement_file(folder: Path, at: str) -> Path:
    return folder / STATEMENTS / at


def is_leftover(folder: Path) -> bool:
    return "." in folder.name


def temporary_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")


def require_layout(marker: Path) -> None:
    try:
        layout = json.loads(marker.read_bytes())["deltamem_store"]
    except (ValueError, KeyError, TypeError):
        layout = None
    if not isinstance(layout, int):
        raise damaged(marker, repr(marker.read_bytes()[:40]), "a JSON object with 'deltamem_store'")
    if layout > LAYOUT:
        raise NewerFormatError(
            f"the store {str(marker.parent)!r} has layout {layout}, this version of deltamem_agents reads up to "
            f"{LAYOUT}; upgrade the package to open it. It was not changed"
        )


def _with_checksum(value: object) -> bytes:
    """A line of JSON with its checksum in front."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _without_checksum(line: bytes, path: Path) -> object:
    text = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(text), text):
        raise damaged(path, f"a line {line[:24]!r}… that does not match its checksum", "one that does")
    value: object = json.loads(text)
    return value


def _line(move: Move) -> bytes:
    return _with_checksum([move.verb, move.snapshot, move.at])


def read_ref(folder: Path) -> Ref | None:
    """The agent's ref, None if there is no such agent."""
    path = folder / "ref"
    for _ in range(2):
        try:
            fields = _without_checksum(path.read_bytes(), path)
        except FileNotFoundError:
            # An agent appears and disappears by one rename. If the folder exists now, it appeared meanwhile: try again.
            if not folder.exists():
                return None
            continue
        if not isinstance(fields, dict):
            raise damaged(path, type(fields).__name__, "a JSON object")
        return Ref(**fields)
    raise damaged(path, "no file", "a file beside the agent's snapshots")


def write_ref(folder: Path, ref: Ref) -> None:
    with replacing(folder / "ref") as file:
        file.write(_with_checksum(asdict(ref)))


def read_journal(path: Path, ref: Ref) -> list[Move]:
    with open(path, "rb") as file:
        data = file.read(ref.length)
    if len(data) < ref.length:
        raise damaged(path, f"{len(data)} bytes", f"{ref.length}")
    lines = [_without_checksum(line, path) for line in data.splitlines(keepends=True)]
    moves = [Move(*map(str, fields)) for fields in lines if isinstance(fields, list)]
    if not moves or moves[-1].snapshot != ref.head:
        raise damaged(path, "another last move", f"one to {ref.head}")
    return moves


def add_move(folder: Path, ref: Ref, move: Move) -> None:
    """Moves the head: first appends to the journal, then replaces the ref, which commits it."""
    path, line = folder / ref.journal, _line(move)
    if path.stat().st_size < ref.length:
        raise damaged(path, f"{path.stat().st_size} bytes", f"{ref.length}")
    append(path, line, at=ref.length)
    write_ref(folder, replace(ref, head=move.snapshot, length=ref.length + len(line)))


def write_journal(
    folder: Path, agent: str, moves: Sequence[Move], tags: Mapping[str, str], *, incarnation: str | None = None
) -> None:
    """Writes a new journal, which replaces any earlier one. `incarnation`: the agent's token, None for a new agent."""
    data = b"".join(map(_line, moves))
    token = secrets.token_hex(8)
    name = f"journal-{token}" if incarnation is None else f"journal-{incarnation}.{token}"
    with replacing(folder / name) as file:
        file.write(data)
    write_ref(folder, Ref(agent, moves[-1].snapshot, name, len(data), dict(tags)))


def link_or_copy(source: Path, target: Path) -> bool:
    """Hard-links or copies a file to a second path. Returns False if the file does not exist."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except FileNotFoundError:
        return False
    except OSError:
        # The file system has no hard links, or this file has the maximum number of them.
        with replacing(target) as file:
            file.write(source.read_bytes())
    return True


def removal_of(
    folder: Path, ids: Iterable[str], others: Sequence[Path], file: Callable[[Path, str], Path] = snapshot_file
) -> Removed:
    """The files that deleting these snapshots or statements will remove. Files in another agent's folder stay."""

    def held(path: Path) -> bool:
        return path.exists() and path.stat().st_size > len(FORGOTTEN)

    kept = dict.fromkeys(each for each in ids if any(held(file(other, each)) for other in others))
    files = {each: file(folder, each) for each in ids if each not in kept}
    sizes = {each: path.stat().st_size for each, path in files.items() if path.exists()}
    return Removed(tuple(sizes), tuple(kept), sum(sizes.values()))


def sweep(folder: Path) -> None:
    """Deletes files that the agent's ref does not reach: replaced journals, dropped snapshots, interrupted writes."""
    ref = read_ref(folder)
    if ref is None:
        return
    held = {f"{move.snapshot}.safetensors" for move in read_journal(folder / ref.journal, ref)}
    reached = {"ref", "snapshots", STATEMENTS, ref.journal, *held}
    for path in [*folder.iterdir(), *(folder / "snapshots").iterdir()]:
        if path.name not in reached:
            path.unlink()


def damaged(path: Path, found: str, expected: str) -> DamagedSnapshotError:
    return DamagedSnapshotError(
        f"the store's file {str(path)!r} is damaged: it holds {found}, expected {expected}. Nothing was overwritten; "
        "restore it from a backup, or import an export of the agent with replace=True"
    )
