"""Training of adapters: recipes, cached activations, warm start, replay, loss and run folders.

Words used throughout this package:

- telling: an exchange in which a fact is stated. Its told tokens are the tokens of the fact's value.
- aside: an exchange that states no fact (filler).
- lead: the system part that all prompts begin with.
- episode: a generated conversation with questions about the facts it states.
- compose: concatenate exchanges, each run through the frozen model alone, into one conversation (see `composing.py`).
- replay: train on composed conversations from cached activations; only replies run through the model.
- rehearsal: fit the memory's projections on cached activations, without running the model.
- probe: a linear readout of the state, trained beside the adapter and never saved with it.
"""
