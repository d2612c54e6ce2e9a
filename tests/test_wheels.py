"""Each distribution builds a wheel that works without this repository on the path.

Works offline: wheels are built with the installed hatchling and installed without dependencies into a fresh
environment. It uses this environment's third-party libraries, but not its editable installs of the packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# One worker runs all of these tests, since they share the wheels.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheels")]


@dataclass(frozen=True)
class Distribution:
    """`folder`: where its pyproject.toml is. `package`: its code. `use`: prints "ok" if the installed wheel works."""

    folder: str
    package: str
    use: str


CORE = Distribution(
    ".",
    "deltamem_agents",
    """
import deltamem_agents
from deltamem_agents.loading import adapter_folder
from deltamem_agents.testing import ScriptedEngine
turn = ScriptedEngine("ok").run_turn("ada", [{"role": "user", "content": "hi"}])
assert turn.snapshot and list(adapter_folder(None, "smollm2-135m-instruct").glob("*.safetensors"))
from deltamem_agents.lab.corpus.facts import attributes
from deltamem_agents.lab.evaluation.harmless import neutral_replies
from deltamem_agents.lab.training.preserved import neutral_prompts
from deltamem_agents.lab.training.recipe import Recipe
assert attributes() and attributes(held_out=True) and neutral_replies() and neutral_prompts() and Recipe.load("wide")
print(deltamem_agents.__file__, turn.text)
""",
)
LANGCHAIN = Distribution(
    "integrations/langchain",
    "langchain_deltamem",
    """
import langchain_deltamem
from deltamem_agents.testing import ScriptedEngine
model = langchain_deltamem.ChatDeltaMem(engine=ScriptedEngine("ok"))
assert langchain_deltamem.DeltaMemMiddleware()
print(langchain_deltamem.__file__, model.invoke("hi", agent_id="ada").content)
""",
)
LLAMAINDEX = Distribution(
    "integrations/llamaindex",
    "llama_index",
    """
import llama_index.llms.deltamem as package
from deltamem_agents.testing import ScriptedEngine
print(package.__file__, package.DeltaMemLLM(engine=ScriptedEngine("ok")).complete("hi").text)
""",
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, by its package."""
    built = {}
    for each in (CORE, LANGCHAIN, LLAMAINDEX):
        out = tmp_path_factory.mktemp(each.package)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out), cwd=ROOT / each.folder)
        (built[each.package],) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheels and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    run(*install, *map(str, wheels.values()))
    return python


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheels_work_in_a_clean_environment(clean_python: Path, tmp_path: Path) -> None:
    # Python searches a folder on PYTHONPATH but ignores its .pth files, which point back to this repository.
    uses = "".join(each.use for each in (CORE, LANGCHAIN, LLAMAINDEX))
    said = run(str(clean_python), "-c", uses, cwd=tmp_path, PYTHONPATH=sysconfig.get_path("purelib"))
    found = [line.split() for line in said.splitlines()]
    assert len(found) == 3
    for path, answer in found:
        assert Path(path).is_relative_to(clean_python.parents[1]) and answer == "ok"


@pytest.mark.parametrize("each", [CORE, LANGCHAIN, LLAMAINDEX], ids=lambda each: each.package)
def test_a_wheel_holds_the_package_its_licence_and_nothing_else(each: Distribution, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[each.package]) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = message_from_bytes(wheel.read(metadata))
    about = metadata.rpartition("/")[0]
    assert {name.split("/")[0] for name in names} == {each.package, about}
    assert any(name.endswith("/py.typed") for name in names) and f"{about}/licenses/LICENSE" in names
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]
    assert said["License-Expression"] == "Apache-2.0" and str(said.get_payload()).startswith("# ")


def test_the_command_line_is_installed(clean_python: Path, tmp_path: Path) -> None:
    deltamem = clean_python.with_name("deltamem.exe" if os.name == "nt" else "deltamem")
    assert "Usage" in run(str(deltamem), "--help", cwd=tmp_path, PYTHONPATH=sysconfig.get_path("purelib"))
