"""The export format: one agent in one file, an uncompressed zip of its snapshots and a manifest.

    manifest.json             format, agent, moves (oldest first) and tags
    <id>.safetensors          the bytes of each snapshot
    statements/<address>      the bytes of each statement, and of each page of statements

Every byte that matters is covered by a checksum: the manifest by the zip's CRC, each snapshot by its id, each statement
by its address. An archive without statements has format 1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from deltamem_agents.errors import DamagedSnapshotError, NewerFormatError
from deltamem_agents.snapshots.codec import decode, snapshot_id
from deltamem_agents.snapshots.records import Move
from deltamem_agents.snapshots.snapshot import check_verb, is_snapshot_id
from deltamem_agents.snapshots.statements import FORGOTTEN, address

ARCHIVE_FORMAT = 2
_MANIFEST = "manifest.json"
_FOLDER = "statements/"
_EPOCH = (1980, 1, 1, 0, 0, 0)
# Neither zipfile nor json documents what it raises for damaged input; these are the errors seen in practice.
_FAULTS = (
    zipfile.BadZipFile,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def write_archive(
    file: BinaryIO,
    agent: str,
    moves: Sequence[Move],
    tags: Mapping[str, str],
    blobs: Iterable[tuple[str, bytes]],
    objects: Sequence[str] = (),
    found: Iterable[tuple[str, bytes]] = (),
) -> None:
    """Writes the archive, one snapshot at a time. Equal contents give equal bytes.

    `objects`: the addresses of statements and pages. `found`: address and bytes of each one that exists.
    """
    manifest = {
        "format": ARCHIVE_FORMAT if objects else 1,
        "agent": agent,
        "moves": [[move.verb, move.snapshot, move.at] for move in moves],
        "tags": dict(sorted(tags.items())),
    }
    if objects:
        manifest["statements"] = list(objects)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_MANIFEST, _EPOCH), json.dumps(manifest, indent=1))
        for name, data in blobs:
            archive.writestr(zipfile.ZipInfo(f"{name}.safetensors", _EPOCH), data)
        for name, data in found:
            archive.writestr(zipfile.ZipInfo(f"{_FOLDER}{name}", _EPOCH), data)


class Archive(Mapping[str, bytes]):
    """An archive open for reading: the bytes of each snapshot by its id, verified at every read.

    Raises NewerFormatError for an archive of a later version, DamagedSnapshotError for any other archive that is not
    complete.
    """

    def __init__(self, file: BinaryIO) -> None:
        with _as_damage():
            self._zip = zipfile.ZipFile(file)
            fields = json.loads(self._member(_MANIFEST))
            version = fields["format"]
            if type(version) is not int or version < 1:
                raise ValueError(f"its format is {version!r}")
        if version > ARCHIVE_FORMAT:
            raise NewerFormatError(
                f"archive has format {version}, this version of deltamem_agents reads up to {ARCHIVE_FORMAT}; "
                "upgrade the package to import it. Nothing was written"
            )
        with _as_damage():
            self.agent: str = fields["agent"]
            self.moves = tuple(Move(*map(_text, move)) for move in fields["moves"])
            self.tags: dict[str, str] = {_text(name): _text(target) for name, target in fields["tags"].items()}
            self._ids = dict.fromkeys(move.snapshot for move in self.moves)
            self.objects: Mapping[str, bytes] = _Objects(self._zip, tuple(map(_text, fields.get("statements", ()))))
            self._check_manifest()

    def _check_manifest(self) -> None:
        for move in self.moves:
            check_verb(move.verb)
        wanted = [_MANIFEST, *(f"{snapshot}.safetensors" for snapshot in self._ids)]
        wanted += [f"{_FOLDER}{each}" for each in self.objects]
        if sorted(self._zip.namelist()) != sorted(wanted) or not all(map(is_snapshot_id, self._ids)):
            raise ValueError("its files are not those that its manifest lists")
        if not self._ids or not self._ids.keys() >= set(self.tags.values()):
            raise ValueError("its manifest lists no snapshots, or tags of snapshots that it does not list")

    def _member(self, name: str) -> bytes:
        return _member(self._zip, name)

    def __getitem__(self, snapshot: str) -> bytes:
        with _as_damage():
            data = self._member(f"{snapshot}.safetensors")
            if snapshot_id(data) != snapshot:
                raise ValueError(f"the bytes of snapshot {snapshot[:12]}… do not match its id")
        return data

    def __contains__(self, snapshot: object) -> bool:
        return snapshot in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def verify(self) -> None:
        """Reads and decodes everything once, so that an import writes either everything or nothing."""
        for data in self.values():
            decode(data)
        for each, data in self.objects.items():
            if data != FORGOTTEN and address(data) != each:
                raise DamagedSnapshotError(
                    f"archive is damaged: the bytes of statement {each} do not match its address. Nothing was "
                    "written; export the agent again or fetch another copy"
                )


class _Objects(Mapping[str, bytes]):
    """The statements and pages of an archive, by address."""

    def __init__(self, archive: zipfile.ZipFile, ids: Sequence[str]) -> None:
        self._zip, self._ids = archive, dict.fromkeys(ids)

    def __getitem__(self, each: str) -> bytes:
        with _as_damage():
            return _member(self._zip, f"{_FOLDER}{each}")

    def __contains__(self, each: object) -> bool:
        return each in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(info)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"its manifest holds {value!r} where text is expected")
    return value


@contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except (NewerFormatError, DamagedSnapshotError):
        raise
    except _FAULTS as error:
        raise DamagedSnapshotError(
            f"archive is damaged: {error}, expected a complete file written by export. "
            "Nothing was written; export the agent again or fetch another copy"
        ) from error
