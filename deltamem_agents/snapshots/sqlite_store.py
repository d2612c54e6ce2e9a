"""The default store: one SQLite file, safe across threads and processes, durable at every commit."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from types import MappingProxyType

from deltamem_agents.errors import StoreError
from deltamem_agents.snapshots.locations import as_path
from deltamem_agents.snapshots.records import Move, Removed
from deltamem_agents.snapshots.refusals import (
    TIMEOUT,
    agent_exists,
    check_timeout,
    no_agent,
    no_snapshot,
    require_free_tag,
    require_head,
)
from deltamem_agents.snapshots.sqlite_file import SQLiteFile
from deltamem_agents.snapshots.statements import FORGOTTEN
from deltamem_agents.snapshots.store import Store

SCHEMA = 2
"""Schema version. 2 added statements. A file of schema 1 is upgraded when its first statement is written."""

_APPLICATION = 0x444D454D  # "DMEM", in the field where a SQLite file names its owner

# SQLite stores a row's first 4061 bytes or fewer in pages shared with other rows, and copies them as the tree grows.
# The rest of the row has its own pages, which are zeroed when the row is deleted (SQLite's file format 2.3 and PRAGMA
# secure_delete). So each row starts with padding zeros: then forgetting an agent need not rewrite the rows of others.
_SNAPSHOTS = "(pad BLOB NOT NULL DEFAULT (zeroblob(4096)), id TEXT PRIMARY KEY, data BLOB NOT NULL)"
# The bytes of statements, and of pages of their list, are in the table `snapshots` too. `held` says which agents hold
# them.
_STATEMENTS = """
CREATE TABLE held (
    agent INTEGER NOT NULL, id TEXT NOT NULL, forgotten INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (agent, id)
) WITHOUT ROWID;
CREATE INDEX held_by_id ON held (id);
"""
# Names are stored as UTF-8 BLOBs: they are compared byte by byte and may contain NUL.
_TABLES = f"""
PRAGMA page_size = 4096;
BEGIN;
CREATE TABLE agents (key INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE);
CREATE TABLE snapshots {_SNAPSHOTS};
CREATE TABLE moves (
    seq INTEGER PRIMARY KEY, agent INTEGER NOT NULL, snapshot TEXT NOT NULL, verb TEXT NOT NULL, at TEXT NOT NULL
);
CREATE INDEX moves_by_agent ON moves (agent, seq);
CREATE INDEX moves_by_snapshot ON moves (snapshot, agent);
CREATE TABLE tags (agent INTEGER NOT NULL, name BLOB NOT NULL, snapshot TEXT NOT NULL, UNIQUE (agent, name));
{_STATEMENTS}
CREATE TABLE erasures (seq INTEGER PRIMARY KEY, at TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA};
COMMIT;
PRAGMA journal_mode = WAL;
"""


class SQLiteStore(Store):
    """A store in one SQLite file, which is made if it does not exist. In a read-only folder it can still be read.

    It uses a write-ahead log and synchronous=FULL: a commit is on disk before `save` returns. Reading never waits for a
    writer. A change waits up to `timeout` seconds for other writers and then raises StoreError; after one second it
    logs a warning. A turn waits when it commits, after its text was streamed. A forked process must open the store
    again. SQLite's log needs a local disk: on a network folder use FileStore.

    While the store is open, its newest commits may be only in PATH-wal: copy both files, or use `export`. A file that
    was separated from its log is refused. Two cases cannot be detected: commits made between two merges of the log
    while somebody was reading, and commits of another program.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path = as_path(path)
        self._file = SQLiteFile(
            self.path, tables=_TABLES, application=_APPLICATION, schema=SCHEMA, timeout=check_timeout(timeout)
        )
        try:
            if self._unfinished_erasure():
                with suppress(StoreError):
                    self._scrub()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._file.reading()

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._file.writing()

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
            row = db.execute(
                """
                SELECT snapshots.data FROM agents JOIN moves ON moves.agent = agents.key
                JOIN snapshots ON snapshots.id = moves.snapshot WHERE agents.name = ? AND moves.snapshot = ? LIMIT 1
                """,
                [agent.encode(), snapshot],
            ).fetchone()
            return None if row is None else row[0]

    def _append(
        self,
        agent: str,
        move: Move,
        data: bytes | None,
        expected: str | None,
        objects: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        with self._writing() as db:
            key = _key(db, agent)
            require_head(agent, _head_of(db, key), expected)
            if data is not None:
                _store_bytes(db, move.snapshot, data)
            elif not _holds(db, key, move.snapshot):
                raise no_snapshot(agent, move.snapshot)
            key = _add_agent(db, agent) if key is None else key
            _hold_objects(db, key, objects)
            _record_moves(db, key, [move])

    def _create(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        *,
        source: str | None,
        replace: bool,
        objects: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> None:
        with self._writing() as db:
            key = _key(db, agent)
            if key is not None and not replace:
                raise agent_exists(agent)
            shared = None if source is None else _key(db, source)
            for snapshot in dict.fromkeys(move.snapshot for move in moves):
                if snapshot in blobs:
                    _store_bytes(db, snapshot, blobs[snapshot])
                elif not _holds(db, shared, snapshot):
                    raise no_snapshot(source or agent, snapshot)
            replaced = [] if key is None else _delete_agent(db, key)
            key = _add_agent(db, agent)
            _hold_objects(db, key, objects, shared)
            _record_moves(db, key, moves)
            rows = [(key, name.encode(), snapshot) for name, snapshot in tags.items()]
            db.executemany("INSERT INTO tags (agent, name, snapshot) VALUES (?, ?, ?)", rows)
            _delete_unheld(db, replaced)

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
            return _delete_unheld(db, held)

    def _objects(self, agent: str, ids: Collection[str]) -> dict[str, bytes]:
        with self._reading() as db:
            if not _has_statements(db):
                return {}
            rows = db.execute(
                """
                SELECT held.id, CASE held.forgotten WHEN 0 THEN snapshots.data ELSE ? END FROM json_each(?) AS wanted
                CROSS JOIN held ON held.agent = ? AND held.id = wanted.value
                LEFT JOIN snapshots ON snapshots.id = held.id
                """,
                [FORGOTTEN, json.dumps(list(ids)), _key(db, agent)],
            )
            return {at: data for at, data in rows if data is not None}

    def _release(self, agent: str, ids: Collection[str], *, forgotten: bool) -> Removed:
        with self._writing() as db:
            key = _key(db, agent)
            if key is None:
                raise no_agent(agent)
            listed = "SELECT id FROM held WHERE agent = ? AND NOT forgotten AND id IN (SELECT value FROM json_each(?))"
            held = db.execute(listed, [key, json.dumps(list(ids))]) if _has_statements(db) else []
            rows = [(key, each) for each in sorted(each for (each,) in held)]
            if not rows:
                return Removed()
            if forgotten:
                db.execute("INSERT INTO erasures (at) VALUES (datetime())")
                db.executemany("UPDATE held SET forgotten = 1 WHERE agent = ? AND id = ?", rows)
            else:
                db.executemany("DELETE FROM held WHERE agent = ? AND id = ?", rows)
            removed = _delete_unheld(db, [each for _, each in rows])
        if forgotten:
            self._scrub_after(f"statements of agent {agent!r} were forgotten, but their")
        return removed

    def _erase(self, agent: str) -> Removed:
        with self._writing() as db:
            key = _key(db, agent)
            if key is None:
                raise no_agent(agent)
            db.execute("INSERT INTO erasures (at) VALUES (datetime())")
            removed = _delete_unheld(db, _delete_agent(db, key))
        self._scrub_after(f"agent {agent!r} was forgotten, but its")
        return removed

    def _scrub_after(self, what: str) -> None:
        try:
            self._scrub()
        except StoreError as error:
            raise StoreError(
                f"{what} bytes are not yet wiped from {str(self.path)!r}: {error}. "
                "Close other programs that use the file, free disk space, and open the store again to finish it"
            ) from error

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
        """Removes the last copies of erased rows from the file and its log.

        secure_delete zeroes deleted rows, but SQLite's trees may hold older copies of small rows: these tables are
        filled again. The cost grows with the erased bytes and all journals, not with the other agents' memories.
        """
        with self._reading() as db:
            last = db.execute("SELECT max(seq) FROM erasures").fetchone()[0]
            columns = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('snapshots')")}
            held = _has_statements(db)
        if "pad" not in columns:
            with self._writing() as db:
                # The file was made by version 0.1.
                db.execute(f"CREATE TABLE padded {_SNAPSHOTS}")
                db.execute("INSERT INTO padded (id, data) SELECT id, data FROM snapshots")
                db.execute("DROP TABLE snapshots")
                db.execute("ALTER TABLE padded RENAME TO snapshots")
        self._file.wipe(refill=("agents", "moves", "tags", *(("held",) if held else ())), reindex=("snapshots",))
        with self._writing() as db:
            db.execute("DELETE FROM erasures WHERE seq <= ?", [last])


def _key(db: sqlite3.Connection, agent: str) -> int | None:
    row = db.execute("SELECT key FROM agents WHERE name = ?", [agent.encode()]).fetchone()
    return None if row is None else row[0]


def _add_agent(db: sqlite3.Connection, agent: str) -> int:
    """A new agent's key. It is random, because SQLite would reuse its own key after the agent is forgotten."""
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


def _store_bytes(db: sqlite3.Connection, snapshot: str, data: bytes) -> None:
    # Bytes already stored under this id differ only if they are damaged; then this repairs them.
    db.execute(
        "INSERT INTO snapshots (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        [snapshot, data],
    )


def _record_moves(db: sqlite3.Connection, key: int, moves: Iterable[Move]) -> None:
    rows = [(key, move.snapshot, move.verb, move.at) for move in moves]
    db.executemany("INSERT INTO moves (agent, snapshot, verb, at) VALUES (?, ?, ?, ?)", rows)


def _delete_agent(db: sqlite3.Connection, key: int) -> list[str]:
    """Deletes an agent's rows with its moves and tags. Returns the ids of its snapshots and statements."""
    held = [each for (each,) in db.execute("SELECT DISTINCT snapshot FROM moves WHERE agent = ? ORDER BY 1", [key])]
    if _has_statements(db):
        held += [each for (each,) in db.execute("SELECT id FROM held WHERE agent = ? ORDER BY 1", [key])]
        db.execute("DELETE FROM held WHERE agent = ?", [key])
    db.execute("DELETE FROM moves WHERE agent = ?", [key])
    db.execute("DELETE FROM tags WHERE agent = ?", [key])
    db.execute("DELETE FROM agents WHERE key = ?", [key])
    return held


def _has_statements(db: sqlite3.Connection) -> bool:
    """Whether the file's schema has statements."""
    return bool(db.execute("PRAGMA user_version").fetchone()[0] >= 2)


def _hold_objects(
    db: sqlite3.Connection, key: int, objects: Mapping[str, bytes | None], source: int | None = None
) -> None:
    """Adds statements and pages to an agent. Entries without bytes are taken from the agent `source`."""
    if objects and not _has_statements(db):
        for statement in filter(str.strip, _STATEMENTS.split(";")):
            db.execute(statement)
        db.execute("PRAGMA user_version = 2")
    for at in objects:
        data = objects[at]
        if data is None:
            db.execute(
                "INSERT OR REPLACE INTO held (agent, id, forgotten) SELECT ?, id, forgotten FROM held "
                "WHERE agent = ? AND id = ?",
                [key, source, at],
            )
            continue
        if data != FORGOTTEN:
            _store_bytes(db, at, data)
        db.execute(
            "INSERT OR REPLACE INTO held (agent, id, forgotten) VALUES (?, ?, ?)", [key, at, int(data == FORGOTTEN)]
        )


def _delete_unheld(db: sqlite3.Connection, ids: Sequence[str]) -> Removed:
    """Deletes the bytes of these snapshots and statements, except those that an agent still holds."""
    removed, kept, nbytes = [], [], 0
    users = ["SELECT 1 FROM moves WHERE snapshot = ?"]
    if _has_statements(db):
        users.append("SELECT 1 FROM held WHERE id = ? AND NOT forgotten")
    for at in ids:
        if any(db.execute(f"{user} LIMIT 1", [at]).fetchone() for user in users):
            kept.append(at)
            continue
        size = db.execute("SELECT length(data) FROM snapshots WHERE id = ?", [at]).fetchone()
        nbytes += size[0] if size else 0
        db.execute("DELETE FROM snapshots WHERE id = ?", [at])
        removed.append(at)
    return Removed(tuple(removed), tuple(kept), nbytes)
