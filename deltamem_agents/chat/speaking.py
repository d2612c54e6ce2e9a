"""Where in a prompt the memory begins to take part, and where the model speaks."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_agents.types import Message


def replies(owner: Sequence[int], messages: Sequence[Message], *, prompted: bool) -> tuple[bool, ...]:
    """For each token, whether a token of an assistant's message is predicted from it, or what ends one.

    `owner`: the message whose content each token is, −1 for scaffolding. `prompted`: the last token is where the
    next reply begins, or goes on; the replies before it are history and do not count, so that what they make of the
    model does not depend on what this reply reads.
    """
    spoken = range(len(messages) - 1 if prompted else 0, len(messages))
    said = [place in spoken and messages[place].role == "assistant" for place in owner]
    return tuple(here or after for here, after in zip(said, [*said[1:], prompted], strict=False))


def lead_length(owner: Sequence[int], messages: Sequence[Message]) -> int:
    """How many tokens of a prompt have no part in the memory, being the same for every memory.

    They end one token before the first content that is not a system message's. That token shifts the content's first
    key, as the one before any later content does.
    """
    spoken = {index for index, message in enumerate(messages) if message.role != "system"}
    return max(0, next((place for place, index in enumerate(owner) if index in spoken), len(owner)) - 1)
