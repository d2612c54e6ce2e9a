"""Atomic, durable file writes: a file is complete or absent, even after a power failure."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deltamem_agents.errors import DeltaMemError, StoreError


@contextmanager
def named_faults(what: str) -> Iterator[None]:
    """Turns an OSError into a StoreError that says what could not be done. `what`: a verb phrase for the message."""
    try:
        yield
    except DeltaMemError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot {what}: {error.strerror or error}. The memory is as it was; "
            "check the free space and the permissions there, then try again"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces `path`, durably, when the block ends. If the block fails, the file is deleted."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def append(path: Path, data: bytes, at: int) -> None:
    """Writes `data` durably at byte `at` of an existing file and truncates what followed."""
    with open(path, "r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the file names in a folder durable (fsync). Windows has no such call and does not need one."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
