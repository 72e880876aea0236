"""Several processes that train one model: started, joined, and ended together."""
