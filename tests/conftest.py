"""Environment of the tests, set before any library is imported: no network, and no threads that cannot be used."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tiny_folders import Tiny

# On a shared machine an example may take any time; no test depends on it. A commit tries the same examples every
# time, so it passes or fails for good. `--hypothesis-profile explore` tries new ones.
settings.register_profile("deltamem", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("fast", settings.get_profile("deltamem"), max_examples=5)
settings.register_profile("explore", settings.get_profile("deltamem"), derandomize=False)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("hypothesis_profile"):
        settings.load_profile("fast" if "not slow" in config.getoption("markexpr") else "deltamem")


def pytest_collection_finish() -> None:
    """Everything imported so far stays until the end, so later garbage collections need not search it again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-dir",
        default=str(Path(__file__).parent / "parity"),
        help="folder of reference vectors for test_parity.py",
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """Folders of a random two-layer model and of an adapter for it."""
    from tiny_folders import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))
