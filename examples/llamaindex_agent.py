"""A LlamaIndex agent whose memory is part of its context: saved as JSON, restored in a new process.

Shows: `DeltaMemFunctionAgent` with a tool, and a `Context` that carries the memory.
Prints: the reply, the bytes of the memory's state and those of the saved context.

python examples/llamaindex_agent.py tell "My dog's name is Biscuit."
python examples/llamaindex_agent.py ask "What is my dog called?"
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from llama_index.core.workflow import Context

from llama_index.llms.deltamem import DeltaMemFunctionAgent, DeltaMemLLM

SAVED = Path(__file__).parent / "llamaindex-agent.json"


def clock() -> str:
    """Tell what time it is."""
    return datetime.now(UTC).strftime("%H:%M UTC")


async def run(text: str, llm: DeltaMemLLM, saved: Path = SAVED) -> str:
    """One turn of the agent, which knows nothing but this message and the memory in its context."""
    agent = DeltaMemFunctionAgent(llm=llm, tools=[clock])
    ctx = Context.from_dict(agent, json.loads(saved.read_text())) if saved.exists() else Context(agent)
    reply = await agent.run(user_msg=text, ctx=ctx)
    saved.write_text(json.dumps(ctx.to_dict()))
    facts = reply.raw["deltamem"]
    return f"{reply.response.content}\n({facts['state_bytes']} bytes of state, {saved.stat().st_size} of context)"


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("tell", "ask"):
        sys.exit(__doc__)
    # Asking leaves the memory as it is, so that a wrong answer is not remembered.
    mode = "readwrite" if sys.argv[1] == "tell" else "readonly"
    print(asyncio.run(run(" ".join(sys.argv[2:]), DeltaMemLLM(memory=mode, max_tokens=24))))
