"""A store as a folder of plain files, safe across threads and processes, durable at every commit.

    store.json                        the layout's version
    lock                              locked by the writer
    agents/<sha256 of the id>/
        ref                           id, head, tags, the journal's name and its committed length
        journal-<incarnation>[.<n>]   one move per line
        snapshots/<id>.safetensors
        statements/<address>          statements, and pages of their list
    agents/<sha256 of the id>.<token> an agent being made or erased; deleted when the store is opened

`ref` is the commit point: it is replaced atomically, and a file that it does not reach is not committed.
Snapshots and statements that forks share are hard links to one file, so deleting an agent cannot harm another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace as altered
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from filelock import FileLock, Timeout

from deltamem_agents.errors import DeltaMemError, StoreError
from deltamem_agents.snapshots.codec import Links, decode_links
from deltamem_agents.snapshots.durable import named_faults, replacing, sync_folder
from deltamem_agents.snapshots.file_layout import (
    LAYOUT,
    STATEMENTS,
    Ref,
    add_move,
    damaged,
    is_leftover,
    link_or_copy,
    read_journal,
    read_ref,
    removal_of,
    require_layout,
    snapshot_file,
    statement_file,
    sweep,
    temporary_folder,
    write_journal,
    write_ref,
)
from deltamem_agents.snapshots.locations import as_path
from deltamem_agents.snapshots.records import Move, Removed
from deltamem_agents.snapshots.refusals import (
    TIMEOUT,
    Deadline,
    agent_exists,
    check_timeout,
    file_identity,
    no_agent,
    no_snapshot,
    require_free_tag,
    require_head,
    require_in_place,
    require_own_process,
)
from deltamem_agents.snapshots.statements import ADDRESS_DIGITS, FORGOTTEN
from deltamem_agents.snapshots.store import Store

_OTHERS = "another program or thread that writes there"


class FileStore(Store):
    """A store in one folder, which is made if it does not exist. A read-only folder can still be read.

    A change waits up to `timeout` seconds for other writers and then raises StoreError. After one second it logs a
    warning. A forked process must open the store again. On a file system without hard links a fork copies its
    snapshots.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path = as_path(path)
        self._folders = self.path / "agents"
        self._marker = self.path / "store.json"
        self._where = f"the store {str(self.path)!r}"
        self._timeout = check_timeout(timeout)
        self._pid = os.getpid()
        self._mutex = Lock()
        self._lock = FileLock(self.path / "lock", poll_interval=0.005)
        with named_faults(f"use {self._where}"):
            self._opened = file_identity(self._marker)
            if self._opened is None:
                self._lay_out()
                self._opened = file_identity(self._marker)
            require_layout(self._marker)
            if any(is_leftover(folder) for folder in self._folders.iterdir()):
                # A read-only folder keeps its leftovers; they do not disturb reading.
                with suppress(StoreError), self._writing():
                    for folder in filter(is_leftover, list(self._folders.iterdir())):
                        shutil.rmtree(folder)

    def _lay_out(self) -> None:
        if self.path.is_file():
            raise StoreError(
                f"{str(self.path)!r} is a file, expected a folder; open a SQLite file as sqlite:///PATH or by its "
                "plain path"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        own = ("lock", "agents", self._marker.name)
        others = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(own)]
        if others:
            raise StoreError(
                f"the folder {str(self.path)!r} holds {min(others)!r} and no store.json, expected a store or an empty "
                "folder. It was not changed; choose another folder"
            )
        with self._locked():
            if not self._marker.exists():
                self._folders.mkdir(exist_ok=True)
                with replacing(self._marker) as file:
                    file.write(json.dumps({"deltamem_store": LAYOUT}).encode())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with named_faults(f"use {self._where}"):
            require_in_place(self._where, self._marker, self._opened)
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the store's write lock, against threads and processes."""
        # Checked before locking too: the lock is a file, and locking would make it again where the folder is gone.
        with self._reading(), self._locked(), self._reading():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        require_own_process(self._where, self._pid)
        deadline = Deadline(self._where, self._timeout)
        deadline.wait(lambda seconds: self._mutex.acquire(timeout=seconds), _OTHERS)
        try:
            deadline.wait(self._lock_file, _OTHERS)
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._mutex.release()

    def _lock_file(self, seconds: float) -> bool:
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def _folder(self, agent: str) -> Path:
        return self._folders / hashlib.sha256(agent.encode()).hexdigest()

    def _other_folders(self, agent: str) -> list[Path]:
        own = self._folder(agent)
        return [folder for folder in self._folders.iterdir() if folder != own and not is_leftover(folder)]

    def _ref(self, agent: str) -> Ref | None:
        folder = self._folder(agent)
        ref = read_ref(folder)
        if ref is not None and ref.agent != agent:
            raise damaged(folder / "ref", f"agent {ref.agent!r}", repr(agent))
        return ref

    def _agents(self) -> list[str]:
        with self._reading():
            folders = [folder for folder in self._folders.iterdir() if not is_leftover(folder)]
            return [ref.agent for ref in map(read_ref, folders) if ref is not None]

    def _head(self, agent: str) -> str | None:
        with self._reading():
            ref = self._ref(agent)
            return None if ref is None else ref.head

    def _incarnation(self, agent: str) -> str | None:
        with self._reading():
            ref = self._ref(agent)
            return None if ref is None else ref.incarnation

    def _journal(self, agent: str) -> list[Move]:
        with self._reading():
            while (ref := self._ref(agent)) is not None:
                try:
                    return read_journal(self._folder(agent) / ref.journal, ref)
                except FileNotFoundError:
                    # A prune may have replaced the journal since the ref was read.
                    if self._ref(agent) == ref:
                        raise damaged(self._folder(agent) / ref.journal, "no file", f"{ref.length} bytes") from None
            return []

    def _tags(self, agent: str) -> dict[str, str]:
        with self._reading():
            ref = self._ref(agent)
            return {} if ref is None else dict(ref.tags)

    def _blob(self, agent: str, snapshot: str) -> bytes | None:
        with self._reading():
            try:
                return snapshot_file(self._folder(agent), snapshot).read_bytes()
            except FileNotFoundError:
                return None

    def _append(
        self,
        agent: str,
        move: Move,
        data: bytes | None,
        expected: str | None,
        objects: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        with self._writing():
            ref = self._ref(agent)
            require_head(agent, None if ref is None else ref.head, expected)
            if data is None and all(each.snapshot != move.snapshot for each in self._journal(agent)):
                raise no_snapshot(agent, move.snapshot)
            if ref is None:
                self._make(agent, [move], {}, {} if data is None else {move.snapshot: data}, None, objects)
                return
            folder = self._folder(agent)
            files = {statement_file(folder, each): held for each, held in objects.items()}
            if data is not None:
                files[snapshot_file(folder, move.snapshot)] = data
            new = [path for path in files if not path.exists()]
            try:
                if objects:
                    (folder / STATEMENTS).mkdir(exist_ok=True)
                for path, held in files.items():
                    with replacing(path) as file:
                        file.write(held)
                add_move(folder, ref, move)
            except BaseException:
                with suppress(OSError, DeltaMemError):
                    if self._head(agent) == ref.head:
                        for path in new:
                            path.unlink(missing_ok=True)
                raise

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
        with self._writing():
            folder = self._folder(agent)
            if not folder.exists():
                self._make(agent, moves, tags, blobs, source, objects)
            elif not replace:
                raise agent_exists(agent)
            else:
                self._fill(folder, agent, moves, tags, blobs, source, objects)
                sweep(folder)
                for path in (folder / STATEMENTS).glob("*"):
                    if path.name not in objects:
                        path.unlink()

    def _make(
        self,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        source: str | None,
        objects: Mapping[str, bytes | None],
    ) -> None:
        """Makes a new agent in a temporary folder and renames it into place."""
        folder = temporary_folder(self._folder(agent))
        try:
            (folder / "snapshots").mkdir(parents=True)
            self._fill(folder, agent, moves, tags, blobs, source, objects)
            os.rename(folder, self._folder(agent))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_folder(self._folders)

    def _fill(
        self,
        folder: Path,
        agent: str,
        moves: Sequence[Move],
        tags: Mapping[str, str],
        blobs: Mapping[str, bytes],
        source: str | None,
        objects: Mapping[str, bytes | None],
    ) -> None:
        if objects:
            (folder / STATEMENTS).mkdir(exist_ok=True)
        for each in objects:
            data = objects[each]
            if data is not None:
                with replacing(statement_file(folder, each)) as file:
                    file.write(data)
            elif source is not None:
                link_or_copy(statement_file(self._folder(source), each), statement_file(folder, each))
        if objects:
            sync_folder(folder / STATEMENTS)
        for snapshot in dict.fromkeys(move.snapshot for move in moves):
            target = snapshot_file(folder, snapshot)
            if snapshot in blobs:
                with replacing(target) as file:
                    file.write(blobs[snapshot])
            elif source is None or not link_or_copy(snapshot_file(self._folder(source), snapshot), target):
                raise no_snapshot(source or agent, snapshot)
        sync_folder(folder / "snapshots")
        write_journal(folder, agent, moves, tags)

    def _set_tag(self, agent: str, name: str, snapshot: str | None) -> None:
        with self._writing():
            ref = self._ref(agent)
            if ref is None:
                raise no_agent(agent)
            require_free_tag(agent, name, ref.tags.get(name), snapshot)
            tags = {other: target for other, target in ref.tags.items() if other != name}
            if snapshot is not None:
                if all(move.snapshot != snapshot for move in self._journal(agent)):
                    raise no_snapshot(agent, snapshot)
                tags[name] = snapshot
            write_ref(self._folder(agent), altered(ref, tags=tags))

    def _drop(self, agent: str, snapshots: Collection[str]) -> Removed:
        with self._writing():
            ref = self._ref(agent)
            if ref is None:
                raise no_agent(agent)
            journal = self._journal(agent)
            gone = {move.snapshot for move in journal} & set(snapshots) - {ref.head, *ref.tags.values()}
            if not gone:
                return Removed()
            removed = removal_of(self._folder(agent), sorted(gone), self._other_folders(agent))
            kept = [move for move in journal if move.snapshot not in gone]
            write_journal(self._folder(agent), agent, kept, ref.tags, incarnation=ref.incarnation)
            sweep(self._folder(agent))
            return removed

    def _objects(self, agent: str, ids: Collection[str]) -> dict[str, bytes]:
        with self._reading():
            found = {}
            for each in ids:
                with suppress(FileNotFoundError):
                    found[each] = statement_file(self._folder(agent), each).read_bytes()
            return found

    def _release(self, agent: str, ids: Collection[str], *, forgotten: bool) -> Removed:
        with self._writing():
            folder = self._folder(agent)
            if self._ref(agent) is None:
                raise no_agent(agent)
            paths = {each: statement_file(folder, each) for each in sorted(ids)}
            gone = [each for each, path in paths.items() if path.exists() and path.read_bytes() != FORGOTTEN]
            removed = removal_of(folder, gone, self._other_folders(agent), statement_file)
            for path in (paths[each] for each in gone):
                if forgotten:
                    with replacing(path) as file:
                        file.write(FORGOTTEN)
                else:
                    path.unlink()
            return removed

    def _sweep(self, agent: str, known: Mapping[str, Links]) -> Removed:
        with self._writing():
            folder = self._folder(agent)
            if self._ref(agent) is None:
                raise no_agent(agent)
            sweep(folder)
            # Read under the write lock: otherwise files of a commit in progress would look unlisted.
            held = dict.fromkeys(move.snapshot for move in self._journal(agent))
            links = (known[each] if each in known else decode_links(self._bytes(agent, each)) for each in held)
            listed = self._listed(agent, links)
            strays = [path for path in sorted((folder / STATEMENTS).glob("*")) if path.name not in listed]
            whole = [path.name for path in strays if len(path.name) == ADDRESS_DIGITS]
            removed = removal_of(folder, whole, self._other_folders(agent), statement_file)
            for path in strays:
                path.unlink()
            return removed

    def _erase(self, agent: str) -> Removed:
        with self._writing():
            folder = self._folder(agent)
            if not folder.exists():
                raise no_agent(agent)
            held = sorted(path.stem for path in (folder / "snapshots").glob("*.safetensors"))
            removed = removal_of(folder, held, self._other_folders(agent))
            leftover = temporary_folder(folder)
            os.rename(folder, leftover)
            try:
                sync_folder(self._folders)
                shutil.rmtree(leftover)
                sync_folder(self._folders)
            except OSError as error:
                raise StoreError(
                    f"agent {agent!r} was forgotten, but its files are not all deleted: {error}. "
                    "Open the store again with write permission to finish the deletion"
                ) from error
            return removed
