"""The LiDARs of synthetic scenes: their beams, their mounting heights, and the vehicle sizes around them.

Elevations and azimuth steps are from the manufacturers' manuals (Velodyne HDL-64E S2, HDL-32E, VLP-16, VLP-32C; Ouster
OS1-128); heights are those on the vehicles of KITTI (Geiger et al. 2012), nuScenes (Caesar et al. 2020) and Argoverse
2, which has two VLP-32C, the lower one upside down (Wilson et al. 2021). The elevations, the heights of both blocks,
and the losses of the steepest beams of the HDL-64E were measured on the points of KITTI's sweeps, without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.synth.casting import Floats, Rays, Window

Sizes = Literal["kitti", "wide"]
Block = tuple[tuple[float, ...], float]
"""Beam elevations in degrees, descending, and the height of the beams' origin above the LiDAR's origin (metres)."""
STEEP_DEG = (16.2, 17.0, 21.4, 21.9, 23.3, 25.0)
STEEP_RETURN_RATES = (1.0, 0.89, 0.875, 0.765, 0.655, 0.605)
"""The steepest beams of the real HDL-64E lose up to 40 % of their returns, whatever the surface."""


def _evenly_spaced(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, count).round(4).tolist())


_VLP_32C = (
    *(15.0, 10.333, 7.0, 4.667, 3.333, 2.333, 1.667, 1.333, 1.0, 0.667, 0.333, 0.0, -0.333, -0.667, -1.0, -1.333),
    *(-1.667, -2.0, -2.333, -2.667, -3.0, -3.333, -3.667, -4.0, -4.667, -5.333, -6.148, -7.254, -8.843, -11.31),
    *(-15.639, -25.0),
)
HDL_64E: tuple[Block, ...] = ((_evenly_spaced(1.94, -8.71, 32), 0.204), (_evenly_spaced(-9.03, -25.0, 32), 0.120))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensors:
    """The sensors of a scene; the defaults are KITTI's HDL-64E.

    ``field_of_view_deg`` is centred on the forward direction (90 covers what KITTI labels, which is what its camera
    sees); ``azimuth_step_deg`` is the step between firings. ``height_m`` above the road varies with the standard
    deviation ``height_spread_m``. ``sizes`` chooses the data set whose vehicle sizes are used. With ``own_vehicle``,
    beams can hit the roof and the bonnet below the LiDAR. ``image_scale`` scales KITTI's 1242 x 375 image. With 0
    nothing is rendered: the image is black (and uses no memory), its calibration is valid, and occlusion is as seen
    from the LiDAR.
    """

    field_of_view_deg: float = 90.0
    azimuth_step_deg: float = 0.167
    max_range_m: float = 80.0
    height_m: float = 1.73
    height_spread_m: float = 0.05
    range_noise_m: float = 0.012
    blocks: tuple[Block, ...] = HDL_64E
    steep_losses: bool = True
    sizes: Sizes = "kitti"
    own_vehicle: bool = False
    image_scale: float = 0.0


LIDARS: Mapping[str, Sensors] = {
    "hdl64e": Sensors(),
    "hdl32e": Sensors(
        azimuth_step_deg=0.332,
        height_m=1.84,
        height_spread_m=0.06,
        range_noise_m=0.02,
        blocks=((_evenly_spaced(10.67, -30.67, 32), 0.0),),
        steep_losses=False,
        sizes="wide",
        own_vehicle=True,
    ),
    "vlp32c_pair": Sensors(
        azimuth_step_deg=0.2,
        height_m=1.95,
        height_spread_m=0.06,
        range_noise_m=0.02,
        blocks=((_VLP_32C, 0.0), (tuple(-elevation for elevation in reversed(_VLP_32C)), -0.11)),
        steep_losses=False,
        sizes="wide",
        own_vehicle=True,
    ),
    "vlp16": Sensors(
        azimuth_step_deg=0.2,
        height_m=1.8,
        height_spread_m=0.2,
        range_noise_m=0.02,
        blocks=((_evenly_spaced(15.0, -15.0, 16), 0.0),),
        steep_losses=False,
        own_vehicle=True,
    ),
    "os1_128": Sensors(
        azimuth_step_deg=0.352,
        height_m=1.9,
        height_spread_m=0.2,
        range_noise_m=0.02,
        blocks=((_evenly_spaced(21.1, -21.1, 128), 0.0),),
        steep_losses=False,
        sizes="wide",
        own_vehicle=True,
    ),
}
"""By their names in the settings of synthetic data."""


def lidar_rays(sensors: Sensors, generator: np.random.Generator) -> list[Rays]:
    """The beams of one rotation within the field of view, block by block; rows from the top beam down."""
    tilt = generator.normal(0, 0.2)
    return [
        beams(np.array(block) + generator.normal(0, 0.04, len(block)) + tilt, above, sensors, generator)
        for block, above in sensors.blocks
    ]


def beams(elevation_deg: NDArray[np.float64], above: float, sensors: Sensors, generator: np.random.Generator) -> Rays:
    """Beams at descending elevations (R,) from a point ``above`` metres over the LiDAR's origin."""
    elevation = np.deg2rad(elevation_deg)
    half = np.deg2rad(sensors.field_of_view_deg / 2)
    step = np.deg2rad(sensors.azimuth_step_deg)
    azimuth = np.arange(half, -half, -step)
    shift = generator.uniform(-0.5, 0.5, (len(elevation), 1)) * step
    angles = (azimuth[None] + shift).astype(np.float32)
    cosine = np.cos(elevation)[:, None].astype(np.float32)
    directions = np.stack(
        [cosine * np.cos(angles), cosine * np.sin(angles), np.broadcast_to(np.sin(elevation)[:, None], angles.shape)],
        -1,
    ).astype(np.float32)
    top, bottom = elevation.max(), elevation.min()

    def columns(low: float, high: float) -> slice:
        first = int(np.floor((half - high) / step)) - 1
        return slice(max(first, 0), max(int(np.ceil((half - low) / step)) + 2, 0))

    def window(corners: Floats) -> list[Window]:
        low_z, high_z = float(corners[:, 2].min()) - above, float(corners[:, 2].max()) - above
        far = float(np.hypot(corners[:, 0], corners[:, 1]).max())
        near = _nearest(corners)
        upper = np.arctan2(high_z, near if high_z > 0 else far)
        lower = np.arctan2(low_z, near if low_z < 0 else far)
        if upper < bottom or lower > top:
            return []
        chosen = np.nonzero((elevation <= upper + 0.002) & (elevation >= lower - 0.002))[0]
        if not len(chosen):
            return []
        rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
        if near <= 0:
            return [(rows, slice(0, len(azimuth)))]
        centre = np.arctan2(corners[:, 1].mean(), corners[:, 0].mean())
        around = np.arctan2(corners[:, 1], corners[:, 0]) - centre
        around = (around + np.pi) % (2 * np.pi) - np.pi
        spans = [(centre + around.min() + turn, centre + around.max() + turn) for turn in (-2 * np.pi, 0, 2 * np.pi)]
        return [(rows, columns(low, high)) for low, high in spans if high > -half and low < half]

    return Rays(np.array([0, 0, above], np.float32), directions, window)


def _nearest(corners: Floats) -> float:
    """Horizontal distance from the origin to the rectangle below the corners of a placed shape; 0 inside it."""
    base = corners[[0, 2, 6, 4], :2].astype(np.float64)
    edges = np.roll(base, -1, axis=0) - base
    cross = edges[:, 0] * -base[:, 1] - edges[:, 1] * -base[:, 0]
    if (cross >= 0).all() or (cross <= 0).all():
        return 0.0
    t = np.clip((-base * edges).sum(1) / (edges**2).sum(1), 0, 1)
    return float(np.linalg.norm(base + t[:, None] * edges, axis=1).min())
