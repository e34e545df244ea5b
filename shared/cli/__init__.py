"""The command ``trivium``: ``arguments`` is what it can be told, ``main`` dispatches, one file is one command."""

from shared.cli.main import main

__all__ = ["main"]
