"""The command ``trivium``: ``arguments`` defines the arguments, ``main`` dispatches, each command has its own file."""

from shared.cli.main import main

__all__ = ["main"]
