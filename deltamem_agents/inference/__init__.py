"""Running the model: prompts, decoding, batches."""
