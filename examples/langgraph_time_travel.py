"""Going back in a LangGraph thread takes the memory along: it lies in the same checkpoint as the messages.

Shows: `DeltaMemMiddleware`, and two branches of one thread that are told different cities.
Prints: what each branch's memory holds, what it answers, and that the crossroads is as it was.

python examples/langgraph_time_travel.py
"""

import sqlite3
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.sqlite import SqliteSaver

from deltamem_agents.snapshots import decode
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from langchain_deltamem.middleware import STATE_KEY

THREAD = {"configurable": {"thread_id": "travel"}}


@wrap_model_call
def newest_message_only(request: Any, handler: Any) -> Any:
    """The model sees no history at all: whatever it knows of the past it knows from its memory."""
    return handler(request.override(messages=request.messages[-1:]))


def main(model: BaseChatModel, checkpoints: str = ":memory:") -> dict[str, str]:
    """What the agent answers on two branches of one thread, and a digest of each branch's memory."""
    saver = SqliteSaver(sqlite3.connect(checkpoints, check_same_thread=False))
    # The middleware comes first, and so encloses what trims the messages.
    agent = create_agent(model, middleware=[DeltaMemMiddleware(), newest_message_only], checkpointer=saver)

    def say(text: str, config: Any) -> str:
        return str(agent.invoke({"messages": [{"role": "user", "content": text}]}, config)["messages"][-1].text)

    def memory(config: Any) -> str:
        snapshot = decode(agent.get_state(config).values[STATE_KEY])
        return f"{snapshot.absorbed.count} messages absorbed, norm {snapshot.state.norm():.4f}"

    say("Hello, I am planning a trip.", THREAD)
    crossroads = agent.get_state(THREAD).config
    told: dict[str, str] = {"at the crossroads": memory(crossroads)}
    for city in ("Oslo", "Rome"):
        say(f"I live in {city}.", crossroads)
        branch = agent.get_state(THREAD).config
        told[f"told {city}"] = memory(branch)
        told[f"asked where I live, on the branch of {city}"] = say("Which city do I live in?", branch)
    told["back at the crossroads"] = memory(crossroads)
    return told


if __name__ == "__main__":
    for what, answer in main(ChatDeltaMem(max_tokens=24)).items():
        print(f"{what}: {answer}")
