"""Tell an agent something, and ask it in another process with an empty history.

Shows: `DeltaMemEngine` without any framework, and forgetting.
Prints: the reply, the tokens of its prompt, the bytes of the memory's state, and the snapshot's id.

python examples/remember_across_runs.py tell "My dog's name is Biscuit."
python examples/remember_across_runs.py ask "What is my dog's name?"
python examples/remember_across_runs.py forget
"""

import sys
from pathlib import Path

from deltamem_agents import AgentNotFoundError, DeltaMemEngine, Sampling, SQLiteStore

AGENT = "you"
STORE = Path(__file__).parent / "remember.sqlite"


def main(verb: str, text: str = "", store: Path = STORE) -> str:
    with SQLiteStore(store) as memories:
        if verb == "forget":
            try:
                receipt = memories.forget(AGENT)
            except AgentNotFoundError as nothing:
                return str(nothing)
            return f"forgotten: {len(receipt.removed)} snapshots, {receipt.nbytes} bytes"
        engine = DeltaMemEngine.from_pretrained("smollm2-135m-instruct", store=memories)
        turn = engine.run_turn(AGENT, [{"role": "user", "content": text}], sampling=Sampling(max_tokens=24))
        facts = turn.facts
        return (
            f"{turn.text}\n"
            f"({turn.usage.prompt_tokens} prompt tokens, {facts.state_bytes} bytes of state, "
            f"{facts.tokens_written} tokens written, snapshot {(turn.snapshot or '')[:8]})"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("tell", "ask", "forget"):
        sys.exit(__doc__)
    print(main(sys.argv[1], " ".join(sys.argv[2:])))
