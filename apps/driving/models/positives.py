"""How many anchors or points of a batch are positive, before the network has seen it.

The weight of a detector's losses follows from the matching alone: mmdet3d's head is asked for its losses of outputs
that are all zero, in the shapes that the network would give, which a copy without memory for its weights tells.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class PositiveCounter:
    """Counts for a detector of mmdet3d with backbone, neck and one head whose ``loss_cls`` is told its divisor."""

    def __init__(self, detector: Any) -> None:
        self._head: Any = copy.deepcopy(detector.bbox_head)
        shapes_only: Any = copy.deepcopy(detector).to("meta")

        @cache
        def outputs(shape: tuple[int, ...]) -> Any:
            image = torch.empty(shape, device="meta")
            with torch.no_grad():
                return shapes_only.bbox_head(shapes_only.neck(shapes_only.backbone(image)))

        self._outputs = outputs

    def __call__(self, shape: Sequence[int], data_samples: Sequence[Any], device: torch.device) -> dict[str, float]:
        """By the name of each loss what ``loss_cls`` is divided by, for an input of ``shape`` (B, C, H, W)."""
        zeros = _zeros_like(self._outputs(tuple(shape)), device)
        self._head.forward = lambda *_: zeros
        with torch.no_grad(), divisor_of(self._head) as divisors:
            found = self._head.loss([torch.empty(0, device=device)], list(data_samples))
        return {name: divisors[0] for name in found if "loss" in name}


class divisor_of:  # noqa: N801 - used as a function, in a with statement
    """A list of what the head's ``loss_cls`` is told to divide by, call by call."""

    def __init__(self, head: Any) -> None:
        self._head, self._found = head, list[float]()

    def __enter__(self) -> list[float]:
        def note(_: nn.Module, __: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            self._found.append(float(options["avg_factor"]))

        self._hook = self._head.loss_cls.register_forward_pre_hook(note, with_kwargs=True)
        return self._found

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _zeros_like(outputs: Any, device: torch.device) -> Any:
    if isinstance(outputs, Tensor):
        return torch.zeros(outputs.shape, device=device)
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_zeros_like(item, device) for item in outputs)
    return outputs
