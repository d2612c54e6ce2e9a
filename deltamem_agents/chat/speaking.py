"""Where in a prompt the model speaks."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_agents.types import Message


def replies(owner: Sequence[int], messages: Sequence[Message], *, prompted: bool) -> tuple[bool, ...]:
    """For each token, whether a token of an assistant's message is predicted from it, or what ends one.

    `owner`: the message whose content each token is, −1 for scaffolding. `prompted`: the last token is where the
    next reply begins.
    """
    said = [place >= 0 and messages[place].role == "assistant" for place in owner]
    return tuple(here or after for here, after in zip(said, [*said[1:], prompted], strict=False))
