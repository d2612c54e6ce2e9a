"""The SQLite file of a store: made, checked, read and written by threads and processes, merged with its log.

Two connections, so that reading never waits for a writer. The file is never opened but by SQLite: when a process
closes a file, it loses all its locks on that file, SQLite's own among them.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Lock

from filelock import FileLock

from deltamem_agents.errors import DamagedSnapshotError, NewerFormatError, StoreError
from deltamem_agents.snapshots.durable import named_faults, sync_folder
from deltamem_agents.snapshots.refusals import (
    Deadline,
    closed,
    file_identity,
    require_in_place,
    require_own_process,
)

LOG_BYTES = 4_000_000
"""The log is merged into the file whenever it has grown by so much."""

_OTHERS = "another program or thread that writes there"


class SQLiteFile:
    """One file in write-ahead-log mode, made with `tables` when it is not there.

    `application`: the number by which the file names its owner. `schema`: the newest `user_version` that is read.
    `timeout`: seconds that a change waits for other writers. Raises StoreError, NewerFormatError or
    DamagedSnapshotError.
    """

    def __init__(self, path: Path, *, tables: str, application: int, schema: int, timeout: float) -> None:
        self.path = path
        self._where = f"the store {str(path)!r}"
        self._timeout = timeout
        self._pid = os.getpid()
        self._read_lock, self._write_lock = Lock(), Lock()
        self._writer: sqlite3.Connection | None = None
        self._merge_at = 0
        with named_faults(f"open {self._where}"):
            if not path.exists():
                _create(path, tables)
            _require_owner(path, application)
            _require_log(path)
        with self._naming_faults():
            self._reader: sqlite3.Connection | None = self._connect()
        try:
            self._look(schema)
        except BaseException:
            self.close()
            raise

    def _look(self, schema: int) -> None:
        with self._naming_faults():
            assert self._reader is not None
            # Through the connection, so that what is in the log alone counts.
            found = self._reader.execute("PRAGMA user_version").fetchone()[0]
            if found > schema:
                raise NewerFormatError(
                    f"{self._where} has schema {found}, this version of deltamem_agents reads up to {schema}; "
                    "upgrade the package to open it. It was left alone"
                )
            unmerged = _log_needed(self._reader)
        self._opened = {path: file_identity(path) for path in (self.path, _log_of(self.path)) if path.exists()}
        if unmerged:
            # A process was killed while it merged the log.
            with suppress(StoreError), self.writing():
                pass

    def close(self) -> None:
        """Merges the log into the file unless other programs have it open. Closing twice is fine."""
        with self._read_lock, self._write_lock:
            for connection in (self._reader, self._writer):
                if connection is not None and self._pid == os.getpid():
                    connection.close()
            self._reader = self._writer = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading."""
        require_own_process(self._where, self._pid)
        with self._read_lock, self._naming_faults():
            yield self._usable()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file's write lock: committed at the end, undone by any exception."""
        deadline = Deadline(self._where, self._timeout)
        with self._exclusively(deadline) as db:
            if _size(_log_of(self.path)) >= self._merge_at:
                self._merge(db, deadline)
            with self._transaction(db, deadline):
                yield db

    def wipe(self, *, refill: Sequence[str], reindex: Sequence[str]) -> None:
        """Takes deleted rows' last copies out of the file and its log, where secure_delete zeroed the rows themselves.

        `refill`: tables of small rows, filled anew. `reindex`: tables of which the indexes alone are made anew. The
        file is rewritten where it would be half empty. Reading goes on meanwhile.
        """
        deadline = Deadline(self._where, self._timeout)
        with self._exclusively(deadline) as db:
            with self._transaction(db, deadline):
                for table in refill:
                    db.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM main.{table}")
                    # All at once: this frees, and so zeroes, every page of the table and its indexes.
                    db.execute(f"DELETE FROM main.{table}")
                    db.execute(f"INSERT INTO main.{table} SELECT * FROM temp.kept")
                    db.execute("DROP TABLE temp.kept")
                for table in reindex:
                    db.execute(f"REINDEX main.{table}")
            free, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
            if 2 * free > pages:
                db.execute("VACUUM")
            if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise StoreError("another program is reading the file's log")
            self._merge(db, deadline)

    @contextmanager
    def _exclusively(self, deadline: Deadline) -> Iterator[sqlite3.Connection]:
        """The connection for writing, made at its first use, for this thread alone."""
        require_own_process(self._where, self._pid)
        deadline.wait(lambda seconds: self._write_lock.acquire(timeout=seconds), _OTHERS)
        try:
            with self._naming_faults():
                self._usable()
                if self._writer is None:
                    self._writer = self._connect()
                yield self._writer
        finally:
            self._write_lock.release()

    def _usable(self) -> sqlite3.Connection:
        """The reading connection; raises StoreError when the store was closed, or its files are others by now."""
        if self._reader is None:
            raise closed(self._where)
        for path, opened in self._opened.items():
            require_in_place(self._where, path, opened)
        return self._reader

    @contextmanager
    def _transaction(self, db: sqlite3.Connection, deadline: Deadline) -> Iterator[None]:
        deadline.wait(lambda seconds: self._begin(db, seconds), _OTHERS)
        try:
            yield
            self._usable()
            db.execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _begin(self, db: sqlite3.Connection, seconds: float) -> bool:
        db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            db.execute(f"PRAGMA busy_timeout = {round(self._timeout * 1000)}")
        return True

    def _merge(self, db: sqlite3.Connection, deadline: Deadline) -> None:
        """Merges the log into the file, which from then on says that it needs its log.

        The first thing in the new log is that it does not: so does whoever merges that log, with whatever program,
        make the file whole again. A file that says it needs a log and has none was parted from it.
        """
        with self._transaction(db, deadline):
            db.execute("CREATE TABLE IF NOT EXISTS log (needed INTEGER NOT NULL)")
            db.execute("DELETE FROM log")
            db.execute("INSERT INTO log (needed) VALUES (1)")
        try:
            # Passive: waits for nobody. What somebody still reads stays in the log.
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            with self._transaction(db, Deadline(self._where, self._timeout)):
                db.execute("UPDATE log SET needed = 0")
        self._merge_at = _size(_log_of(self.path)) + LOG_BYTES

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedSnapshotError(
                    f"{self._where} is damaged: {error}. Nothing was overwritten; "
                    "restore the file from a backup, or import an export into a new store"
                ) from error
            raise StoreError(
                f"cannot use {self._where}: {error}. The memory is as it was; "
                "check the free space, the permissions and other programs there, then try again"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        # A log cannot be opened where none can be made; without one the file does not change and needs none.
        frozen = not os.access(self.path.parent, os.W_OK) and not _log_of(self.path).exists()
        uri = f"{self.path.as_uri()}?{'immutable=1' if frozen else 'mode=rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        for setting in ("synchronous = FULL", "secure_delete = ON", "wal_autocheckpoint = 0", "journal_size_limit = 0"):
            db.execute(f"PRAGMA {setting}")
        return db


def _create(path: Path, tables: str) -> None:
    """A new file that appears under its name whole or not at all; so an empty file is never a store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = _log_of(path)
    # In this order: another process may be making the same store.
    if log.exists() and not path.exists():
        raise StoreError(
            f"{str(path)!r} is missing but its log {log.name!r} is there, expected both or neither; "
            "bring the file back, or move the log away to start anew"
        )
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            db.executescript(tables)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:
            _move(temporary, path)
        sync_folder(path.parent)
    except sqlite3.Error as error:
        raise StoreError(f"cannot make the store {str(path)!r}: {error}; check the free space there") from error
    finally:
        temporary.unlink(missing_ok=True)


def _move(temporary: Path, path: Path) -> None:
    """Renames a new file into place where a file system has no hard links, one process at a time."""
    lock = path.with_name(f"{path.name}.making")
    with FileLock(lock):
        if not path.exists():
            os.replace(temporary, path)
    lock.unlink(missing_ok=True)


def _require_owner(path: Path, application: int) -> None:
    """Refuses any file that is not a store of ours, and leaves it as it is."""
    if path.is_dir():
        hint = "it holds a FileStore: open it as folder:///PATH" if (path / "store.json").exists() else "name a file"
        raise StoreError(f"{str(path)!r} is a folder, expected a SQLite file; {hint}")
    with closing(_look_only(path)) as db:
        try:
            owner = db.execute("PRAGMA application_id").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_NOTADB:
                return  # It is written just now, or it is damaged: using it shows which.
            owner = None
    if owner is None or not path.stat().st_size:
        raise StoreError(
            f"{str(path)!r} has {path.stat().st_size} bytes and is no database, expected a SQLite file: it is "
            "something else or was cut short. It was left alone; choose another path, or restore it from a backup"
        )
    if owner != application:
        raise StoreError(
            f"{str(path)!r} is another program's SQLite file (application {owner:#x}, expected {application:#x}). "
            "It was left alone; choose another path"
        )


def _require_log(path: Path) -> None:
    """Refuses a file that was parted from a log which held some of its commits."""
    log = _log_of(path)
    # Twice, as another process may be opening or closing it.
    for _ in range(2):
        if log.exists():
            return
        with closing(_look_only(path)) as db:
            try:
                if not _log_needed(db):
                    return
            except sqlite3.DatabaseError:
                return  # Using it shows what is wrong.
    raise StoreError(
        f"the store {str(path)!r} was in use when it was copied or moved, and its newest commits are in a log, "
        f"{log.name!r}, that is not beside it. It was left alone; bring that file too (or copy both again after the "
        "program has closed the store). If it is lost, make an empty file of that name: the store then opens with "
        "what it has"
    )


def _look_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, makes no file beside it, and takes no lock unless there is a log."""
    settled = not _size(_log_of(path))
    return sqlite3.connect(f"{path.as_uri()}?{'immutable=1' if settled else 'mode=ro'}", uri=True)


def _log_needed(db: sqlite3.Connection) -> bool:
    try:
        row = db.execute("SELECT max(needed) FROM log").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return False  # A store that was not written since version 0.1 has no such table.
    return bool(row[0])


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
