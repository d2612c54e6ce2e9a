"""How the memory changed a reply. The reply is run again twice, with the memory and without it, and compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from deltamem_agents.inference.passes import REPLY, Pass, Prompt
from deltamem_agents.inference.reply_text import spelled
from deltamem_agents.turns.recalling import pointing
from deltamem_agents.turns.running import Outcome, TurnRequest, TurnRunner
from deltamem_agents.types import ExplainedToken, Explanation


def explain(runner: TurnRunner, request: TurnRequest) -> Explanation:
    """Runs a turn and compares each token of the reply with the frozen model's prediction."""
    outcome, turn = runner.whole(request)
    ids, tokenizer = outcome.reply.ids, runner.speaker.tokenizer
    shown = runner.window(request, (), start=outcome.window.start)
    frozen = _said(runner.speaker.begin(None), shown.prompt, ids, writes=False)
    tokens = []
    remembering = _with_memory(runner, request, outcome)
    for text, with_memory, without in zip(_pieces(runner, outcome), remembering, frozen, strict=True):
        p, q = with_memory.log_softmax(-1), without.log_softmax(-1)
        choice = int(without.argmax())
        tokens.append(
            ExplainedToken(
                text,
                max(0.0, float((p.exp() * (p - q)).sum())),
                str(tokenizer.decode([choice])),
                choice != int(with_memory.argmax()),
            )
        )
    return Explanation(turn, tuple(tokens))


def _pieces(runner: TurnRunner, outcome: Outcome) -> list[str]:
    """The text of each of the reply's tokens. The last piece includes any incomplete characters."""
    pieces = spelled(runner.speaker.tokenizer, outcome.reply.ids)
    return [*pieces[:-1], pieces[-1] + outcome.reply.text[len("".join(pieces)) :]] if pieces else []


def _with_memory(runner: TurnRunner, request: TurnRequest, outcome: Outcome) -> Iterator[Tensor]:
    """The logits for each of the reply's tokens, as they were in the turn."""
    speaker, recollection, plan = runner.speaker, outcome.recollection, outcome.plan
    reads_all = recollection is None or request.recall.read == "all"
    read = None if plan is None else plan.memory.base if recollection is None else recollection.state
    run = speaker.begin(read, applies=reads_all)
    if outcome.window.absorbed:
        deque(speaker.absorbing(run, request.messages, outcome.window.absorbed), maxlen=0)
    if recollection is not None:
        run.pointing = pointing(runner.pointer, recollection, speaker.spelling)
    return _said(run, outcome.window.prompt, outcome.reply.ids, writes=runner.writes_reply(request))


def _said(run: Pass, prompt: Prompt, ids: tuple[int, ...], *, writes: bool) -> Iterator[Tensor]:
    """The logits (vocabulary,) from which each of these tokens is sampled after the prompt."""
    if run.state is not None:
        run.state = run.state.settled()
    said = prompt
    for token in ids:
        yield run.feed(said)
        said = Prompt((token,), (True,), (writes,), (REPLY,), (True,))
