"""Programs: a dense network compiled for a runtime, each behind the same call. One file a runtime; see ``program``."""
