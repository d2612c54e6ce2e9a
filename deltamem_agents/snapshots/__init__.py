"""Versioned memory: immutable snapshots, and the stores that hold each agent's snapshots."""

from deltamem_agents.snapshots.codec import decode, encode, snapshot_id
from deltamem_agents.snapshots.file_store import FileStore
from deltamem_agents.snapshots.memory_store import InMemoryStore
from deltamem_agents.snapshots.opening import LazyStore, StoreLike, default_store_path, open_store, store_path
from deltamem_agents.snapshots.records import Entry, Move, Receipt, Removed, StateDiff, StatementReceipt
from deltamem_agents.snapshots.snapshot import FORMAT, Counters, Fingerprint, Snapshot, inline, utc_now
from deltamem_agents.snapshots.sqlite_store import SQLiteStore
from deltamem_agents.snapshots.statements import Statement, StatementList, address, encode_page, encode_statement
from deltamem_agents.snapshots.store import Store

__all__ = [
    "FORMAT",
    "Counters",
    "Entry",
    "FileStore",
    "Fingerprint",
    "InMemoryStore",
    "LazyStore",
    "Move",
    "Receipt",
    "Removed",
    "SQLiteStore",
    "Snapshot",
    "StateDiff",
    "Statement",
    "StatementList",
    "StatementReceipt",
    "Store",
    "StoreLike",
    "address",
    "decode",
    "default_store_path",
    "encode",
    "encode_page",
    "encode_statement",
    "inline",
    "open_store",
    "snapshot_id",
    "store_path",
    "utc_now",
]
