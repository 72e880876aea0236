"""How good the features are: always on uncompressed tokens, every figure with its protocol."""
