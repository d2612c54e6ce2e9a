"""Finds the tokens of a prompt that predict a reply, and those before the memory is used."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_agents.types import Message


def replies(owner: Sequence[int], messages: Sequence[Message], *, prompted: bool) -> tuple[bool, ...]:
    """For each token, whether it predicts a token of an assistant message, or the end of one.

    `owner`: index of the message that each token's content belongs to, −1 for the template's own text. `prompted`:
    whether the next reply begins or continues after the last token. Then earlier replies are history and do not count,
    so that their activations do not depend on what this reply reads.
    """
    spoken = range(len(messages) - 1 if prompted else 0, len(messages))
    said = [place in spoken and messages[place].role == "assistant" for place in owner]
    return tuple(here or after for here, after in zip(said, [*said[1:], prompted], strict=False))


def lead_length(owner: Sequence[int], messages: Sequence[Message]) -> int:
    """Number of leading tokens of a prompt that neither read nor write the memory, so they are equal for every memory.

    They end one token before the first content that is not of a system message. That token is left out because it
    shifts the content's first key, as the token before any later content does.
    """
    spoken = {index for index, message in enumerate(messages) if message.role != "system"}
    return max(0, next((place for place, index in enumerate(owner) if index in spoken), len(owner)) - 1)
