"""Where to compute."""

from __future__ import annotations

from shared.errors import InvalidInputError


def choose_device(asked: str | None) -> str:
    """``cpu`` or ``cuda``: what is ``asked``; of None and ``auto`` ``cuda`` where there is a GPU.

    Refuses ``cuda`` where there is none.
    """
    if asked == "cpu":
        return asked
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    return "cuda" if torch.cuda.is_available() else "cpu"
