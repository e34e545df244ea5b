"""Where to compute."""

from __future__ import annotations

from shared.errors import InvalidInputError


def choose_device(asked: str | None) -> str:
    """``asked``, or ``cuda`` where there is a GPU, else ``cpu``; refuses ``cuda`` where there is none."""
    if asked == "cpu":
        return asked
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")
