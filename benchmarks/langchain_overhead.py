"""What LangChain and the memory cost around the model: `python benchmarks/langchain_overhead.py`.

Prints the share of a turn that is spent outside the model's forward passes, and the tokens of the prompt
over a long conversation with a bounded window, against those of the whole history.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from deltamem_agents import DeltaMemEngine, Message, SQLiteStore
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.messages import to_messages

REPLY_TOKENS = 16
FACT = "This is fact number {}: the {} drawer of the desk holds what was written on day {}."
SHOWN = (1, 2, 5, 10, 20, 50, 100)


def history_tokens(engine: DeltaMemEngine, messages: list[BaseMessage]) -> int:
    """Tokens of a prompt that holds all of these messages."""
    turns = [{"role": message.role, "content": message.content} for message in to_messages(messages)]
    return len(engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])


def converse(model: ChatDeltaMem, engine: DeltaMemEngine, turns: int) -> list[tuple[int, int, float, float]]:
    """One conversation: (prompt tokens, tokens of the whole history, seconds, seconds in the model) a turn."""
    history: list[BaseMessage] = []
    measured = []
    for turn in range(1, turns + 1):
        history.append(HumanMessage(FACT.format(turn, turn % 7, turn)))
        whole = history_tokens(engine, history)
        start = time.perf_counter()
        reply = model.invoke(history, agent_id="bench", thread="one")
        seconds = time.perf_counter() - start
        facts, usage = reply.response_metadata["deltamem"], reply.usage_metadata
        prompt = usage["input_tokens"] - usage["input_token_details"]["absorbed"]
        measured.append((prompt, whole, seconds, facts["prefill_seconds"] + facts["decode_seconds"]))
        history.append(AIMessage(reply.text))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", help="folder or Hub id; the one that ships if not given")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--window", type=int, default=512, help="tokens of prompt and reply together")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SQLiteStore(Path(folder) / "bench.sqlite") as store:
        engine = DeltaMemEngine.from_pretrained(
            given.model, adapter=given.adapter, store=store, window_tokens=given.window, progress=False
        )
        model = ChatDeltaMem(engine=engine, max_tokens=REPLY_TOKENS)
        model.invoke([HumanMessage("Warm up.")], memory="off")
        report(converse(model, engine, given.turns), engine.count_tokens([Message("user", FACT.format(1, 1, 1))]))


def report(measured: list[tuple[int, int, float, float]], message_tokens: int) -> None:
    outside = [1 - inside / seconds for _, _, seconds, inside in measured]
    print(f"{len(measured)} turns, messages of {message_tokens} tokens, replies of up to {REPLY_TOKENS}")
    print(f"a turn takes {statistics.median(s for _, _, s, _ in measured) * 1000:.0f} ms (median), of which outside")
    print(f"the model {statistics.median(outside):.1%} (median), {max(outside):.1%} (most)")
    print("turn  prompt tokens  whole history")
    for turn, (prompt, whole, _, _) in enumerate(measured, start=1):
        if turn in SHOWN or turn == len(measured):
            print(f"{turn:4}  {prompt:13}  {whole:13}")


if __name__ == "__main__":
    main()
