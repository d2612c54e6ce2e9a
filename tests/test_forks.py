"""Laws of forked processes: a fork either computes or raises an error at once. It never hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Every child is forked from a process whose torch has used its threads and which opened an engine.
PARENT = """
import asyncio, json, os, signal, sys, threading
import torch
from deltamem_agents import ForkedProcessError, Message, Sampling
from deltamem_agents.bridges import EngineSpec, shared_engine
from deltamem_agents.chat import encoding
from tiny_engine import random_adapter, tiny_engine, tiny_llama, byte_tokenizer

torch.set_num_threads(2)
engine = tiny_engine()
said, short = [Message("user", "Hi.")], Sampling(max_tokens=3)
told = engine.run_turn("ada", said, sampling=short, memory="readonly").text
torch.rand(1500, 1500) @ torch.rand(1500, 1500)
state = engine.new_state()
ENTRIES = {
    "run_turn": lambda: engine.run_turn("ada", said),
    "nobody": lambda: engine.run_turn(None, said),
    "off": lambda: engine.run_turn("ada", said, memory="off"),
    "stream_turn": lambda: next(engine.stream_turn("ada", said)),
    "arun_turn": lambda: asyncio.run(engine.arun_turn("ada", said)),
    "absorb": lambda: engine.absorb(state, said),
    "absorb_into": lambda: engine.absorb_into("ada", said),
    "absorb_batch": lambda: engine.absorb_batch([state], [said]),
    "score": lambda: engine.score(None, said, "a"),
    "score_batch": lambda: engine.score_batch([state], [said], ["a"]),
    "greedy_replies": lambda: engine.greedy_replies(None, [said], max_tokens=2),
    "count_tokens": lambda: engine.count_tokens(said),
    "twin": lambda: engine.with_store("memory:").run_turn("ada", said),
    "from_pretrained": lambda: type(engine).from_pretrained(FOLDER),
    "from_model": lambda: type(engine).from_model(
        tiny_llama(), byte_tokenizer(), adapter=random_adapter(engine.model), store="memory:"
    ),
    "shared_engine": lambda: shared_engine(EngineSpec(FOLDER)),
}

def forked(act):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        code = 1
        try:
            code = act()
        except BaseException as error:
            print(type(error), error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(act):
    try:
        act()
    except ForkedProcessError as error:
        return 0 if "spawn" in str(error) and str(os.getppid()) in str(error) else 2
    return 3
"""


LAWS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def nobody():
    return engine.run_turn(None, said).text

def pooled():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            pool.submit(nobody).result(60)
        except ForkedProcessError:
            return 0
        except Exception as error:
            return f"{type(error)} {error}"
    return "no error"

refusals = {name: forked(lambda: refused(act)) for name, act in ENTRIES.items()} | {"a pool": pooled()}

held, over, queue = threading.Event(), threading.Event(), engine._queues.of("ada")

def hold():
    with encoding._switch, queue:
        held.set()
        over.wait(60)

def alone():
    torch.set_num_threads(1)
    with queue:
        return int(engine.run_turn("ada", said, sampling=short, memory="readonly").text != told)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
computed = forked(alone)
over.set()
thread.join()
print(json.dumps({"refusals": refusals, "computed": computed}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit codes of the forks of one process, which takes seconds to start; 0 is success."""
    script = f"FOLDER = {str(tmp_path_factory.mktemp('model'))!r}\n{PARENT}\n{LAWS}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=_environment(), timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def _environment() -> dict[str, str]:
    here = str(Path(__file__).parent)
    paths = [here, str(Path(here).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


# One test worker runs both, so that they share the forks.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork"),
    pytest.mark.xdist_group("forks"),
]


def test_every_method_of_an_engine_is_refused_in_a_fork_without_its_threads(found: dict[str, Any]) -> None:
    assert len(found["refusals"]) > 10 and not any(found["refusals"].values()), found["refusals"]


def test_a_fork_with_one_thread_computes_what_its_parent_does_whatever_its_threads_held(found: dict[str, Any]) -> None:
    assert found["computed"] == 0
