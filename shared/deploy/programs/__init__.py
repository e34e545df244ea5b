"""Programs: a dense network compiled for a runtime, all called the same way. One file per runtime; see ``program``."""
