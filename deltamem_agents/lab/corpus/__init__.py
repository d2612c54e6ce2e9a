"""What can be told and asked, for training and evaluation alike: word lists, splits and generated episodes."""
