"""What makes and judges adapters: corpus, training, evaluation and pictures. Needs the extra "lab"."""
