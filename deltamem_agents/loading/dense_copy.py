"""Converts a .gguf once to ordinary weights (the dense copy) in a cache folder. Only complete copies appear there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import nn

from deltamem_agents.errors import DeltaMemError, ModelFilesError
from deltamem_agents.loading.progress import Report, step
from deltamem_agents.processes import Mutex

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CACHE_VARIABLE = "DELTAMEM_CACHE"

# Increased when the layout or the precision of a copy changes, so that older copies are not used.
CONVERSION = 1
MANIFEST = "complete.json"

# transformers changes process-wide settings while it loads (default dtype, verbosity, progress bars).
one_load_at_a_time = Mutex()


def cache_dir() -> Path:
    """The folder of dense copies: $DELTAMEM_CACHE, or the platform's cache folder for this package."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("deltamem-agents", False))


def copy_folder(digest: str) -> Path:
    """The folder of the dense copy of the .gguf with this sha256. It may not exist yet."""
    return cache_dir() / "models" / f"{digest}-v{CONVERSION}"


def is_whole(folder: Path) -> bool:
    """Whether a dense copy is complete: its manifest exists and every file has the listed size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["files"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def dense_copy(digest: str, gguf: Callable[[Path], Path], progress: bool) -> Path:
    """The folder of the dense copy of the .gguf with this sha256. The copy is made if it is missing or incomplete.

    `gguf`: called only if the copy has to be made. It gets a temporary folder, which is removed afterwards, and returns
    the .gguf file. Raises ModelFilesError if the .gguf cannot be read or the cache cannot be written.
    """
    folder = copy_folder(digest)
    if is_whole(folder):
        return folder
    with _writing_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock only saves a second process the work. The rename alone guarantees that a copy is complete.
    with _locked(FileLock(f"{folder}.lock"), progress):
        if not is_whole(folder):
            with _scratch(folder) as scratch:
                _convert(gguf(scratch), scratch / "copy", progress)
                with _writing_cache():
                    _publish(scratch / "copy", folder)
    return folder


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' log and progress bars, and restores the settings afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _convert(gguf: Path, folder: Path, progress: bool) -> None:
    with step(f"converting {gguf.name} (once)", progress) as report, one_load_at_a_time, quiet_transformers():
        model, tokenizer = _read(gguf, report)
        with _writing_cache():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def _read(gguf: Path, report: Report) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model as ordinary weights, in the dtype for storage, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _counting_tensors(report):
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that was loaded from a .gguf, so its weights are copied to a second model.
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        plain = AutoModelForCausalLM.from_config(read.config, dtype=_storage_dtype(read))
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
    except Exception as error:
        # The parser can raise any exception for a damaged or unknown .gguf.
        raise ModelFilesError(
            f"{gguf} could not be read as a language model: {error}; expected a complete .gguf of an "
            "architecture that transformers can convert"
        ) from error
    return plain, tokenizer


def _storage_dtype(model: nn.Module) -> torch.dtype:
    """float16 if it changes every tensor by a relative error of at most 2⁻¹¹, else float32.

    On the embedded Q4_1 model float16 costs a relative error of 1.9e-4 in the weights and 2.6e-6 nats of
    KL per token against float32, with every greedy token of eight replies unchanged. bfloat16 takes the same
    space and costs 1.4e-3 and 9.3e-5 nats. float32 takes 540 MB instead of 270.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            error = (tensor.half().to(tensor.dtype) - tensor).norm()
            # Written as "not <=", so that a NaN from an overflow to infinity gives float32.
            if not error <= 2**-11 * tensor.norm():
                return torch.float32
    return torch.float16


@contextmanager
def _counting_tensors(report: Report) -> Iterator[None]:
    """Reports transformers' progress through a .gguf, instead of its own progress bar.

    No setting of transformers or tqdm turns that bar off, so its name is replaced during the call.
    """
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(tensors: list[object], **_: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors, 1):
            yield tensor
            report(done, len(tensors))

    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    setattr(reader, "tqdm", counted)  # noqa: B010
    try:
        yield
    finally:
        setattr(reader, "tqdm", bar)  # noqa: B010


def _publish(copy: Path, folder: Path) -> None:
    """Renames a finished copy into place, durably. If another process was first, its copy stays."""
    sizes = {file.name: file.stat().st_size for file in copy.iterdir()}
    (copy / MANIFEST).write_text(json.dumps({"conversion": CONVERSION, "files": sizes}, indent=1))
    for file in copy.iterdir():
        _flush_to_disk(file)
    _flush_to_disk(copy)
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)
    try:
        os.rename(copy, folder)
    except OSError:
        if not is_whole(folder):
            raise
    _flush_to_disk(folder.parent)


def _flush_to_disk(path: Path) -> None:
    # Windows cannot open a folder for fsync, and some network file systems refuse it.
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _locked(lock: FileLock, progress: bool) -> Iterator[None]:
    with _writing_cache():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with step("waiting for another conversion of the same model", progress):
                lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the copy's, on the same file system. Folders that a killed process left are removed."""
    with _writing_cache():
        for abandoned in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _writing_cache() -> Iterator[None]:
    try:
        yield
    except DeltaMemError:
        raise
    except OSError as error:
        raise ModelFilesError(
            f"the model cache {cache_dir()} could not be written: {error}; free space there, or name "
            f"another folder in the environment variable {CACHE_VARIABLE}"
        ) from error
