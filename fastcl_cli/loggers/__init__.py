"""Other places that a run's figures go to. They listen to the same events as the screen, and what
they write is read from no more: ``metrics.jsonl`` stays the source of truth."""
