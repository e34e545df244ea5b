"""Settings for which labelled objects are trained on, and for data augmentation. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSampling:
    """Augmentation of sweeps: mirroring, rotating, scaling and lifting the scene, and dropping points.

    Boxes with fewer than ``fewest_points`` returns are not trained on. ``paste`` adds objects from other sweeps until
    there are that many of each class, if they collide with nothing (ground-truth sampling; Yan et al. 2018, "SECOND",
    section 3.3.1).
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
    """Augmentation of images: mirroring, zooming, tilting, and changes of brightness, contrast, colour and noise, as
    fractions of the whole.

    Objects that are truncated or occluded by more than half are not trained on, nor those lower than ``shortest_px`` at
    the input's focal length, or farther than ``farthest_m``. ``nearer`` is the largest change of scale: an object shown
    1.2 times as large is 1.2 times as near for a camera with the same focal length. ``tilt`` shifts the image and the
    principal point up or down by a fraction of its height, so that an object's row does not reveal its depth.
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
