"""Greedy non-maximum suppression of boxes that reads no value on the host, so that the host does not wait for a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ITERATIONS = 16


def greedy_nms(hits_NN: Tensor, valid_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (N,) whether greedy suppression keeps each ``valid`` box, and (N,) whether that answer is certain.

    Boxes are in descending order of score. ``hits_NN[i, j]``, for i < j only, says that box i removes box j if box i is
    kept. All shapes are fixed, so that the kernels can be captured in a CUDA graph. A box is certain if it comes before
    the first box whose answer depends on a chain of more than ``_ITERATIONS`` boxes, each removed by the one before it.
    """
    previous = kept = valid_N
    # A box is decided once all better boxes are, so the iteration has converged when a round changes nothing.
    for _ in range(_ITERATIONS):
        previous, kept = kept, valid_N & ~(hits_NN & kept[:, None]).any(0)
    return kept, (kept == previous).int().cumprod(0) > 0
