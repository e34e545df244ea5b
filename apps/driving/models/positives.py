"""Counts a batch's positive anchors or points before the network computes it.

The weight of a detector's losses depends only on the matching. mmdet3d's head therefore computes its losses for
all-zero outputs, whose shapes come from a copy of the network on the meta device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class PositiveCounter:
    """Counts for an mmdet3d detector with backbone, neck and one head that passes its divisor to ``loss_cls``."""

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
        """The divisor of ``loss_cls``, by the name of each loss, for an input of ``shape`` (B, C, H, W)."""
        zeros = _zeros_like(self._outputs(tuple(shape)), device)
        self._head.forward = lambda *_: zeros
        with torch.no_grad(), recorded_divisors(self._head) as divisors:
            losses = self._head.loss([torch.empty(0, device=device)], list(data_samples))
        return {name: divisors[0] for name in losses if "loss" in name}


class recorded_divisors:  # noqa: N801 - used as a function, in a with statement
    """Records the divisor of each call to the head's ``loss_cls`` in a list, within the context."""

    def __init__(self, head: Any) -> None:
        self._head, self._divisors = head, list[float]()

    def __enter__(self) -> list[float]:
        def record(_: nn.Module, __: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            self._divisors.append(float(options["avg_factor"]))

        self._hook = self._head.loss_cls.register_forward_pre_hook(record, with_kwargs=True)
        return self._divisors

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _zeros_like(outputs: Any, device: torch.device) -> Any:
    if isinstance(outputs, Tensor):
        return torch.zeros(outputs.shape, device=device)
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_zeros_like(item, device) for item in outputs)
    return outputs
