"""A detector's marks on their way to the host: joined, those that overlap better ones left out, fetched.

On a GPU nothing is read before they are fetched, so that the host launches what comes next while the GPU computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from apps.medical.models.boxes import BoxDecoder
from shared.suppression import suppressed as suppressed_on_device


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes (n, 6) in voxels of the image, scores (n,) and numbers of classes (n,), best first, on the host."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Marks:
    """Boxes (n, 6) in voxels of the image, scores (n,), numbers of classes (n,), and which of them count (n,).

    On a GPU there are as many whatever is found; what does not count is no mark. ``certain`` (), where suppression went
    on there, says whether it came to an end.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    certain: Tensor | None = None

    def at(self, index: Tensor) -> Marks:
        """Those of ``index``, in its order."""
        return Marks(self.boxes[index], self.scores[index], self.labels[index], self.valid[index], self.certain)


def no_marks(image: Tensor) -> Marks:
    """None, on the image's device."""
    none = torch.zeros(0, dtype=torch.long, device=image.device)
    return Marks(image.new_zeros((0, 6)), image.new_zeros(0), none, none.bool())


def joined(several: Sequence[Marks]) -> Marks:
    """The marks of all, one after the other."""
    told = [one.certain for one in several if one.certain is not None]
    return Marks(
        torch.cat([one.boxes for one in several]),
        torch.cat([one.scores for one in several]),
        torch.cat([one.labels for one in several]),
        torch.cat([one.valid for one in several]),
        reduce(torch.logical_and, told) if told else None,
    )


def fetched(find: Callable[[bool], Marks], device: torch.device) -> Detections:
    """What ``find`` marks, on the host: with suppression on ``device``, for which the host waits here alone.

    ``find(True)`` is with suppression on the host, for a CPU, and where a GPU came to no end.
    """
    if device.type != "cpu":
        found = find(False)
        if found.certain is not None:
            facts = (found.scores, found.labels, found.valid, found.certain.expand(len(found.valid)))
            table = torch.cat([found.boxes, torch.stack([fact.to(found.boxes.dtype) for fact in facts], 1)], 1).cpu()
            if table[:, 9].all():
                table = table[table[:, 8] > 0]
                return Detections(table[:, :6], table[:, 6], table[:, 7].long())
    found = find(True)
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())


def suppressed(decoder: BoxDecoder, marks: Marks, *, on_host: bool) -> Marks:
    """The best marks, of which none overlaps a better one of its class too much, best first."""
    if on_host or not len(marks.scores):
        marks = marks.at(marks.valid.nonzero().squeeze(1))
        return marks.at(suppress(_apart(marks), marks.scores, decoder.overlap, decoder.detections))
    marks = marks.at(torch.where(marks.valid, marks.scores, -1.0).sort(descending=True, stable=True).indices)
    kept, certain = suppressed_on_device(_hits(_apart(marks), decoder.overlap), marks.valid)
    kept = kept & certain
    chosen = kept.int().sort(descending=True, stable=True).indices[: decoder.detections]
    ended = certain.all() | (kept.sum() >= decoder.detections)
    return Marks(
        marks.boxes[chosen],
        marks.scores[chosen],
        marks.labels[chosen],
        kept[chosen],
        ended if marks.certain is None else ended & marks.certain,
    )


def _apart(marks: Marks) -> Tensor:
    """The boxes, those of each class moved away from the others, so that a box suppresses none of another class."""
    return marks.boxes + marks.labels[:, None] * (marks.boxes.max() + 1 if len(marks.boxes) else 0)


def _hits(boxes: Tensor, most_overlap: float) -> Tensor:
    """(n, n) which boxes, best first, overlap a later one by more than ``most_overlap``."""
    common: Tensor | None = None
    for axis in range(3):
        low, high = boxes[:, axis], boxes[:, 3 + axis]
        along = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_(min=0)
        common = along if common is None else common.mul_(along)
    assert common is not None
    volume = (boxes[:, 3:] - boxes[:, :3]).prod(dim=1)
    return (common / (volume[:, None] + volume - common) > most_overlap).triu(1)


def suppress(boxes: Tensor, scores: Tensor, most_overlap: float, most: int) -> Tensor:
    """Indices of boxes (n, 6), best first, none of which overlaps a better one by more than ``most_overlap`` (IoU)."""
    order = torch.sort(scores, descending=True, stable=True).indices
    ranked = boxes[order].float().cpu().numpy()
    low, high = ranked[:, :3], ranked[:, 3:]
    volume = (high - low).prod(axis=1)
    waiting = np.arange(len(ranked))
    kept: list[int] = []
    while len(waiting) and len(kept) < most:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        common = np.minimum(high[waiting], high[best]) - np.maximum(low[waiting], low[best])
        shared = np.maximum(common, 0).prod(axis=1)
        waiting = waiting[shared / (volume[waiting] + volume[best] - shared) <= most_overlap]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
