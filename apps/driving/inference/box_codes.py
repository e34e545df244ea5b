"""The second stage's box features, and the encoding of box corrections as its outputs. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from apps.driving.types import Floats, wrap_angle

MIN_SCORE_MARGIN = 1e-4
"""The detector's scores are clipped to at least this distance from 0 and 1."""
MIN_M = 0.05
"""Minimum length of a box's side, in metres."""
MAX_LOG_SCALE = 0.7
"""Maximum absolute logarithm of the factor by which a side changes."""
FLIPPED = 8
"""The output column with the logit that a box is to be rotated by 180 degrees."""
_COSINE, _SINE_OF_DOUBLE = 8, 11
"""The feature columns (cosine of the angle, sine of twice the angle) that change sign when front and back of a box are
exchanged."""


def box_features(
    boxes_N7: Floats, scores_N: Floats, labels_N: NDArray[np.integer], counts_N: NDArray[np.integer], classes: int
) -> Floats:
    """Features of each box (N, 12 + ``classes``): the detector's score, its number of points, its distance and height,
    its size, its angle to the ray from the LiDAR, and its class."""
    score = np.clip(scores_N, MIN_SCORE_MARGIN, 1 - MIN_SCORE_MARGIN)
    distance = np.hypot(boxes_N7[:, 0], boxes_N7[:, 1])
    angle = boxes_N7[:, 6] - np.arctan2(boxes_N7[:, 1], boxes_N7[:, 0])
    features = [
        np.log(score / (1 - score)),
        np.log1p(counts_N) - 3,
        distance / 30 - 1,
        np.log1p(distance) - 3,
        boxes_N7[:, 2] + 1,
        *np.log(np.maximum(boxes_N7[:, 3:6], MIN_M)).T,
        np.cos(angle),
        np.sin(angle),
        np.cos(2 * angle),
        np.sin(2 * angle),
    ]
    return np.concatenate([np.stack(features, axis=1), np.eye(classes)[labels_N]], axis=1).astype(np.float32)


def mirrored_inputs(points_NK3: Floats, features: Floats) -> tuple[Floats, Floats]:
    """The points and features of boxes, mirrored along their length: front and back are exchanged, left and right are
    not. The correct flip output is thereby inverted."""
    points_NK3, features = points_NK3 * np.array([-1, 1, 1], np.float32), features.copy()
    features[:, [_COSINE, _SINE_OF_DOUBLE]] *= -1
    return points_NK3, features


def decode_boxes(boxes_N7: Floats, outputs: Floats) -> tuple[Floats, Floats]:
    """The boxes (N, 7) corrected by the network's outputs (N, ``OUTPUT_COUNT``), and their scores (N,)."""
    cosine, sine = np.cos(boxes_N7[:, 6]), np.sin(boxes_N7[:, 6])
    along, across, up = outputs[:, 1:4].T
    boxes = boxes_N7.copy()
    boxes[:, 0] += cosine * along - sine * across
    boxes[:, 1] += sine * along + cosine * across
    boxes[:, 2] += up
    boxes[:, 3:6] *= np.exp(np.clip(outputs[:, 4:7], -MAX_LOG_SCALE, MAX_LOG_SCALE))
    boxes[:, 6] += outputs[:, 7] + np.where(outputs[:, FLIPPED] > 0, math.pi, 0)
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return boxes, (0.5 + 0.5 * np.tanh(outputs[:, 0].astype(np.float64) / 2)).astype(np.float32)


def encode_boxes(boxes_N7: Floats, target_N7: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The corrections (N, 7), as in the outputs, that turn the boxes (N, 7) into the target boxes (N, 7), and (N,)
    whether a box has to be rotated by 180 degrees."""
    offset = target_N7[:, :3] - boxes_N7[:, :3]
    cosine, sine = np.cos(boxes_N7[:, 6]), np.sin(boxes_N7[:, 6])
    rotation = target_N7[:, 6] - boxes_N7[:, 6]
    deltas = [
        cosine * offset[:, 0] + sine * offset[:, 1],
        cosine * offset[:, 1] - sine * offset[:, 0],
        offset[:, 2],
        *np.log(np.maximum(target_N7[:, 3:6], MIN_M) / np.maximum(boxes_N7[:, 3:6], MIN_M)).T,
        np.mod(rotation + math.pi / 2, math.pi) - math.pi / 2,
    ]
    return np.stack(deltas, axis=1).astype(np.float32), np.cos(rotation) < 0
