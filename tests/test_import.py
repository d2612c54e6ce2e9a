"""Importing the package costs nothing: no model library, no file, no socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WATCHED_IMPORT = """
import json, sys
seen = []
def watch(event, args):
    if event.startswith("socket.") or event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen"):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open for writing: {args[0]}")
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import deltamem_agents
print(json.dumps({"modules": sorted(sys.modules), "seen": seen}))
"""


def test_importing_the_package_loads_no_model_library_and_touches_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "DELTAMEM_CACHE": str(tmp_path / "cache")},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    heavy = {"torch", "transformers", "numpy", "safetensors", "numba", "matplotlib", "rich", "typer"}
    assert not heavy & set(found["modules"])
    assert found["seen"] == []
    assert list(tmp_path.iterdir()) == []
