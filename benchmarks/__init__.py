"""One script for each claim: runs the peer and ours in one process, on the same weights and input."""
