"""The default store: one SQLite file, safe across threads and processes, durable at every commit."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from deltamem_agents.errors import DamagedSnapshot, NewerFormat, StoreError
from deltamem_agents.snapshots.durable import named_faults, sync_folder
from deltamem_agents.snapshots.records import Move, Removed
from deltamem_agents.snapshots.refusals import (
    agent_exists,
    closed,
    no_agent,
    no_snapshot,
    require_free_tag,
    require_head,
    require_own_process,
)
from deltamem_agents.snapshots.store import Store

SCHEMA = 1
_APPLICATION = 0x444D454D  # "DMEM", in the field where a SQLite file names its owner
_BUSY_SECONDS = 30.0
_MAGIC = b"SQLite format 3\x00"

# Names are UTF-8 in BLOBs: compared byte by byte, and free to hold NUL.
_TABLES = f"""
BEGIN;
CREATE TABLE agents (key INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE);
CREATE TABLE snapshots (id TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE moves (
    seq INTEGER PRIMARY KEY, agent INTEGER NOT NULL, snapshot TEXT NOT NULL, verb TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX moves_by_agent ON moves (agent, seq);
CREATE INDEX moves_by_snapshot ON moves (snapshot, agent);
CREATE TABLE tags (agent INTEGER NOT NULL, name BLOB NOT NULL, snapshot TEXT NOT NULL, UNIQUE (agent, name));
CREATE TABLE erasures (seq INTEGER PRIMARY KEY, at TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA};
COMMIT;
PRAGMA journal_mode = WAL;
"""


class SQLiteStore(Store):
    """One file, made when it is not there. In a folder that cannot be written, it can still be read.

    Write-ahead log, synchronous=FULL: a commit is on disk before `save` returns. A commit waits up to 30 s for
    those of other processes. Open it anew in a forked process. SQLite's log needs a local disk: on a network
    folder use FileStore.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._pid = os.getpid()
        self._lock = Lock()
        with named_faults(f"open the store {str(self.path)!r}"):
            if not self.path.exists():
                _create_file(self.path)
            _require_own_file(self.path)
        with self._naming_faults():
            self._db: sqlite3.Connection | None = _connect(self.path)
        try:
            self._make_ready()
        except BaseException:
            self.close()
            raise

    def _make_ready(self) -> None:
        with self._reading() as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
        if self._unfinished_erasure():
            with suppress(StoreError):
                self._scrub()

    def close(self) -> None:
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        require_own_process(f"the store {str(self.path)!r}", self._pid)
        with self._lock, self._naming_faults():
            if self._db is None:
                raise closed(f"the store {str(self.path)!r}")
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file's write lock: committed at the end, undone by any exception."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back by itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedSnapshot(
                    f"the store {str(self.path)!r} is damaged: {error}. Nothing was overwritten; "
                    "restore the file from a backup, or import an export into a new store"
                ) from error
            raise StoreError(
                f"cannot use the store {str(self.path)!r}: {error}. The memory is as it was; "
                "check the free space, the permissions and other programs there, then try again"
            ) from error

    def _agents(self) -> list[str]:
        with self._reading() as db:
            return [bytes(name).decode() for (name,) in db.execute("SELECT name FROM agents")]

    def _head(self, agent: str) -> str | None:
        with self._reading() as db:
            return _head_of(db, _key(db, agent))

    def _incarnation(self, agent: str) -> str | None:
        with self._reading() as db:
            key = _key(db, agent)
            return None if key is None else str(key)

    def _journal(self, agent: str) -> list[Move]:
        with self._reading() as db:
            rows = db.execute("SELECT verb, snapshot, at FROM moves WHERE agent = ? ORDER BY seq", [_key(db, agent)])
            return [Move(*row) for row in rows]

    def _tags(self, agent: str) -> dict[str, str]:
        with self._reading() as db:
            return _tags_of(db, _key(db, agent))

    def _blob(self, agent: str, snapshot: str) -> bytes | None:
        with self._reading() as db:
            if not _holds(db, _key(db, agent), snapshot):
                return None
            row = db.execute("SELECT data FROM snapshots WHERE id = ?", [snapshot]).fetchone()
            return None if row is None else row[0]

    def _append(self, agent: str, move: Move, data: bytes | None, expected: str | None) -> None:
        with self._writing() as db:
            key = _key(db, agent)
            require_head(agent, _head_of(db, key), expected)
            if data is not None:
                _put(db, move.snapshot, data)
            elif not _holds(db, key, move.snapshot):
                raise no_snapshot(agent, move.snapshot)
            _record(db, _add_agent(db, agent) if key is None else key, [move])

    def _create(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        *,
        source: str | None,
        replace: bool,
    ) -> None:
        with self._writing() as db:
            key = _key(db, agent)
            if key is not None and not replace:
                raise agent_exists(agent)
            shared = None if source is None else _key(db, source)
            for snapshot in dict.fromkeys(move.snapshot for move in moves):
                if snapshot in blobs:
                    _put(db, snapshot, blobs[snapshot])
                elif not _holds(db, shared, snapshot):
                    raise no_snapshot(source or agent, snapshot)
            replaced = [] if key is None else _clear(db, key)
            key = _add_agent(db, agent)
            _record(db, key, moves)
            rows = [(key, name.encode(), snapshot) for name, snapshot in tags.items()]
            db.executemany("INSERT INTO tags (agent, name, snapshot) VALUES (?, ?, ?)", rows)
            _release(db, replaced)

    def _set_tag(self, agent: str, name: str, snapshot: str | None) -> None:
        with self._writing() as db:
            key = _key(db, agent)
            if key is None:
                raise no_agent(agent)
            require_free_tag(agent, name, _tags_of(db, key).get(name), snapshot)
            db.execute("DELETE FROM tags WHERE agent = ? AND name = ?", [key, name.encode()])
            if snapshot is not None:
                if not _holds(db, key, snapshot):
                    raise no_snapshot(agent, snapshot)
                db.execute("INSERT INTO tags (agent, name, snapshot) VALUES (?, ?, ?)", [key, name.encode(), snapshot])

    def _drop(self, agent: str, snapshots: Collection[str]) -> Removed:
        with self._writing() as db:
            key = _key(db, agent)
            if key is None:
                raise no_agent(agent)
            gone = sorted(set(snapshots) - {_head_of(db, key), *_tags_of(db, key).values()})
            held = [snapshot for snapshot in gone if _holds(db, key, snapshot)]
            db.executemany("DELETE FROM moves WHERE agent = ? AND snapshot = ?", [(key, each) for each in held])
            return _release(db, held)

    def _erase(self, agent: str) -> Removed:
        with self._writing() as db:
            key = _key(db, agent)
            if key is None:
                raise no_agent(agent)
            db.execute("INSERT INTO erasures (at) VALUES (datetime())")
            removed = _release(db, _clear(db, key))
        try:
            self._scrub()
        except StoreError as error:
            raise StoreError(
                f"agent {agent!r} was forgotten, but its bytes are not yet wiped from {str(self.path)!r}: {error}. "
                "Close what else uses the file, free disk space, and open the store again: that finishes it"
            ) from error
        return removed

    def _branch_points(self, agent: str) -> set[str]:
        with self._reading() as db:
            rows = db.execute(
                """
                SELECT theirs.snapshot FROM moves AS own
                JOIN moves AS theirs ON theirs.snapshot = own.snapshot AND theirs.agent <> own.agent
                WHERE own.agent = ? AND (theirs.verb = 'fork' OR NOT EXISTS (
                    SELECT 1 FROM moves AS later WHERE later.agent = theirs.agent AND later.seq > theirs.seq
                ))
                """,
                [_key(db, agent)],
            )
            return {snapshot for (snapshot,) in rows}

    def _unfinished_erasure(self) -> bool:
        with self._reading() as db:
            return db.execute("SELECT 1 FROM erasures LIMIT 1").fetchone() is not None

    def _scrub(self) -> None:
        """Rewrites the file and empties the log, so that deleted bytes are in neither.

        secure_delete zeroes what is deleted, but copies that the B-trees moved earlier go only with a rewrite.
        """
        with self._reading() as db:
            last = db.execute("SELECT max(seq) FROM erasures").fetchone()[0]
            db.execute("VACUUM")
            if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise StoreError("another program is reading the file's log")
            db.execute("DELETE FROM erasures WHERE seq <= ?", [last])


def _create_file(path: Path) -> None:
    """A new store that appears under its name whole or not at all; so an empty file is never a store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_name(f"{path.name}-wal")
    # In this order: another process may be making the same store.
    if log.exists() and not path.exists():
        raise StoreError(
            f"{str(path)!r} is missing but its log {log.name!r} is there, expected both or neither; "
            "bring the file back, or move the log away to start anew"
        )
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        db = sqlite3.connect(temporary, isolation_level=None)
        try:
            db.executescript(_TABLES)
        finally:
            db.close()
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:
            # A file system without hard links.
            os.replace(temporary, path)
        sync_folder(path.parent)
    except sqlite3.Error as error:
        raise StoreError(f"cannot make the store {str(path)!r}: {error}; check the free space there") from error
    finally:
        temporary.unlink(missing_ok=True)


def _require_own_file(path: Path) -> None:
    """Refuses any file that is not a store of ours, by its first bytes and without opening it as a database."""
    with open(path, "rb") as file:
        start = file.read(100)
    if len(start) < 100 or not start.startswith(_MAGIC):
        raise StoreError(
            f"{str(path)!r} starts with {start[:16]!r}, expected a SQLite file: it is something else or was cut short. "
            "It was left alone; choose another path, or restore it from a backup"
        )
    schema, owner = (int.from_bytes(start[offset : offset + 4], "big") for offset in (60, 68))
    if owner != _APPLICATION:
        raise StoreError(
            f"{str(path)!r} is another program's SQLite file (application {owner:#x}, expected {_APPLICATION:#x}). "
            "It was left alone; choose another path"
        )
    if schema > SCHEMA:
        raise NewerFormat(
            f"the store {str(path)!r} has schema {schema}, this version of deltamem_agents reads up to {SCHEMA}; "
            "upgrade the package to open it. It was left alone"
        )


def _connect(path: Path) -> sqlite3.Connection:
    # A log cannot be opened where none can be made; without one the file does not change and needs none.
    frozen = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.as_uri()}?{'immutable=1' if frozen else 'mode=rw'}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _key(db: sqlite3.Connection, agent: str) -> int | None:
    row = db.execute("SELECT key FROM agents WHERE name = ?", [agent.encode()]).fetchone()
    return None if row is None else row[0]


def _add_agent(db: sqlite3.Connection, agent: str) -> int:
    """A new agent's key. Chance makes it: SQLite's own would be given again once the agent is forgotten."""
    key = secrets.randbits(62)
    db.execute("INSERT INTO agents (key, name) VALUES (?, ?)", [key, agent.encode()])
    return key


def _head_of(db: sqlite3.Connection, key: int | None) -> str | None:
    row = db.execute("SELECT snapshot FROM moves WHERE agent = ? ORDER BY seq DESC LIMIT 1", [key]).fetchone()
    return None if row is None else row[0]


def _tags_of(db: sqlite3.Connection, key: int | None) -> dict[str, str]:
    rows = db.execute("SELECT name, snapshot FROM tags WHERE agent = ?", [key])
    return {bytes(name).decode(): snapshot for name, snapshot in rows}


def _holds(db: sqlite3.Connection, key: int | None, snapshot: str) -> bool:
    row = db.execute("SELECT 1 FROM moves WHERE snapshot = ? AND agent = ? LIMIT 1", [snapshot, key]).fetchone()
    return row is not None


def _put(db: sqlite3.Connection, snapshot: str, data: bytes) -> None:
    # Bytes that are there already differ only if they are damaged, and then these repair them.
    db.execute(
        "INSERT INTO snapshots (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        [snapshot, data],
    )


def _record(db: sqlite3.Connection, key: int, moves: Iterable[Move]) -> None:
    rows = [(key, move.snapshot, move.verb, move.at) for move in moves]
    db.executemany("INSERT INTO moves (agent, snapshot, verb, at) VALUES (?, ?, ?, ?)", rows)


def _clear(db: sqlite3.Connection, key: int) -> list[str]:
    """Removes an agent with its moves and tags; returns the ids it held."""
    held = [each for (each,) in db.execute("SELECT DISTINCT snapshot FROM moves WHERE agent = ? ORDER BY 1", [key])]
    db.execute("DELETE FROM moves WHERE agent = ?", [key])
    db.execute("DELETE FROM tags WHERE agent = ?", [key])
    db.execute("DELETE FROM agents WHERE key = ?", [key])
    return held


def _release(db: sqlite3.Connection, snapshots: Sequence[str]) -> Removed:
    """Deletes the bytes of those that no agent holds any more."""
    removed, kept, nbytes = [], [], 0
    for snapshot in snapshots:
        if db.execute("SELECT 1 FROM moves WHERE snapshot = ? LIMIT 1", [snapshot]).fetchone():
            kept.append(snapshot)
            continue
        size = db.execute("SELECT length(data) FROM snapshots WHERE id = ?", [snapshot]).fetchone()
        nbytes += size[0] if size else 0
        db.execute("DELETE FROM snapshots WHERE id = ?", [snapshot])
        removed.append(snapshot)
    return Removed(tuple(removed), tuple(kept), nbytes)
