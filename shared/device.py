"""The choice of the device to compute on, and transfers to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def choose_device(requested: str | None) -> str:
    """Returns ``cpu`` or ``cuda``. For None and ``auto`` this is ``cuda`` if there is a GPU.

    Raises ``InvalidInputError`` for ``cuda`` if there is no GPU.
    """
    if requested == "cpu" or (requested != "cuda" and "torch" not in sys.modules and not _has_driver()):
        return "cpu"
    import torch

    if requested == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("torch finds no usable GPU on this machine; omit --device, or use --device cpu")
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the host to ``device``; to a GPU from pinned memory, so that the host does not wait."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _has_driver() -> bool:
    """Whether there may be a GPU. If not, torch need not be imported, which takes longer than a small forecast."""
    if not sys.platform.startswith("linux"):
        return True
    nodes = ("nvidia*", "nvhost*", "kfd", "dxg")  # NVIDIA's driver, its Tegra boards, AMD's driver, WSL's driver
    return any(next(Path("/dev").glob(name), None) is not None for name in nodes)
