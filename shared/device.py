"""Where to compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def choose_device(asked: str | None) -> str:
    """``cpu`` or ``cuda``: what is ``asked``; of None and ``auto`` ``cuda`` where there is a GPU.

    Refuses ``cuda`` where there is none.
    """
    if asked == "cpu" or (asked != "cuda" and "torch" not in sys.modules and not _has_driver()):
        return "cpu"
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    return "cuda" if torch.cuda.is_available() else "cpu"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``; to a GPU from page-locked memory, so that the host does not wait."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _has_driver() -> bool:
    """Whether there may be a GPU, so that torch is worth asking: importing it takes longer than a small forecast."""
    if not sys.platform.startswith("linux"):
        return True
    nodes = ("nvidia*", "nvhost*", "kfd", "dxg")  # NVIDIA's driver, its boards for vehicles, AMD's, Windows' for Linux
    return any(next(Path("/dev").glob(name), None) is not None for name in nodes)
