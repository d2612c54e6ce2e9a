"""The main job on the real model: told in one process, recalled in another from the state alone.

Process 1 is told three facts and ends. Process 2 starts with an empty history and answers three questions,
with the memory and without. The same frozen weights, the same prompts; only the state differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deltamem_agents import DeltaMemEngine, Message, Sampling, SQLiteStore

MODEL = "smollm2-135m-instruct"
AGENT = "visitor"
FACTS = (
    ("My dog's name is Biscuit.", "What is my dog called?", "Biscuit"),
    ("I live in Lisbon.", "Which city do I live in?", "Lisbon"),
    ("My sister's name is Ingrid.", "What is my sister's name?", "Ingrid"),
)
OUTPUT = Path("demo-output")
REPLY = Sampling(max_tokens=24)


def tell(store: Path) -> None:
    """Process 1: three turns, then gone."""
    with SQLiteStore(store) as memories:
        engine = DeltaMemEngine.from_pretrained(MODEL, store=memories)
        history: list[Message] = []
        lines = []
        for told, _, _ in FACTS:
            history.append(Message("user", told))
            turn = engine.run_turn(AGENT, history, sampling=REPLY)
            history.append(turn.message)
            lines.append(
                {
                    "told": told,
                    "reply": turn.text,
                    "prompt": turn.usage.prompt_tokens,
                    "written": turn.facts.tokens_written,
                    "bytes": turn.facts.state_bytes,
                }
            )
        print(json.dumps(lines))


def recall(store: Path) -> None:
    """Process 2: no history, one question a prompt, with the memory and without."""
    with SQLiteStore(store) as memories:
        engine = DeltaMemEngine.from_pretrained(MODEL, store=memories)
        lines = []
        for _, question, _ in FACTS:
            ask = [Message("user", question)]
            remembered = engine.run_turn(AGENT, ask, sampling=REPLY, memory="readonly")
            frozen = engine.run_turn(AGENT, ask, sampling=REPLY, memory="off")
            lines.append(
                {
                    "question": question,
                    "with": remembered.text,
                    "without": frozen.text,
                    "prompt": remembered.usage.prompt_tokens,
                    "bytes": remembered.facts.state_bytes,
                }
            )
        print(json.dumps(lines))


def process(step: str, store: Path) -> list[dict[str, str | int]]:
    done = subprocess.run([sys.executable, __file__, step, str(store)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the process that should {step} failed with exit code {done.returncode}")
    lines: list[dict[str, str | int]] = json.loads(done.stdout.splitlines()[-1])
    return lines


def picture(store: Path, path: Path) -> None:
    from deltamem_agents.lab.pictures import state_picture

    with SQLiteStore(store) as memories:
        state_picture(memories.load(AGENT).snapshot.state, path, "What the agent remembers, layer by layer")


def main() -> int:
    console = Console(width=110)
    OUTPUT.mkdir(exist_ok=True)
    store = OUTPUT / "memory.sqlite"
    for old in OUTPUT.glob("memory.sqlite*"):
        old.unlink()
    console.print("\n[bold]Process 1[/] is told three facts, and ends.")
    told = Table("told", "reply", "prompt tokens", "tokens written", "state bytes")
    for line in process("tell", store):
        told.add_row(*(str(line[key]) for key in ("told", "reply", "prompt", "written", "bytes")))
    console.print(told)
    console.print("\n[bold]Process 2[/] starts with an empty history: each prompt holds one question and nothing else.")
    asked = Table("question", "with memory", "same prompt, memory off", "prompt tokens", "state bytes")
    with_memory = without = 0
    for line, (_, _, answer) in zip(process("recall", store), FACTS, strict=True):
        asked.add_row(*(str(line[key]) for key in ("question", "with", "without", "prompt", "bytes")))
        with_memory += answer.lower() in str(line["with"]).lower()
        without += answer.lower() in str(line["without"]).lower()
    console.print(asked)
    image = OUTPUT / "state.png"
    picture(store, image)
    print(f"\nthe state, drawn: {image}")
    print(f"recalled {with_memory} of {len(FACTS)} with memory, {without} of {len(FACTS)} without")
    return 0 if with_memory > without else 1


if __name__ == "__main__":
    steps = {"tell": tell, "recall": recall}
    if len(sys.argv) == 3 and sys.argv[1] in steps:
        steps[sys.argv[1]](Path(sys.argv[2]))
    else:
        sys.exit(main())
