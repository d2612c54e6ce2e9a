"""Small talk: filler exchanges without facts to remember. Training and evaluation have different ones.

Each is a user's message and a short reply. Random slot values make exact repetitions rare.
"""

from __future__ import annotations

import random

from deltamem_agents.lab.corpus.tables import corpus_table


def small_talk(rng: random.Random, *, held_out: bool = False) -> tuple[str, str]:
    """One (user, assistant) exchange that states no fact about the user."""
    user, reply = rng.choice(corpus_table("small_talk", held_out=held_out)["pairs"])
    slots = corpus_table("small_talk")["slots"]
    fill = {name: rng.choice(values) for name, values in slots.items()}
    fill |= {f"{name}2": rng.choice(values) for name, values in slots.items()}
    fill["sum"] = str(int(fill["n"]) + int(fill["n2"]))
    fill["difference"] = str(int(fill["n"]) - int(fill["n2"]))
    fill["half"] = f"{int(fill['n']) / 2:g}"
    fill["double"] = str(2 * int(fill["n"]))
    fill["minutes"] = str(60 * int(fill["n"]))
    return user.format(**fill), reply.format(**fill)
