"""Writing messages into an agent's memory without asking for a reply."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_agents.engine import COMMIT_ATTEMPTS, DeltaMemEngine
from deltamem_agents.errors import StaleHead
from deltamem_agents.planning import DEFAULT_THREAD, plan_absorption
from deltamem_agents.types import MessageLike, as_messages


def absorb_into(
    engine: DeltaMemEngine, agent: str, messages: Sequence[MessageLike], *, thread: str | None = None
) -> str | None:
    """Write what the agent's thread has not absorbed of `messages`, which leave a client's window. One commit.

    Returns the id of the new snapshot, None where nothing was new. Raises MessageError, ForeignSnapshot,
    InvalidAgentId, StoreError or DamagedSnapshot, and then nothing was changed.
    """
    spoken = as_messages(messages)
    for _ in range(COMMIT_ATTEMPTS):
        plan = plan_absorption(
            engine.store,
            agent,
            thread,
            spoken,
            empty=engine.new_state(),
            fingerprint=engine.fingerprint,
            policy=engine.policy,
        )
        new = [spoken[position] for position in plan.new]
        if not new:
            return None
        name = DEFAULT_THREAD if thread is None else thread
        state, tokens = engine.absorb(plan.state, new), engine.count_tokens(new)
        try:
            snapshot = plan.commit(state, engine.fingerprint, name, None, tokens, "absorb")
            return engine.store.save(agent, snapshot, expected=plan.head)
        except StaleHead:
            continue
    raise StaleHead(
        f"agent {agent!r} was written by others during each of {COMMIT_ATTEMPTS} attempts; "
        "nothing was absorbed; try again"
    )
