"""Settings of what is learnt of labelled frames, and how they are varied. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSampling:
    """Mirroring left and right, turning and scaling the whole scene, lifting it, and losing points.

    Boxes with fewer than ``fewest_points`` returns are not learnt. ``paste`` objects of each class are added from other
    sweeps, as far as there are fewer of it than that and they collide with none (ground-truth sampling; Yan et al.
    2018, "SECOND", section 3.3.1).
    """

    fewest_points: int = 5
    paste: int = 0
    mirror: float = 0.5
    turn_rad: float = np.pi / 4
    scale: float = 0.05
    lift_m: float = 0.1
    most_lost: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSampling:
    """Mirroring, coming nearer, tilting, and changes of brightness, contrast, colour and noise, as shares of the whole.

    What is cut off or hidden by more than half is not learnt, nor what is lower than ``shortest_px`` at the input's
    focal length, or further than ``farthest_m``. ``nearer`` is the largest change of scale: what is seen 1.2 times as
    large is 1.2 times as near for a camera of the same focal length. ``tilt`` moves the image up or down, by a share of
    its height, and the principal point with it, so that the row in which an object stands does not tell its depth.
    """

    shortest_px: float = 8.0
    farthest_m: float = 60.0
    mirror: float = 0.5
    nearer: float = 0.25
    tilt: float = 0.08
    brightness: float = 0.25
    contrast: float = 0.3
    colour: float = 0.1
    noise: float = 0.03
