"""A detector's marks: concatenation, non-maximum suppression, and the transfer to the host.

On a GPU the host reads nothing until the final transfer, so that it can launch further work while the GPU computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from apps.medical.models.boxes import BoxDecoder
from shared.suppression import greedy_nms


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes (N, 6) in voxels of the image, scores (N,) and class indices (N,), by decreasing score, on the host."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Marks:
    """Boxes (N, 6) in voxels of the image, scores (N,), class indices (N,), and which rows are valid (N,).

    On a GPU the number of rows is fixed, and invalid rows are padding. ``certain`` () is set after suppression on a
    GPU: whether it converged.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    certain: Tensor | None = None

    def at(self, index: Tensor) -> Marks:
        """The rows of ``index``, in its order."""
        return Marks(self.boxes[index], self.scores[index], self.labels[index], self.valid[index], self.certain)


def no_marks(image: Tensor) -> Marks:
    """Empty marks on the device of ``image``."""
    labels = torch.zeros(0, dtype=torch.long, device=image.device)
    return Marks(image.new_zeros((0, 6)), image.new_zeros(0), labels, labels.bool())


def concatenate(parts: Sequence[Marks]) -> Marks:
    """All marks, one part after the other."""
    convergence = [part.certain for part in parts if part.certain is not None]
    return Marks(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.valid for part in parts]),
        reduce(torch.logical_and, convergence) if convergence else None,
    )


def fetch(find: Callable[[bool], Marks], device: torch.device) -> Detections:
    """Calls ``find`` and transfers its marks to the host. This is the only place where the host waits for the GPU.

    ``find(on_host)`` runs the suppression on ``device`` or, for a CPU and if the GPU's suppression did not converge, on
    the host.
    """
    if device.type != "cpu":
        marks = find(False)
        if marks.certain is not None:
            columns = (marks.scores, marks.labels, marks.valid, marks.certain.expand(len(marks.valid)))
            table = torch.cat([marks.boxes, torch.stack([part.to(marks.boxes.dtype) for part in columns], 1)], 1).cpu()
            if table[:, 9].all():
                table = table[table[:, 8] > 0]
                return Detections(table[:, :6], table[:, 6], table[:, 7].long())
    marks = find(True)
    return Detections(marks.boxes.cpu(), marks.scores.cpu(), marks.labels.cpu())


def suppress_marks(decoder: BoxDecoder, marks: Marks, *, on_host: bool) -> Marks:
    """Non-maximum suppression within each class, by decreasing score; at most ``decoder.detections`` marks."""
    if on_host or not len(marks.scores):
        marks = marks.at(marks.valid.nonzero().squeeze(1))
        return marks.at(suppress(_offset_by_class(marks), marks.scores, decoder.overlap, decoder.detections))
    marks = marks.at(torch.where(marks.valid, marks.scores, -1.0).sort(descending=True, stable=True).indices)
    kept, certain = greedy_nms(_suppression_pairs(_offset_by_class(marks), decoder.overlap), marks.valid)
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


def _offset_by_class(marks: Marks) -> Tensor:
    """The boxes, shifted apart by class so that boxes of different classes do not overlap."""
    return marks.boxes + marks.labels[:, None] * (marks.boxes.max() + 1 if len(marks.boxes) else 0)


def _suppression_pairs(boxes: Tensor, max_overlap: float) -> Tensor:
    """(N, N): whether a box has an IoU above ``max_overlap`` with a later one; boxes are sorted by decreasing score."""
    intersection: Tensor | None = None
    for axis in range(3):
        low, high = boxes[:, axis], boxes[:, 3 + axis]
        overlap = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_(min=0)
        intersection = overlap if intersection is None else intersection.mul_(overlap)
    assert intersection is not None
    volume = (boxes[:, 3:] - boxes[:, :3]).prod(dim=1)
    return (intersection / (volume[:, None] + volume - intersection) > max_overlap).triu(1)


def suppress(boxes: Tensor, scores: Tensor, max_overlap: float, max_boxes: int) -> Tensor:
    """Greedy non-maximum suppression of boxes (N, 6) at the IoU ``max_overlap``: kept indices, by decreasing score."""
    order = torch.sort(scores, descending=True, stable=True).indices
    ranked = boxes[order].float().cpu().numpy()
    low, high = ranked[:, :3], ranked[:, 3:]
    volume = (high - low).prod(axis=1)
    remaining = np.arange(len(ranked))
    kept: list[int] = []
    while len(remaining) and len(kept) < max_boxes:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        overlap = np.minimum(high[remaining], high[best]) - np.maximum(low[remaining], low[best])
        intersection = np.maximum(overlap, 0).prod(axis=1)
        remaining = remaining[intersection / (volume[remaining] + volume[best] - intersection) <= max_overlap]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
