"""The applications. Each is found by the entry-point group ``trivium.apps``, and none imports another."""
