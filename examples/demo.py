"""An agent is told ten things in one process and asked about them in another.

Shows: recall with an empty history, which statement an answer rests on, forgetting, correcting, and a question about
something that was never told. Only the memory differs, never the weights.

Prints: three tables (what was told; each answer with the memory, what it rests on, and without the memory; what was
forgotten, corrected and never told), and at the end how many of ten were recalled with the memory and without.

Run: python examples/demo.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deltamem_agents import DeltaMemEngine, Message, Sampling, SQLiteStore

MODEL = "smollm2-135m-instruct"
AGENT = "visitor"
FACTS = (
    ("Hi, I'm Priya and I work as a data engineer.", "What is my name?", "Priya"),
    ("I moved to Lisbon last spring and I love it here.", "Which city do I live in?", "Lisbon"),
    ("My dog Biscuit had to see the vet again today.", "What is my dog's name?", "Biscuit"),
    ("My sister Ingrid plays the cello in an orchestra.", "Which instrument does my sister play?", "cello"),
    ("By the way, the order number of my new desk is 09-824P.", "What is the order number of my desk?", "09-824P"),
    ("My next dentist appointment is on Thursday at 3 pm.", "When is my dentist appointment?", "Thursday"),
    ("I still drive my grandfather's old green Volvo.", "What car do I drive?", "Volvo"),
    ("The code of our garage door is 4471.", "What is the code of our garage door?", "4471"),
    ("Nothing beats a cup of jasmine tea, that's my favourite.", "What is my favourite tea?", "jasmine"),
    ("My wifi password is tangerine, in case you need it.", "What is my wifi password?", "tangerine"),
)
FORGOTTEN, CORRECTED = 7, 5
"""Which of the facts are forgotten and corrected."""

CORRECTION = ("My next dentist appointment is on Monday at 3 pm.", "Monday")
NEVER_TOLD = "What is my brother's name?"
OUTPUT = Path("demo-output")
REPLY = Sampling(max_tokens=24)


def tell(store: Path) -> None:
    """Process 1: ten conversations, then gone."""
    with SQLiteStore(store) as memories:
        engine = DeltaMemEngine.from_pretrained(MODEL, store=memories)
        lines = []
        for number, (told, _, _) in enumerate(FACTS):
            turn = engine.run_turn(AGENT, [Message("user", told)], thread=f"conversation {number}", sampling=REPLY)
            lines.append({"told": told, "reply": turn.text})
        print(json.dumps(lines))


def recall(store: Path) -> None:
    """Process 2: no history, one question a prompt, with the memory and without."""
    with SQLiteStore(store) as memories:
        engine = DeltaMemEngine.from_pretrained(MODEL, store=memories)
        lines = [{"when": "asked", **ask(engine, question)} for _, question, _ in FACTS]
        statements = {each.text: each.id for each in engine.statements(AGENT)}
        receipt = engine.forget_statement(AGENT, statements[FACTS[FORGOTTEN][0]])
        for other in receipt.alike:
            # The reply to it, where it says the same.
            engine.forget_statement(AGENT, other.id)
        lines.append({"when": "forgotten", **ask(engine, FACTS[FORGOTTEN][1])})
        engine.correct_statement(AGENT, statements[FACTS[CORRECTED][0]], CORRECTION[0])
        lines.append({"when": "corrected", **ask(engine, FACTS[CORRECTED][1])})
        lines.append({"when": "never told", **ask(engine, NEVER_TOLD)})
        print(json.dumps(lines))


def ask(engine: DeltaMemEngine, question: str) -> dict[str, str]:
    remembered = engine.run_turn(AGENT, [Message("user", question)], sampling=REPLY, memory="readonly")
    frozen = engine.run_turn(AGENT, [Message("user", question)], sampling=REPLY, memory="off")
    rests_on = remembered.facts.recalled[0].text if remembered.facts.recalled else ""
    return {"question": question, "with": remembered.text, "rests on": rests_on, "without": frozen.text}


def process(step: str, store: Path) -> list[dict[str, str]]:
    done = subprocess.run([sys.executable, __file__, step, str(store)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the process that should {step} failed with exit code {done.returncode}")
    lines: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return lines


def table(title: str, columns: tuple[str, ...], lines: list[dict[str, str]]) -> Table:
    found = Table(*columns, title=title, title_justify="left")
    for line in lines:
        found.add_row(*(line[column] for column in columns))
    return found


def says(line: dict[str, str], value: str, arm: str = "with") -> bool:
    return value.lower() in line[arm].lower()


def main() -> int:
    console = Console(width=110)
    OUTPUT.mkdir(exist_ok=True)
    store = OUTPUT / "memory.sqlite"
    for old in OUTPUT.glob("memory.sqlite*"):
        old.unlink()
    columns: Any = ("told", "reply")
    console.print(
        table("\nProcess 1 is told ten things, a conversation each, and ends.", columns, process("tell", store))
    )
    lines = process("recall", store)
    asked, (forgotten, corrected, never) = lines[: len(FACTS)], lines[len(FACTS) :]
    columns = ("question", "with", "rests on", "without")
    console.print(table("\nProcess 2 knows none of this: each prompt is one question.", columns, asked))
    columns = ("when", "question", "with", "rests on")
    later = [forgotten, corrected, never]
    console.print(table("\nThen one is forgotten, one corrected, and one was never told.", columns, later))
    with_memory = sum(says(line, answer) for line, (_, _, answer) in zip(asked, FACTS, strict=True))
    without = sum(says(line, answer, "without") for line, (_, _, answer) in zip(asked, FACTS, strict=True))
    gone = not says(forgotten, FACTS[FORGOTTEN][2])
    told = [answer for _, _, answer in FACTS]
    print(f"forgotten and gone: {'yes' if gone else 'no'}")
    print(f"corrected: {'yes' if says(corrected, CORRECTION[1]) else 'no'}")
    print(f"never told and not made up: {'no' if any(says(never, value) for value in told) else 'yes'}")
    print(f"recalled {with_memory} of {len(FACTS)} with memory, {without} of {len(FACTS)} without")
    return 0 if with_memory > without and gone else 1


if __name__ == "__main__":
    steps = {"tell": tell, "recall": recall}
    if len(sys.argv) == 3 and sys.argv[1] in steps:
        steps[sys.argv[1]](Path(sys.argv[2]))
    else:
        sys.exit(main())
