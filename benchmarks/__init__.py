"""One script a claim: the peer's own way and ours in one process, on the same weights and input."""
