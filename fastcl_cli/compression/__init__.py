"""Sequence compression: fewer tokens per image, by dropping tokens and by larger patches."""
