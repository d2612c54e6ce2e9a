"""Search in an agent's memory, for the frameworks' retrievers."""

from __future__ import annotations

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.snapshots import Statement


def remembered(engine: DeltaMemEngine, agent: str | None, query: str, limit: int) -> list[tuple[Statement, float]]:
    """The statements with a text that match a query, with scores, best first. Empty without an agent or a memory."""
    if not agent or engine.store.head(agent) is None:
        return []
    return [(each, score) for each, score in engine.search_statements(agent, query, limit=limit) if each.text]
