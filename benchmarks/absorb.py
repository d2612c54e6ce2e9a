"""The cost of a long history: time and peak memory of absorbing it in a turn.

    python benchmarks/absorb.py [TOKENS …]

Each length runs in its own process, so that peak memory is measured separately.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

LENGTHS = (2_000, 20_000)


def measure(tokens: int) -> None:
    from deltamem_agents import DeltaMemEngine, Message, Sampling

    engine = DeltaMemEngine.from_pretrained("smollm2-135m-instruct", store="memory:", progress=False)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    text = "The weather was calm and the harbour quiet that day. "
    each = engine.count_tokens([Message("user", text * 4)])
    roles = ("user", "assistant")
    history = [Message(roles[turn % 2], text * 4) for turn in range(tokens // each // 2 * 2)]
    begun = time.perf_counter()
    turn = engine.run_turn("ada", [*history, Message("user", "Hello?")], sampling=Sampling(max_tokens=8))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{turn.facts.tokens_written:>7} tokens written, prompt {turn.usage.prompt_tokens}, {seconds:.1f} s, "
        f"{turn.facts.tokens_written / seconds:.0f} tokens/s, "
        f"memory {idle:.0f} MB with the model open, {peak:.0f} MB at its peak, state {turn.facts.state_bytes} bytes"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(int(sys.argv[2]))
    else:
        for length in map(int, sys.argv[1:] or LENGTHS):
            subprocess.run([sys.executable, __file__, "--one", str(length)], check=True)
