"""`deltamem chat`: talk to one agent."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.options import DEFAULT_MODEL, AdapterDir, Device, Json, Model, StoreUrl, open_engine
from deltamem_agents.cli.screen import emit, marked, nbytes, plural, print_error, printable, short, stderr, stdout
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.types import ExplainedToken, MemoryMode, Message, Sampling, Turn, TurnOptions

if TYPE_CHECKING:
    from rich.console import Console

    from deltamem_agents.engine import DeltaMemEngine

COMMANDS = "/memory shows what is remembered, /forget erases it, /quit ends the chat"


def chat(
    agent: Annotated[
        str, typer.Option("--agent", metavar="NAME", help="The agent whose memory is used; created on its first turn.")
    ],
    model: Model = DEFAULT_MODEL,
    adapter: AdapterDir = None,
    store: StoreUrl = None,
    thread: Annotated[
        str | None, typer.Option("--thread", metavar="NAME", help="The conversation, if the agent has several.")
    ] = None,
    memory: Annotated[
        MemoryMode,
        typer.Option(
            "--memory", metavar="MODE", help="readwrite, readonly (nothing is saved) or off (the base model)."
        ),
    ] = "readwrite",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Maximum length of a reply.")
    ] = 256,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", min=0, help="0 is greedy.")] = 0.0,
    device: Device = "cpu",
    once: Annotated[str | None, typer.Option("--once", metavar="TEXT", help="Answer one message and exit.")] = None,
    why: Annotated[
        bool,
        typer.Option("--why", help="Show which statements each reply rests on, and which words the memory changed."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Talk to an agent that remembers across runs.

    Each turn is saved when its reply is complete. Ctrl-C during a reply cancels the turn and changes nothing.
    Sending the last message again is a retry: the new reply replaces the old one in the memory.
    In the chat, /memory shows what is remembered, /forget erases it and /quit ends it.

    With --once the reply goes to stdout and the facts of the turn to stderr. JSON (with --once only): {"text",
    "finish_reason", "snapshot", "usage": {"prompt_tokens", "completion_tokens", "absorbed_tokens", "cached_tokens"},
    "facts": {"alignment", "tokens_read", "tokens_written", "state_bytes", "state_norm", "recalled", …}}, and with --why
    "why": [{"text", "kl", "frozen", "changed"}], one for each token of the reply.

    With --why, a reply is shown only when it is complete, and takes about twice as long.

    Example: deltamem chat --agent ada --once "My dog is called Biscuit."
    """
    if as_json and once is None:
        raise typer.BadParameter("--json needs --once", param_hint="--json")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    engine = open_engine(model, adapter, store, device)
    talk = _Talk(engine, agent, thread, memory, sampling, why)
    try:
        if once is None:
            talk.interactive()
        elif as_json:
            turn = talk.answer(once, shown=False)
            tokens = {"why": [asdict(token) for token in talk.explained]} if why else {}
            emit({**_turn_facts(turn), **tokens})
        else:
            turn = talk.answer(once)
            talk.print_facts(stderr(), turn)
    finally:
        engine.close()


@dataclass
class _Talk:
    """One process's conversation with one agent. `history` holds its completed turns."""

    engine: DeltaMemEngine
    agent: str
    thread: str | None
    memory: MemoryMode
    sampling: Sampling
    why: bool = False
    explained: tuple[ExplainedToken, ...] = ()
    history: list[Message] = field(default_factory=list)

    def answer(self, text: str, shown: bool = True) -> Turn:
        """Runs one turn and prints its reply as it is generated. An unfinished turn changes nothing."""
        message = Message("user", text)
        said = [*self.history, message]
        options: TurnOptions = {"thread": self.thread, "sampling": self.sampling, "memory": self.memory}
        if self.why:
            explanation = self.engine.explain(self.agent, said, **options)
            turn, self.explained = explanation.turn, explanation.tokens
            if shown:
                _write(turn.text)
        else:
            turn = self._streamed(said, options, shown)
        if shown:
            _write("\n")
        self.history += [message, turn.message]
        return turn

    def _streamed(self, said: list[Message], options: TurnOptions, shown: bool) -> Turn:
        turn = None
        with closing(self.engine.stream_turn(self.agent, said, **options)) as chunks:
            for chunk in chunks:
                if shown:
                    _write(chunk.text)
                turn = chunk.turn
        assert turn is not None
        return turn

    def print_facts(self, console: Console, turn: Turn) -> None:
        """Prints what the memory did in a turn."""
        if self.why:
            for each in turn.facts.recalled:
                told = f"{printable(each.text)} ({each.role}, {short(each.id)}, score {each.score:.2f})"
                console.print(f"rests on {told}", style="dim", soft_wrap=True)
            if not turn.facts.recalled:
                console.print("rests on no single statement", style="dim")
            changed = [(token.text, token.changed) for token in self.explained]
            if any(each for _, each in changed):
                console.print("changed by the memory: ", marked(changed), style="dim", soft_wrap=True)
            else:
                console.print("changed by the memory: nothing", style="dim")
        console.print(_facts_line(turn), style="dim")

    def interactive(self) -> None:
        """Answers line by line, until /quit or the end of the input."""
        with suppress(ImportError):
            # Adds line editing and history to input(), where available.
            import readline  # noqa: F401
        console = stdout()
        console.print(
            f"{printable(self.agent)} with {self.engine.model_name}, memory {self.memory}. {COMMANDS}.", style="dim"
        )
        while (text := _next_line()) is not None:
            try:
                if text.startswith("/"):
                    if text == "/quit":
                        return
                    self._command(text)
                elif text:
                    self.print_facts(console, self.answer(text))
            except KeyboardInterrupt:
                console.print("\ncancelled; the memory was not changed", style="dim")
            except DeltaMemError as error:
                print_error(str(error))

    def _command(self, text: str) -> None:
        store = self.engine.store
        if text == "/memory":
            stdout().print(self._remembered())
        elif text == "/forget":
            if typer.confirm(f"Erase all that {printable(self.agent)} remembers, for good?"):
                receipt = store.forget(self.agent)
                self.history.clear()
                stdout().print(f"forgot {plural(len(receipt.removed), 'snapshot')}, {nbytes(receipt.nbytes)}")
        else:
            print_error(f"{text} is unknown; {COMMANDS}")

    def _remembered(self) -> str:
        if self.engine.store.head(self.agent) is None:
            return f"{printable(self.agent)} remembers nothing yet"
        entry = self.engine.store.load(self.agent)
        snapshot = entry.snapshot
        absorbed = ", ".join(plural(count, name[:-1]) for name, count in asdict(snapshot.counters).items())
        return (
            f"snapshot {short(entry.id)}: {absorbed} in {nbytes(snapshot.state.nbytes)} of state, "
            f"‖S‖ {snapshot.state.norm():.3f}"
        )


def _next_line() -> str | None:
    """The user's next line; None at the end of the input or on Ctrl-C."""
    try:
        return input("› " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _write(text: str) -> None:
    sys.stdout.write(printable(text, keep="\n\t"))
    sys.stdout.flush()


def _facts_line(turn: Turn) -> str:
    facts = turn.facts
    parts = [f"prompt {plural(turn.usage.prompt_tokens, 'token')}"]
    if turn.usage.absorbed_tokens:
        parts.append(f"absorbed {plural(turn.usage.absorbed_tokens, 'older token')}")
    if facts.memory == "off":
        return " · ".join([*parts, "memory off"])
    parts += [f"wrote {plural(facts.tokens_written, 'token')}", f"state {nbytes(facts.state_bytes)}"]
    return " · ".join([*parts, f"snapshot {short(turn.snapshot)}" if turn.snapshot else "nothing saved"])


def _turn_facts(turn: Turn) -> dict[str, object]:
    return {
        "text": turn.text,
        "finish_reason": turn.finish_reason,
        "snapshot": turn.snapshot,
        "usage": asdict(turn.usage),
        "facts": asdict(turn.facts),
    }
