"""What a smaller key–value cache costs, and what memory gives back of it: `python benchmarks/compression.py`.

A conversation tells something, then talks of other things at length, then tells something else; then it is asked for
the first and for the last. Everything stands in the prompt. What a bounded cache has dropped by then is "outside", the
rest is "inside". Arms:

    full                all keys and values
    quantised           8 bits, a scale a token and head
    fp8                 transformers' own quantised cache of that name, where this release has it
    bounded             the first 4 tokens and the newest ones
    … + memory          the same, and the agent was told the conversation before
    short window        a prompt of about as many tokens as the bounded cache holds, and the memory

Bytes are of keys and values when the reply is over; those of the memory's state stand beside. `perpl.`: perplexity of
this repository's prose, read on with such a cache and no memory. `decode`, `prefill`: tokens a second. Arms alternate.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers.cache_utils import QuantizedCache

from deltamem_agents import DeltaMemEngine, InMemoryStore, Message, Sampling
from deltamem_agents.inference import passes
from deltamem_agents.inference.compressed import SINKS, CompressedCache
from deltamem_agents.inference.kept import KeptCaches
from deltamem_agents.memory.backbones import KeyValueCache, empty_cache, with_cache
from deltamem_agents.types import MemoryMode

FACTS = (
    ("I moved to Lisbon last spring and I love it here.", "Which city do I live in?", "Lisbon"),
    ("My dog Biscuit had to see the vet again today.", "What is my dog's name?", "Biscuit"),
    ("My sister Ingrid plays the cello in an orchestra.", "Which instrument does my sister play?", "cello"),
    ("My next dentist appointment is on Thursday at 3 pm.", "When is my dentist appointment?", "Thursday"),
    ("I still drive my grandfather's old green Volvo.", "What car do I drive?", "Volvo"),
    ("The code of our garage door is 4471.", "What is the code of our garage door?", "4471"),
    ("Nothing beats a cup of jasmine tea, that's my favourite.", "What is my favourite tea?", "jasmine"),
    ("My wifi password is tangerine, in case you need it.", "What is my wifi password?", "tangerine"),
)
TALK = (
    ("What can I cook with lentils?", "A soup with carrots, onions and a little cumin is quick and warm."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so it comes from everywhere."),
    ("How do I take care of a fern?", "Keep it out of the sun, in moist soil, and spray it with water now and then."),
    ("What is a good way to learn chess?", "Play often, look at your games afterwards, and solve a few puzzles a day."),
    ("How long should I boil an egg?", "Six minutes for a soft one, ten for a hard one, in boiling water."),
    ("Why do cats purr?", "Mostly because they are content, and sometimes to calm themselves."),
)
CHUNK = 128
"""Tokens of a pass, in every arm."""

PROSE = Path(__file__).parents[1] / "docs" / "memory-semantics.md"


@dataclass(frozen=True)
class Arm:
    """One way to hold keys and values. `window`: of the prompt, None for all of it."""

    name: str
    make: Callable[[], KeyValueCache]
    memory: MemoryMode = "off"
    window: int | None = None


@dataclass
class Found:
    """What an arm did, answer by answer."""

    cache_bytes: list[int] = field(default_factory=list)
    state_bytes: int = 0
    inside: list[bool] = field(default_factory=list)
    outside: list[bool] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """The table's. Bytes are those of the keys and values; the state's stand beside."""

    arm: str
    cache_bytes: float
    state_bytes: int
    inside: float
    outside: float
    perplexity: float
    decode: float
    prefill: float


def arms(engine: DeltaMemEngine, tokens: int) -> list[Arm]:
    layers = int(engine.model.config.num_hidden_layers)

    def bounded() -> KeyValueCache:
        return CompressedCache(layers, tokens=tokens)

    def both() -> KeyValueCache:
        return CompressedCache(layers, tokens=tokens, quantized=True)

    found = [
        Arm("full", empty_cache),
        Arm("quantised", lambda: CompressedCache(layers, quantized=True)),
        Arm("bounded", bounded),
        Arm("full + memory", empty_cache, "readonly"),
        Arm("bounded + memory", bounded, "readonly"),
        Arm("quantised + bounded + memory", both, "readonly"),
        Arm("short window + memory", empty_cache, "readonly", tokens + SINKS),
    ]
    try:
        QuantizedCache("fp8", engine.model.config)
    except ValueError:
        return found
    found.insert(2, Arm("fp8", lambda: QuantizedCache("fp8", engine.model.config)))  # type: ignore[arg-type, return-value]
    return found


def conversation(number: int, exchanges: int) -> tuple[list[Message], Sequence[tuple[str, str, bool]]]:
    """A history, and what is asked of it: question, answer, and whether it was told at the end."""
    first, last = FACTS[number % len(FACTS)], FACTS[(number + len(FACTS) // 2) % len(FACTS)]
    said = [("You keep in mind what you are told, and answer in a few words.", ""), (first[0], "Good to know.")]
    said += [TALK[(number + at) % len(TALK)] for at in range(exchanges)]
    said.append((last[0], "Good to know."))
    messages = [Message("system", said[0][0])]
    for user, reply in said[1:]:
        messages += [Message("user", user), Message("assistant", reply)]
    return messages, [(first[1], first[2], False), (last[1], last[2], True)]


def bytes_of(cache: KeyValueCache) -> int:
    if isinstance(cache, CompressedCache):
        return cache.nbytes
    held = [part for layer in cache.layers for part in (*vars(layer).values(),)]
    tensors = [each for part in held for each in (part if isinstance(part, tuple) else (part,))]
    return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def ask(engine: DeltaMemEngine, arm: Arm, found: Found, agent: str, messages: Sequence[Message], answer: str) -> bool:
    """Whether the reply has the answer; what it cost is noted in `found`."""
    made: list[KeyValueCache] = []

    def make() -> KeyValueCache:
        made.append(arm.make())
        return made[-1]

    twin = engine.with_store(engine.store)
    prompts = twin._prompts if arm.window is None else replace(twin._prompts, tokens=arm.window + 16)
    twin._prompts, twin._speaker = prompts, replace(engine._speaker, new_cache=make, prompts=prompts)
    twin._caches = KeptCaches(0)
    turn = twin.run_turn(agent, messages, thread="t", memory=arm.memory, sampling=Sampling(max_tokens=16))
    found.cache_bytes.append(max(map(bytes_of, made)))
    found.state_bytes = turn.facts.state_bytes
    found.prefill.append(turn.facts.prefilled_tokens / turn.facts.prefill_seconds)
    if turn.usage.completion_tokens > 1:
        found.decode.append((turn.usage.completion_tokens - 1) / turn.facts.decode_seconds)
    return answer.casefold() in turn.text.casefold()


@torch.no_grad()
def perplexity(engine: DeltaMemEngine, arm: Arm, tokens: int) -> float:
    """Of prose behind as much of it as a bounded cache has long dropped, in short passes."""
    ids = engine.tokenizer(PROSE.read_text())["input_ids"][:tokens]
    cache, losses, step = arm.make(), list[torch.Tensor](), 32
    if arm.window is not None:
        return math.nan
    for start in range(0, len(ids) - 1, step):
        part = torch.tensor([ids[start : start + step + 1]])
        out = engine.model(input_ids=part[:, :-1], **with_cache(engine.model, cache))
        losses.append(torch.nn.functional.cross_entropy(out.logits[0].float(), part[0, 1:], reduction="none"))
    return float(torch.cat(losses)[tokens // 2 :].mean().exp())


def measure(engine: DeltaMemEngine, conversations: int, exchanges: int, tokens: int, prose: int) -> list[Row]:
    chosen = arms(engine, tokens)
    found: Mapping[str, Found] = {arm.name: Found() for arm in chosen}
    for number in range(conversations):
        told, questions = conversation(number, exchanges)
        agent = f"agent {number}"
        engine.absorb_into(agent, told, thread="t")
        for question, answer, late in questions:
            for arm in chosen if number % 2 else chosen[::-1]:
                own = found[arm.name]
                right = ask(engine, arm, own, agent, [*told, Message("user", question)], answer)
                (own.inside if late else own.outside).append(right)
    return [
        Row(
            arm.name,
            statistics.mean(own.cache_bytes),
            own.state_bytes,
            statistics.mean(own.inside),
            statistics.mean(own.outside),
            perplexity(engine, arm, prose),
            statistics.median(own.decode),
            statistics.median(own.prefill),
        )
        for arm, own in ((arm, found[arm.name]) for arm in chosen)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default=None, help="of the base model; what the engine takes where nothing is said")
    parser.add_argument("--tokens", type=int, default=256, help="newest ones that a bounded cache holds")
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--exchanges", type=int, default=14, help="of talk between what is told first and last")
    parser.add_argument("--prose", type=int, default=1536, help="tokens of prose, of which the later half counts")
    parser.add_argument("--quick", action="store_true", help="little of all, to see that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON value instead of a table")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.conversations, arguments.exchanges, arguments.prose = 128, 3, 6, 512
    # A bounded cache sees all of a pass's own tokens.
    passes.PREFILL_CHUNK = CHUNK
    engine = DeltaMemEngine.from_pretrained(
        arguments.model, store=InMemoryStore(), dtype=arguments.dtype, window_tokens=2048, progress=False
    )
    rows = measure(engine, arguments.conversations, arguments.exchanges, arguments.tokens, arguments.prose)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(
        f"{'':<30}{'cache MB':>10}{'state KB':>10}{'inside':>8}{'outside':>9}{'perpl.':>8}{'decode':>8}{'prefill':>9}"
    )
    for row in rows:
        print(
            f"{row.arm:<30}{row.cache_bytes / 1e6:>10.2f}{row.state_bytes / 1e3:>10.1f}{row.inside:>8.0%}"
            f"{row.outside:>9.0%}{row.perplexity:>8.2f}{row.decode:>8.1f}{row.prefill:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
