"""Training and evaluation of adapters: corpus, training, evaluation and pictures. Needs the extra "lab"."""
