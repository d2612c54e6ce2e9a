"""Chooses the first message of a sliding window, so that the same message stays the first one for many turns.

If the first message changes, the rest of the prompt has to be computed again. So the window does not drop one message
each turn, but many messages now and then. Its candidates are the messages in the first part ("front") of what fits. The
candidate with the smallest digest is chosen. From turn to turn old candidates leave and new ones join. The smallest
digest stays until its message leaves or a smaller one joins, which is about every half of the front. The choice depends
on the messages alone, so a client that trims its history itself gets the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from deltamem_agents.chat.history import digest
from deltamem_agents.types import Message

FRONT = 0.5
"""Share of the fitting past's tokens that may be left out.

With a smaller share, more is shown and the window moves more often: a turn prefills about 2 / FRONT − 1 times its new
tokens.
"""


def steady_start(messages: Sequence[Message], starts: Sequence[int], places: Sequence[int]) -> int:
    """The position of the window's first message, chosen from `starts`.

    `starts`: positions of messages at which a window may begin, ascending. The first is the oldest that fits.
    `places`: the token at which each of them begins in the widest prompt. The last user message and the messages after
    it are never left out. Of the messages before it, at most the front is left out.
    """
    asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=len(messages))
    past = next((place for at, place in zip(starts, places, strict=True) if at >= asked), places[-1])
    if starts[0] > asked:
        past = places[-1]
    most = places[0] + FRONT * (past - places[0])
    able = [at for at, place in zip(starts, places, strict=True) if place <= most]
    return min(able, key=lambda at: (_mark(messages, at), at))


def _mark(messages: Sequence[Message], at: int) -> str:
    """The digest that orders messages. It includes the message before, because the same reply may occur twice."""
    before = digest(messages[at - 1]) if at else ""
    return hashlib.sha256(f"{before}\n{digest(messages[at])}".encode()).hexdigest()
