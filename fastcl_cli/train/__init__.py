"""The trainer: views, loss, backward, update, average; and what surrounds it."""
