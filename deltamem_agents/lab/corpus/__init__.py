"""Facts and questions for training and evaluation: word lists, splits, and generated conversations (episodes)."""
