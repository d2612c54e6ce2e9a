"""What a turn with memory costs beside the ways to do without: `python benchmarks/cost.py`.

Four questions, ratios first:

    speed    tokens a second of one reply: memory on, memory off, transformers' `generate`, llama.cpp; and with 8-bit
             weights for decoding, also compiled (`--compile`, which takes minutes more)
    turns    the 5th, 50th and 500th turn of one conversation: memory and a window, against the whole history in the
             prompt, with keys and values kept between turns and through `generate`
    sliding  tokens that a turn prefills around turn 50 and around turn 500, counted from where windows begin
    agents   1, 4, 8 and 16 agents at once: tokens a second of all, and each one's wait for its first token

Everything is on the same model, and in the same precision where nothing else is said. llama.cpp runs the .gguf (4 bits)
that the embedded model is a dense copy of. It is left out, with a line that says so, where its wheel (the extra
"benchmark") or that of the embedded model is not installed. Figures are medians of rounds in which the contestants
alternate.

The conversation is made up. A history of more than 4,096 tokens is fitted to that, newest messages first, so that the
whole history at turn 500 is an estimate from below. `--quick` is a smaller run, to see that it runs.

Each section is shown when it is done. `--out` writes what there is so far to a file, as JSON; with `--only`, sections
that the file has already stay in it, so a run that was stopped can go on. `--json` prints that JSON at the end instead
of tables. `--picture` draws it (needs the extra "plot"); with `--saved`, a file of an earlier run is shown and drawn,
and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from cost_picture import cost_picture
from cost_speakers import Engine, Generate, LlamaCpp, Said, Speaker

from deltamem_agents import DeltaMemEngine, FileStore, InMemoryStore, Message, Sampling
from deltamem_agents.loading import load_model
from deltamem_agents.loading.embedded import EMBEDDED_MODEL

MEMORY, OFF, GENERATE, LLAMA = "memory", "memory off", "transformers generate", "llama.cpp, 4 bits"
INT8, INT8_OFF, COMPILED = "memory, int8", "memory off, int8", "memory, int8, compiled"
WHOLE, WHOLE_GENERATE = "whole history, kept", "whole history, generate"
ASKED = "Tell me a long story about all you know of me, with every name in it."
TOLD = "My dog is called Biscuit, I live in Oslo, and my sister plays the cello in an orchestra."
PREFILLED = 512


@dataclass(frozen=True)
class Size:
    """How much is measured. `tokens`: of one reply; `tokens_each`: of each agent's, where many reply at once.
    `whole_tokens`: of the prompt with the whole history, at most.
    """

    rounds: int
    turns: tuple[int, ...]
    agents: tuple[int, ...]
    tokens: int
    tokens_each: int
    window_tokens: int
    whole_tokens: int
    around: int
    conversations: int


FULL = Size(5, (5, 50, 500), (1, 4, 8, 16), 48, 24, 2048, 4096, 60, 3)
QUICK = Size(1, (5, 50), (1, 4), 12, 12, 1024, 2048, 10, 1)


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one reply, and of a prompt of some hundred tokens."""

    who: str
    decode: float
    prefill: float


@dataclass(frozen=True)
class TurnCost:
    """One turn of a conversation. `stored_bytes`: what has to be on disk for it to go on; `stored_a_turn`: what a turn
    adds to that. `cache_bytes`: keys and values of its prompt. `fitted`: the history is longer than the context.
    """

    who: str
    turn: int
    prompt_tokens: int
    prefilled_tokens: float
    first_token_seconds: float
    tokens_a_second: float
    stored_bytes: int
    stored_a_turn: float
    cache_bytes: int
    fitted: bool


@dataclass(frozen=True)
class Sliding:
    """Means over turns around one: tokens of a prompt, tokens prefilled, and turns that begin where the last did."""

    turn: int
    prompt_tokens: float
    prefilled_tokens: float
    kept_share: float


@dataclass(frozen=True)
class Together:
    """So many agents at once: tokens a second of all together, median seconds to a first token."""

    who: str
    agents: int
    tokens_a_second: float
    first_token_seconds: float


@dataclass
class Bench:
    """What is opened once: the engine, one that puts all into its prompt, the bare model, engines that decode with
    8-bit weights, and llama.cpp.
    """

    engine: DeltaMemEngine
    whole: DeltaMemEngine
    generate: Generate
    int8: DeltaMemEngine
    compiled: DeltaMemEngine | None
    llama: LlamaCpp | None
    folder: Path
    size: Size

    @classmethod
    def opened(cls, model: str, dtype: str | None, size: Size, folder: Path, compiles: bool) -> Bench:
        store = FileStore(folder)

        def rounded(compile_decode: bool) -> DeltaMemEngine:
            return DeltaMemEngine.from_pretrained(
                model,
                store=InMemoryStore(),
                dtype=dtype,
                decode_weights="int8",
                window_tokens=size.window_tokens,
                compile_decode=compile_decode,
                progress=False,
            )

        engine = DeltaMemEngine.from_pretrained(
            model, store=store, dtype=dtype, window_tokens=size.window_tokens, progress=False
        )
        context = min(int(engine.model.config.max_position_embeddings), size.whole_tokens)
        whole = DeltaMemEngine.from_pretrained(
            model, store=InMemoryStore(), dtype=dtype, window_tokens=context, progress=False, kept_cache_bytes=2**31
        )
        bare = load_model(model, dtype=dtype, progress=False)
        generate = Generate(bare.model, bare.tokenizer, context - 64)
        llama = LlamaCpp.opened(model, generate, max(size.agents))
        return cls(engine, whole, generate, rounded(False), rounded(True) if compiles else None, llama, folder, size)

    @property
    def cache_bytes_a_token(self) -> int:
        config, width = self.engine.model.config, next(self.engine.model.parameters()).element_size()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * width)

    def stored(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def soloists(self) -> dict[str, Speaker]:
        found: dict[str, Speaker] = {
            MEMORY: Engine(self.engine, "told", {"memory": "readonly"}),
            OFF: Engine(self.engine, "not told", {"memory": "off"}),
            INT8: Engine(self.int8, "told", {"memory": "readonly"}),
            INT8_OFF: Engine(self.int8, "not told", {"memory": "off"}),
            GENERATE: self.generate,
        }
        if self.compiled is not None:
            found[COMPILED] = Engine(self.compiled, "told", {"memory": "readonly"})
        return found if self.llama is None else {**found, LLAMA: self.llama}

    @property
    def engines(self) -> list[DeltaMemEngine]:
        """Those that read a memory."""
        return [self.engine, self.int8, *([self.compiled] if self.compiled else [])]


def medians(rounds: Iterable[Mapping[str, Said]], figure: Callable[[Said], float]) -> dict[str, float]:
    each = list(rounds)
    return {who: statistics.median(figure(found[who]) for found in each) for who in each[0]}


def alternating(
    speakers: Mapping[str, Speaker], asked: Sequence[Message], tokens: int, rounds: int
) -> list[dict[str, Said]]:
    """One round more than is counted, as the first one warms up."""
    found = []
    for number in range(rounds + 1):
        named = list(speakers.items())
        order = named if number % 2 else named[::-1]
        found.append({who: speak(asked, tokens) for who, speak in order})
    return found[1:]


def speeds(bench: Bench) -> Iterator[Speed]:
    for engine in bench.engines:
        engine.run_turn("told", [Message("user", TOLD)], sampling=Sampling(max_tokens=1))
    speakers, rounds = bench.soloists(), bench.size.rounds
    said = alternating(speakers, [Message("user", ASKED)], bench.size.tokens, rounds)
    decode = medians(said, lambda reply: reply.rate)
    # Each round has a text of its own, so that nothing of it is kept.
    prefill: list[dict[str, Said]] = []
    for number in range(rounds + 1):
        days = range(PREFILLED // 14)
        long = " ".join(f"Day {number}, {day}: rain again, and bread for the neighbours." for day in days)
        # In front of a short question, as questions are matched with what the memory holds.
        messages = [Message("user", long), Message("assistant", "I see."), Message("user", "Is that all?")]
        prefill.append({who: speak(messages, 1) for who, speak in speakers.items()})
    rates = medians(prefill[1:], lambda reply: reply.prefilled_tokens / reply.first)
    yield from (Speed(who, decode[who], rates[who]) for who in speakers)


def history(turns: int, conversation: int = 0) -> list[Message]:
    """So many turns of a made-up conversation, some 60 tokens each."""
    said = [Message("system", "You are a friendly companion. Answer in a few words.")]
    for at in range(turns):
        met, paid = (at * 7 + conversation) % 101, at % 13
        told = f"On day {at} I walked along the harbour, met neighbour {met}, and bought bread for {paid} kroner."
        said.append(Message("user", told))
        said.append(Message("assistant", f"That was a good day {at}, with neighbour {met} and fresh bread."))
    return said


def asking(turn: int) -> Message:
    return Message("user", f"It is day {turn} today. {ASKED}")


def turn_costs(bench: Bench) -> Iterator[TurnCost]:
    for turn in bench.size.turns:
        yield from costs_of(bench, turn)


def costs_of(bench: Bench, turn: int) -> Iterator[TurnCost]:
    agent, size = f"turn {turn}", bench.size
    before, empty = history(turn - 1), bench.stored()
    bench.engine.absorb_into(agent, before, thread="t")
    stored = bench.stored() - empty
    speakers: dict[str, Speaker] = {
        MEMORY: Engine(bench.engine, agent, {"thread": "t"}),
        WHOLE: Engine(bench.whole, agent, {"thread": "t", "memory": "off"}),
        WHOLE_GENERATE: bench.generate,
    }
    messages, found, grown = list(before), list[dict[str, Said]](), bench.stored()
    for number in range(size.rounds + 1):
        messages.append(asking(turn + number))
        # The first round finds nothing kept, so it is not counted; `generate` keeps nothing in any.
        named = [who for who in speakers if number or who != WHOLE_GENERATE]
        order = named if number % 2 else named[::-1]
        found.append({who: speakers[who](messages, 16) for who in order})
        messages.append(Message("assistant", f"It was day {turn + number}, and there was bread."))
    counted = found[1:]
    a_turn = {who: (bench.stored() - grown) / (size.rounds + 1) for who in (MEMORY,)}
    text = len(json.dumps([asdict(message) for message in before]).encode())
    whole = bench.generate.encoded([{"role": m.role, "content": m.content} for m in messages])
    for who in speakers:
        last = counted[-1][who]
        yield TurnCost(
            who,
            turn,
            last.prompt_tokens,
            statistics.median(each[who].prefilled_tokens for each in counted),
            statistics.median(each[who].first for each in counted),
            statistics.median(each[who].rate for each in counted),
            stored if who == MEMORY else text,
            a_turn.get(who, text / turn),
            last.prompt_tokens * bench.cache_bytes_a_token,
            who != MEMORY and len(whole) > bench.generate.most,
        )


def sliding(bench: Bench) -> Iterator[Sliding]:
    """Counted from the prompts alone, with no model: what a turn shares with the one before is not prefilled."""
    prompts, size = bench.engine._prompts, bench.size
    for turn in size.turns[1:]:
        prompts_of, new, kept = list[int](), list[int](), list[bool]()
        for conversation in range(size.conversations):
            shown = [
                prompts.window([*history(at, conversation), asking(at)], (), 16, ()).prompt.ids
                for at in range(turn - size.around // 2, turn + size.around // 2 + 1)
            ]
            for before, now in pairwise(shown):
                prompts_of.append(len(now))
                new.append(len(now) - shared(before, now))
                kept.append(new[-1] < len(now) / 2)
        yield Sliding(turn, statistics.mean(prompts_of), statistics.mean(new), statistics.mean(kept))


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def asked_in(round_: int) -> list[Message]:
    """Another text in each round, so that nothing of it is kept."""
    return [Message("user", f"{round_}. {ASKED}")]


def at_once(speakers: Sequence[Speaker], round_: int, tokens: int) -> tuple[float, list[Said]]:
    """Seconds until all have said what they say, each in a thread of its own."""
    said: list[Said | None] = [None] * len(speakers)

    def one(number: int) -> None:
        said[number] = speakers[number](asked_in(round_), tokens)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(speakers))]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun, [each for each in said if each is not None]


def together(bench: Bench) -> Iterator[Together]:
    size = bench.size

    for engine in (bench.engine, bench.int8):
        for number in range(max(size.agents)):
            engine.run_turn(f"agent {number}", [Message("user", TOLD)], sampling=Sampling(max_tokens=1))
    arms = {agents: at_once_by(bench, agents) for agents in size.agents}
    rounds = []
    for number in range(size.rounds + 1):
        # All numbers of agents alternate too: a machine that others use is not equally fast for long.
        order = [(agents, who) for agents, each in arms.items() for who in each]
        rounds.append({(agents, who): arms[agents][who](number) for agents, who in order[:: 1 if number % 2 else -1]})
    for agents, each in arms.items():
        for who in each:
            # The first round warms up, and is not counted.
            measured = [one[agents, who] for one in rounds[1:]]
            rates = [sum(reply.tokens for reply in said) / seconds for seconds, said in measured]
            waits = [reply.first for _, said in measured for reply in said]
            yield Together(who, agents, statistics.median(rates), statistics.median(waits))


def at_once_by(bench: Bench, agents: int) -> dict[str, Callable[[int], tuple[float, list[Said]]]]:
    """Ways for so many agents to reply at once. Each takes the round's number, and returns seconds and replies."""

    def readers(engine: DeltaMemEngine) -> list[Speaker]:
        return [Engine(engine, f"agent {number}", {"memory": "readonly"}) for number in range(agents)]

    def tokens(round_: int) -> int:
        return bench.size.tokens_each if round_ else 2

    arms: dict[str, Callable[[int], tuple[float, list[Said]]]] = {
        MEMORY: lambda round_: at_once(readers(bench.engine), round_, tokens(round_)),
        INT8: lambda round_: at_once(readers(bench.int8), round_, tokens(round_)),
        GENERATE: lambda round_: in_a_batch(bench.generate, agents, round_, tokens(round_)),
    }
    if (llama := bench.llama) is not None:
        arms[LLAMA] = lambda round_: at_once([llama] * agents, round_, tokens(round_))
    return arms


def in_a_batch(generate: Generate, count: int, round_: int, tokens: int) -> tuple[float, list[Said]]:
    begun = time.perf_counter()
    said = generate.batch([asked_in(round_)] * count, tokens)
    return time.perf_counter() - begun, said


SECTIONS: Mapping[str, tuple[type[Any], Callable[[Bench], Iterator[Any]]]] = {
    "speed": (Speed, speeds),
    "turns": (TurnCost, turn_costs),
    "sliding": (Sliding, sliding),
    "agents": (Together, together),
}


def ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Of the sections that there are."""
    speed, turns, slid, agents = ([kind(**row) for row in result.get(name, ())] for name, (kind, _) in SECTIONS.items())
    found: dict[str, float] = {}
    by_name = {each.who: each for each in speed}
    for one, other in ((MEMORY, OFF), (MEMORY, GENERATE), (INT8, INT8_OFF), (INT8, MEMORY), (COMPILED, MEMORY)):
        if one in by_name and other in by_name:
            found[f"decode, {one} / {other}"] = by_name[one].decode / by_name[other].decode
    for other in [name for name in (OFF, GENERATE, LLAMA) if name in by_name]:
        found[f"prefill, memory / {other}"] = by_name[MEMORY].prefill / by_name[other].prefill
    for one in [name for name in (MEMORY, INT8, COMPILED) if name in by_name and LLAMA in by_name]:
        found[f"decode, {one} / {LLAMA}"] = by_name[one].decode / by_name[LLAMA].decode
    at = {(each.who, each.turn): each for each in turns}
    for turn in dict.fromkeys(each.turn for each in turns):
        for who in (WHOLE, WHOLE_GENERATE):
            mine, other = at[MEMORY, turn], at[who, turn]
            found[f"turn {turn}, first token, memory / {who}"] = mine.first_token_seconds / other.first_token_seconds
            found[f"turn {turn}, keys and values, memory / {who}"] = mine.cache_bytes / other.cache_bytes
    if len(slid) > 1:
        found[f"prefilled tokens, turn {slid[-1].turn} / turn {slid[0].turn}"] = (
            slid[-1].prefilled_tokens / slid[0].prefilled_tokens
        )
    rate = {(each.who, each.agents): each.tokens_a_second for each in agents}
    for who, count in rate:
        if count > 1:
            found[f"{count} agents / one, {who}"] = rate[who, count] / rate[who, 1]
    return found


def machine(engine: DeltaMemEngine) -> dict[str, object]:
    """What the figures stand on. `load`: of the machine; where it is above `threads`, others used it too."""
    return {
        "model": engine.model_name,
        "dtype": str(next(engine.model.parameters()).dtype).removeprefix("torch."),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def measured(bench: Bench, chosen: Sequence[str], earlier: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section's name as it is done, and everything so far. `earlier`: sections that are kept till then."""
    rows = {name: earlier.get(name, []) for name in SECTIONS}
    for name in chosen:
        begun = time.perf_counter()
        rows[name] = [asdict(row) for row in SECTIONS[name][1](bench)]
        about = {
            "machine": machine(bench.engine),
            "rounds": bench.size.rounds,
            "window_tokens": bench.size.window_tokens,
            "whole_tokens": bench.size.whole_tokens,
        }
        seconds = {**earlier.get("seconds", {}), name: round(time.perf_counter() - begun)}
        earlier = {**earlier, "seconds": seconds}
        yield name, {**about, "ratios": ratios(rows), "seconds": seconds, **rows}


def earlier_sections(file: Path | None, size: Size) -> dict[str, Any]:
    """What a file of an earlier run holds; nothing where there is none. Refuses one that was measured otherwise."""
    if file is None or not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text())
    mine, its = (size.rounds, size.window_tokens), (found.get("rounds"), found.get("window_tokens"))
    if mine != its:
        raise SystemExit(f"{file} holds (rounds, window) = {its}, this run would measure {mine}; name another --out")
    return found


def show(result: Mapping[str, Any], sections: Iterable[str] = tuple(SECTIONS)) -> None:
    about = result["machine"]
    cores = f"{about['threads']} of {about['cores']} cores, load {about['load']}"
    print(f"\n{about['model']}, {about['dtype']}, {cores}, window {result['window_tokens']}, rounds {result['rounds']}")
    for section in sections:
        rows = result[section]
        if rows:
            print(f"\n{section}")
            print("  " + "  ".join(f"{name:>{_width(rows, name)}}" for name in rows[0]))
            for row in rows:
                print("  " + "  ".join(f"{_shown(value):>{_width(rows, name)}}" for name, value in row.items()))
    print("\nratios")
    for name, value in ratios({section: result[section] for section in sections}).items():
        print(f"  {value:>8.2f}  {name}", flush=True)


def _width(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return max(len(name), *(len(_shown(row[name])) for row in rows))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--dtype", default=None, help="of the base model; what the engine takes where nothing is said")
    parser.add_argument("--threads", type=int, default=None, help="torch's; what torch takes where nothing is said")
    parser.add_argument("--compile", action="store_true", help="also decode with a compiled step")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=None)
    parser.add_argument("--quick", action="store_true", help="few rounds of little, to see that it runs")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="one JSON value instead of tables")
    parser.add_argument("--out", type=Path, help="a file for the JSON value, written after each section")
    parser.add_argument("--saved", type=Path, help="a file that --out wrote, shown and drawn instead of measuring")
    parser.add_argument("--picture", type=Path, help="a picture's file: .png, .svg or .pdf")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.saved is None:
        result = run(arguments)
    else:
        result = json.loads(arguments.saved.read_text())
        if not arguments.json:
            show(result)
    if arguments.picture:
        cost_picture(result, arguments.picture)
    if arguments.json:
        print(json.dumps(result))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    size = QUICK if arguments.quick else FULL
    size = replace(size, rounds=arguments.rounds or size.rounds)
    earlier = earlier_sections(arguments.out, size) if arguments.only else {}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.opened(arguments.model, arguments.dtype, size, Path(folder), arguments.compile)
        for name, result in measured(bench, arguments.only or list(SECTIONS), earlier):
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            if not arguments.json:
                show(result, [name])
        for engine in (*bench.engines, bench.whole):
            engine.close()
    return result


if __name__ == "__main__":
    main()
