"""How wrong the gradients of compressed batches are, and what that is worth."""
