"""A LangChain agent that is told something, stopped, and asked in a new process with an empty history.

Shows: `ChatDeltaMem` in `create_agent`, with a tool, whose memory is in a SQLite file.
Prints: the reply, the tokens of its prompt and the bytes of the memory's state.

python examples/langchain_agent.py tell "My dog's name is Biscuit."
python examples/langchain_agent.py ask "What is my dog's name?"
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool

from langchain_deltamem import ChatDeltaMem

STORE = Path(__file__).parent / "langchain-agent.sqlite"


@tool
def clock() -> str:
    """Tell what time it is."""
    return datetime.now(UTC).strftime("%H:%M UTC")


def run(text: str, model: BaseChatModel) -> str:
    """One turn of the agent, who knows nothing but this message and its memory."""
    agent = create_agent(model, tools=[clock])
    whose = {"configurable": {"deltamem_agent_id": "you"}, "recursion_limit": 10}
    reply = agent.invoke({"messages": [{"role": "user", "content": text}]}, whose)["messages"][-1]
    facts = reply.response_metadata["deltamem"]
    return f"{reply.text}\n({reply.usage_metadata['input_tokens']} tokens read, {facts['state_bytes']} bytes of state)"


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("tell", "ask"):
        sys.exit(__doc__)
    # Asking leaves the memory as it is, so that a wrong answer is not remembered.
    mode = "readwrite" if sys.argv[1] == "tell" else "readonly"
    print(run(" ".join(sys.argv[2:]), ChatDeltaMem(store=f"sqlite:///{STORE}", memory=mode, max_tokens=24)))
