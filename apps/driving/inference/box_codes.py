"""What the second stage is told of a box beside its points, and how its outputs and a box's corrections stand for each
other. No torch here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from apps.driving.types import Floats

CERTAIN = 1e-4
"""The detector's scores are taken as so far from 0 and 1 at least."""
MIN_M = 0.05
"""Sides are taken as so long at least."""
MAX_GROWTH = 0.7
"""The logarithm of the factor by which a side may change, at most."""
FLIPPED = 8
"""The column of the network's outputs that says whether a box is turned about."""
_COSINE, _SINE_OF_TWICE = 8, 11
"""The columns of what is known that change their sign where a box is seen from its other end in a mirror."""


def box_features(
    boxes_N7: Floats, scores_N: Floats, labels_N: NDArray[np.integer], counts_N: NDArray[np.integer], classes: int
) -> Floats:
    """What is known of each box (N, 12 + ``classes``): the detector's score, how many points it has, where it
    is, its size, how it is turned against the ray to it, and its class."""
    score = np.clip(scores_N, CERTAIN, 1 - CERTAIN)
    away = np.hypot(boxes_N7[:, 0], boxes_N7[:, 1])
    turned = boxes_N7[:, 6] - np.arctan2(boxes_N7[:, 1], boxes_N7[:, 0])
    facts = [
        np.log(score / (1 - score)),
        np.log1p(counts_N) - 3,
        away / 30 - 1,
        np.log1p(away) - 3,
        boxes_N7[:, 2] + 1,
        *np.log(np.maximum(boxes_N7[:, 3:6], MIN_M)).T,
        np.cos(turned),
        np.sin(turned),
        np.cos(2 * turned),
        np.sin(2 * turned),
    ]
    return np.concatenate([np.stack(facts, axis=1), np.eye(classes)[labels_N]], axis=1).astype(np.float32)


def from_the_other_end(points_NK3: Floats, known: Floats) -> tuple[Floats, Floats]:
    """The points of boxes and what is known of them as they are in a mirror across the boxes: with front and back
    exchanged, left and right not. A box that was turned about is not, and the other way round."""
    points_NK3, known = points_NK3 * np.array([-1, 1, 1], np.float32), known.copy()
    known[:, [_COSINE, _SINE_OF_TWICE]] *= -1
    return points_NK3, known


def decode_boxes(boxes_N7: Floats, found: Floats) -> tuple[Floats, Floats]:
    """The boxes (N, 7) as the network's outputs (N, ``OUTPUTS``) correct them, and their scores (N,)."""
    cosine, sine = np.cos(boxes_N7[:, 6]), np.sin(boxes_N7[:, 6])
    along, across, up = found[:, 1:4].T
    boxes = boxes_N7.copy()
    boxes[:, 0] += cosine * along - sine * across
    boxes[:, 1] += sine * along + cosine * across
    boxes[:, 2] += up
    boxes[:, 3:6] *= np.exp(np.clip(found[:, 4:7], -MAX_GROWTH, MAX_GROWTH))
    boxes[:, 6] += found[:, 7] + np.where(found[:, FLIPPED] > 0, math.pi, 0)
    boxes[:, 6] = np.mod(boxes[:, 6] + math.pi, 2 * math.pi) - math.pi
    return boxes, (0.5 + 0.5 * np.tanh(found[:, 0].astype(np.float64) / 2)).astype(np.float32)


def encode_boxes(boxes_N7: Floats, wanted_N7: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """What takes the boxes (N, 7) to the ``wanted`` ones: (N, 7) as in the outputs, and (N,) whether turned about."""
    offset = wanted_N7[:, :3] - boxes_N7[:, :3]
    cosine, sine = np.cos(boxes_N7[:, 6]), np.sin(boxes_N7[:, 6])
    turn = wanted_N7[:, 6] - boxes_N7[:, 6]
    moved = [
        cosine * offset[:, 0] + sine * offset[:, 1],
        cosine * offset[:, 1] - sine * offset[:, 0],
        offset[:, 2],
        *np.log(np.maximum(wanted_N7[:, 3:6], MIN_M) / np.maximum(boxes_N7[:, 3:6], MIN_M)).T,
        np.mod(turn + math.pi / 2, math.pi) - math.pi / 2,
    ]
    return np.stack(moved, axis=1).astype(np.float32), np.cos(turn) < 0
