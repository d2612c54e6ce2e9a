"""The SQLite file of a store: creation, checks, transactions across threads and processes, merging of the log.

The log is SQLite's write-ahead log. Two connections are used, so that reading never waits for a writer. Only SQLite
opens the file: if this process opened and closed it otherwise, it would lose all its locks on it, including SQLite's.
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
"""The log is merged into the file whenever it has grown by this many bytes."""

_OTHERS = "another program or thread that writes there"


class SQLiteFile:
    """One file in write-ahead-log mode. If it does not exist, it is made with the SQL script `tables`.

    `application`: the file's application_id, which names its owner. `schema`: the newest `user_version` that can be
    read. `timeout`: seconds that a change waits for other writers. Raises StoreError, NewerFormatError or
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
        with self._as_store_errors():
            self._reader: sqlite3.Connection | None = self._connect()
        try:
            self._check_schema(schema)
        except BaseException:
            self.close()
            raise

    def _check_schema(self, schema: int) -> None:
        with self._as_store_errors():
            assert self._reader is not None
            # Read through the connection, which includes commits that are only in the log.
            found = self._reader.execute("PRAGMA user_version").fetchone()[0]
            if found > schema:
                raise NewerFormatError(
                    f"{self._where} has schema {found}, this version of deltamem_agents reads up to {schema}; "
                    "upgrade the package to open it. It was not changed"
                )
            unmerged = _log_needed(self._reader)
        self._opened = {path: file_identity(path) for path in (self.path, _log_of(self.path)) if path.exists()}
        if unmerged:
            # A process was killed while it merged the log.
            with suppress(StoreError), self.writing():
                pass

    def close(self) -> None:
        """Merges the log into the file unless other programs have it open. Closing twice is allowed."""
        with self._read_lock, self._write_lock:
            for connection in (self._reader, self._writer):
                if connection is not None and self._pid == os.getpid():
                    connection.close()
            self._reader = self._writer = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading."""
        require_own_process(self._where, self._pid)
        with self._read_lock, self._as_store_errors():
            yield self._require_open()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file's write lock. It commits at the end and rolls back on an exception."""
        deadline = Deadline(self._where, self._timeout)
        with self._write_connection(deadline) as db:
            if _size(_log_of(self.path)) >= self._merge_at:
                self._merge(db, deadline)
            with self._transaction(db, deadline):
                yield db

    def wipe(self, *, refill: Sequence[str], reindex: Sequence[str]) -> None:
        """Removes the remaining copies of deleted rows from the file and its log.

        SQLite's secure_delete zeroes the rows themselves, but not copies that SQLite moved earlier. `refill`: tables of
        small rows, which are emptied and filled again. `reindex`: tables of which only the indexes are built again. The
        file is rewritten if it would be more than half empty. Reading continues meanwhile.
        """
        deadline = Deadline(self._where, self._timeout)
        with self._write_connection(deadline) as db:
            with self._transaction(db, deadline):
                for table in refill:
                    db.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM main.{table}")
                    # Deleting all rows at once frees every page of the table and its indexes, and so zeroes them.
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
    def _write_connection(self, deadline: Deadline) -> Iterator[sqlite3.Connection]:
        """The writing connection, for this thread alone. It is opened at its first use."""
        require_own_process(self._where, self._pid)
        deadline.wait(lambda seconds: self._write_lock.acquire(timeout=seconds), _OTHERS)
        try:
            with self._as_store_errors():
                self._require_open()
                if self._writer is None:
                    self._writer = self._connect()
                yield self._writer
        finally:
            self._write_lock.release()

    def _require_open(self) -> sqlite3.Connection:
        """The reading connection. Raises StoreError if the store was closed or its files have been replaced."""
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
            self._require_open()
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
        """Merges the log into the file and marks the file as needing its log.

        The first entry of the new log clears that mark. So merging the new log, by any program, makes the file complete
        again. A file that is marked and has no log was separated from it.
        """
        with self._transaction(db, deadline):
            db.execute("CREATE TABLE IF NOT EXISTS log (needed INTEGER NOT NULL)")
            db.execute("DELETE FROM log")
            db.execute("INSERT INTO log (needed) VALUES (1)")
        try:
            # PASSIVE waits for nobody. Pages that a reader still uses stay in the log.
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            with self._transaction(db, Deadline(self._where, self._timeout)):
                db.execute("UPDATE log SET needed = 0")
        self._merge_at = _size(_log_of(self.path)) + LOG_BYTES

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
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
        # In a read-only folder no log can be made. If there is none, the file does not change, so none is needed.
        frozen = not os.access(self.path.parent, os.W_OK) and not _log_of(self.path).exists()
        uri = f"{self.path.as_uri()}?{'immutable=1' if frozen else 'mode=rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        for setting in ("synchronous = FULL", "secure_delete = ON", "wal_autocheckpoint = 0", "journal_size_limit = 0"):
            db.execute(f"PRAGMA {setting}")
        return db


def _create(path: Path, tables: str) -> None:
    """Makes a new file atomically: it appears complete or not at all, so an empty file is never a store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = _log_of(path)
    # The order matters: another process may be making the same store.
    if log.exists() and not path.exists():
        raise StoreError(
            f"{str(path)!r} is missing but its log {log.name!r} is there, expected both or neither; "
            "put the file back, or move the log away to start a new store"
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
    """Renames a new file into place, one process at a time. For file systems without hard links."""
    lock = path.with_name(f"{path.name}.making")
    with FileLock(lock):
        if not path.exists():
            os.replace(temporary, path)
    lock.unlink(missing_ok=True)


def _require_owner(path: Path, application: int) -> None:
    """Raises StoreError for any file that is not a store of this package. The file is not changed."""
    if path.is_dir():
        hint = "it holds a FileStore: open it as folder:///PATH" if (path / "store.json").exists() else "name a file"
        raise StoreError(f"{str(path)!r} is a folder, expected a SQLite file; {hint}")
    with closing(_connect_read_only(path)) as db:
        try:
            owner = db.execute("PRAGMA application_id").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_NOTADB:
                return  # It is being written, or it is damaged: using it will show which.
            owner = None
    if owner is None or not path.stat().st_size:
        raise StoreError(
            f"{str(path)!r} has {path.stat().st_size} bytes and is no database, expected a SQLite file: it is "
            "another kind of file or was truncated. It was left alone; choose another path, or restore it from a backup"
        )
    if owner != application:
        raise StoreError(
            f"{str(path)!r} is another program's SQLite file (application {owner:#x}, expected {application:#x}). "
            "It was left alone; choose another path"
        )


def _require_log(path: Path) -> None:
    """Raises StoreError for a file that was separated from a log with some of its commits."""
    log = _log_of(path)
    # Checked twice, because another process may be opening or closing the file.
    for _ in range(2):
        if log.exists():
            return
        with closing(_connect_read_only(path)) as db:
            try:
                if not _log_needed(db):
                    return
            except sqlite3.DatabaseError:
                return  # Using it will show what is wrong.
    raise StoreError(
        f"the store {str(path)!r} was in use when it was copied or moved, and its newest commits are in a log, "
        f"{log.name!r}, that is not beside it. It was left alone; bring that file too (or copy both again after the "
        "program has closed the store). If it is lost, make an empty file of that name: the store then opens "
        "without the commits that were in the log"
    )


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """A read-only connection. It makes no file beside the store and takes no lock unless there is a log."""
    settled = not _size(_log_of(path))
    return sqlite3.connect(f"{path.as_uri()}?{'immutable=1' if settled else 'mode=ro'}", uri=True)


def _log_needed(db: sqlite3.Connection) -> bool:
    try:
        row = db.execute("SELECT max(needed) FROM log").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return False  # A store that version 0.1 wrote last has no such table.
    return bool(row[0])


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
