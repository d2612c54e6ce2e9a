"""A LlamaIndex chat engine that is told something, stopped, and asked in a new process with an empty history.

Shows: `DeltaMemLLM` in a `SimpleChatEngine`, whose memory is in a SQLite file.
Prints: the reply and the number of messages in the engine's history.

python examples/llamaindex_chat_engine.py tell "My dog's name is Biscuit."
python examples/llamaindex_chat_engine.py ask "What is my dog called?"
"""

import sys
from pathlib import Path

from llama_index.core.chat_engine import SimpleChatEngine

from llama_index.llms.deltamem import DeltaMemLLM

STORE = Path(__file__).parent / "llamaindex-chat-engine.sqlite"


def run(text: str, llm: DeltaMemLLM) -> str:
    """One turn of an engine without any history: what it knows of the past it knows from its memory."""
    engine = SimpleChatEngine.from_defaults(llm=llm)
    said = "".join(engine.stream_chat(text).response_gen)
    return f"{said}\n({len(engine.chat_history)} messages of history)"


def main(verb: str, text: str) -> str:
    llm = DeltaMemLLM(store=f"sqlite:///{STORE}", max_tokens=24)
    # Asking leaves the memory as it is, so that a wrong answer is not remembered.
    return run(text, llm.for_agent("you", memory="readwrite" if verb == "tell" else "readonly"))


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("tell", "ask"):
        sys.exit(__doc__)
    print(main(sys.argv[1], " ".join(sys.argv[2:])))
