"""Greedy suppression of overlapping boxes with no value read on the host, so that it does not wait for a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDS = 16


def suppressed(hits_NN: Tensor, valid_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) which boxes, best first, greedy suppression keeps of those that are ``valid``; (N,) whether that is certain.

    ``hits_NN[i, j]``, for i < j alone, says that box i, where it is kept, removes box j. All shapes are fixed, so that
    the kernels can be captured in a graph. Certain are all boxes before the first that hangs on more than ``_ROUNDS``
    others, each removed by the one before.
    """
    before = kept = valid_N
    # Whether a box stays is settled once all better ones are; what a round leaves as it was is what is sought.
    for _ in range(_ROUNDS):
        before, kept = kept, valid_N & ~(hits_NN & kept[:, None]).any(0)
    return kept, (kept == before).int().cumprod(0) > 0
