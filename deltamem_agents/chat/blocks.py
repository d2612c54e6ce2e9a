"""Where a window begins that has slid past messages: at one that stays for many turns, found in the messages alone.

A prompt whose first message changes has to be computed anew from there on. So the window does not drop one message
each turn, but many now and then: it begins at the message whose digest is smallest among those at the front of what
fits. As turns go by, new candidates come in at one end and old ones leave at the other, and the smallest stays where it
is until it leaves or a smaller one comes in, which is about every half of the front. No state is needed, and a client
that cuts its history short itself finds the same message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from deltamem_agents.chat.history import digest
from deltamem_agents.types import Message

FRONT = 0.5
"""The part of what fits of the past that may be left out, by tokens.

With less, more is shown and the window moves more often: a turn prefills about 2 / FRONT − 1 times what is new in it.
"""


def steady_start(messages: Sequence[Message], starts: Sequence[int], places: Sequence[int]) -> int:
    """One of `starts`, positions of messages that a window may begin at, ascending: the first is the oldest that fits.

    `places`: where in that widest prompt each of them begins, in tokens. What is asked, the last user message and what
    follows, is not left out, nor more than the front of what comes before it.
    """
    asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=len(messages))
    past = next((place for at, place in zip(starts, places, strict=True) if at >= asked), places[-1])
    if starts[0] > asked:
        past = places[-1]
    most = places[0] + FRONT * (past - places[0])
    able = [at for at, place in zip(starts, places, strict=True) if place <= most]
    return min(able, key=lambda at: (_mark(messages, at), at))


def _mark(messages: Sequence[Message], at: int) -> str:
    """What a message is ordered by. With the one before it, as many a reply is said more than once."""
    before = digest(messages[at - 1]) if at else ""
    return hashlib.sha256(f"{before}\n{digest(messages[at])}".encode()).hexdigest()
