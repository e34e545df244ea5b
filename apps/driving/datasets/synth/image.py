"""The camera image of a synthetic scene, made by the ray caster that also makes the LiDAR sweep.

A pinhole camera with KITTI's intrinsics (Geiger et al. 2012). Daylight: one sun, a plain sky, shadows below objects,
haze; colours have grain, so that a network cannot rely on uniform areas. The images look like simple renderings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from apps.driving.datasets.synth.casting import GROUND, NOTHING, Floats, Ground, Hits, Rays, Solid, Window, cast
from apps.driving.datasets.synth.shapes import MATERIALS
from apps.driving.types import Camera

KITTI_INTRINSICS = np.array([[721.54, 0, 609.56], [0, 721.54, 172.85], [0, 0, 1]], np.float32)
KITTI_IMAGE = (375, 1242)
COLOURS = np.array([row[3] for row in MATERIALS], np.float32) / 255
_MAX_RANGE_M = 150.0
PixelCounts = dict[int, tuple[int, int]]


def black_camera(lidar_to_camera: Floats) -> Camera:
    """A calibrated camera with a black image that uses no memory."""
    picture = np.broadcast_to(np.zeros((), np.uint8), (*KITTI_IMAGE, 3))
    return Camera(image_HWC=picture, intrinsics=KITTI_INTRINSICS.copy(), lidar_to_camera=lidar_to_camera)


def render(
    ground: Ground,
    solids: Sequence[Solid],
    lidar_to_camera: Floats,
    scale: float,
    generator: np.random.Generator,
) -> tuple[Camera, PixelCounts]:
    """An image at ``scale`` times KITTI's size, and for each instance its unoccluded and its visible pixel count."""
    height, width = (max(1, round(side * scale)) for side in KITTI_IMAGE)
    intrinsics = KITTI_INTRINSICS * np.array([[scale], [scale], [1]], np.float32)
    rays = camera_rays(intrinsics, lidar_to_camera, (height, width))
    hits = cast(rays, ground, solids, generator, _MAX_RANGE_M)
    colour = _shade(rays, hits, ground, solids, generator)
    grain = generator.normal(0, 0.012, colour.shape).astype(np.float32)
    exposure = np.float32(generator.uniform(0.75, 1.25)) * generator.uniform(0.94, 1.06, 3).astype(np.float32)
    picture = np.clip((colour * exposure + grain) * 255, 0, 255).astype(np.uint8)
    softened = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(float(generator.uniform(0.3, 0.8))))
    visible = np.bincount(hits.instance[hits.instance >= 0], minlength=len(solids))
    pixel_counts = {
        item: (sum(int(mask.sum()) for _, mask in patches), int(visible[item]))
        for item, patches in hits.unoccluded.items()
    }
    return Camera(image_HWC=np.asarray(softened), intrinsics=intrinsics, lidar_to_camera=lidar_to_camera), pixel_counts


def camera_rays(intrinsics: Floats, lidar_to_camera: Floats, size: tuple[int, int]) -> Rays:
    """One ray through the centre of each pixel, rows from the top."""
    height, width = size
    rotation, translation = lidar_to_camera[:3, :3], lidar_to_camera[:3, 3]
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    focal, centre = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    ahead = np.stack([(u - centre[0]) / focal[0], (v - centre[1]) / focal[1], np.ones_like(u)], -1)
    directions = ahead @ rotation
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)

    def window(corners: Floats) -> list[Window]:
        points = corners @ rotation.T + translation
        if (points[:, 2] < 0.2).all():
            return []
        if (points[:, 2] < 0.2).any():
            return [(slice(0, height), slice(0, width))]
        pixels = points[:, :2] / points[:, 2:] * focal + centre
        low = np.floor(pixels.min(0)).astype(int) - 1
        high = np.ceil(pixels.max(0)).astype(int) + 2
        if high[0] <= 0 or high[1] <= 0 or low[0] >= width or low[1] >= height:
            return []
        return [(slice(max(low[1], 0), min(high[1], height)), slice(max(low[0], 0), min(high[0], width)))]

    return Rays((-rotation.T @ translation).astype(np.float32), directions.astype(np.float32), window)


def _shade(
    rays: Rays, hits: Hits, ground: Ground, solids: Sequence[Solid], generator: np.random.Generator
) -> NDArray[np.float32]:
    height, width = hits.distance.shape
    bearing, altitude = generator.uniform(0, 2 * np.pi), np.deg2rad(generator.uniform(20, 65))
    sun = np.array(
        [np.cos(bearing) * np.cos(altitude), np.sin(bearing) * np.cos(altitude), np.sin(altitude)], np.float32
    )
    ambient = np.float32(generator.uniform(0.45, 0.75))
    sky = np.array([0.62, 0.72, 0.86], np.float32) * np.float32(generator.uniform(0.85, 1.1))
    sky = sky * (1 - 0.35 * generator.random()) + 0.3 * generator.random()
    up = np.clip(rays.directions[..., 2:3], 0, 1)
    clouds = _clouds(height, width, generator)[..., None]
    colour = sky + (1 - up) * 0.08 + clouds * 0.1
    hit = hits.instance != NOTHING
    position = rays.origin + rays.directions[hit] * hits.distance[hit][:, None]
    instance, material, normal = hits.instance[hit], hits.material[hit], hits.normal[hit]
    albedo = COLOURS[material] * _tint(instance, len(solids), generator)
    on_ground = instance == GROUND
    albedo[on_ground] *= _road_brightness(position[on_ground], ground, generator)
    # Courses and panels on walls, mottling everywhere: enough texture to estimate distances.
    courses = 1 - 0.1 * ((np.floor(position[:, 2] / 0.35) + np.floor((position[:, 0] + position[:, 1]) / 0.7)) % 2)
    albedo *= np.where((material == 4) | (material == 5), courses, 1)[:, None]
    albedo *= (1 + 0.12 * _mottle(position, material))[:, None]
    facing = np.clip(normal @ sun, 0, 1)
    facing[on_ground] *= ~_shadowed(position[on_ground], sun, solids)
    lit = albedo * (ambient + (1 - ambient * 0.5) * facing)[:, None]
    shine = np.clip((normal * (sun - rays.directions[hit])).sum(-1) / 2, 0, 1) ** 24
    lit += (0.5 * shine * np.isin(material, (3, 12, 13, 14, 15, 16, 17)))[:, None]
    haze = (1 - np.exp(-hits.distance[hit] / np.float32(generator.uniform(150, 500))))[:, None]
    colour[hit] = lit * (1 - haze) + (sky + 0.05) * haze
    shaded: Floats = colour.astype(np.float32)
    return shaded


def _tint(instance: NDArray[np.int16], count: int, generator: np.random.Generator) -> Floats:
    tints = generator.uniform(0.75, 1.25, (count + 2, 1)) * generator.uniform(0.92, 1.08, (count + 2, 3))
    chosen: Floats = tints.astype(np.float32)[instance]
    return chosen


def _road_brightness(position: Floats, ground: Ground, generator: np.random.Generator) -> Floats:
    """The brightness of the road: lane markings, and worn lanes."""
    x, y = position[:, 0], position[:, 1]
    across, along = ground.lateral(x, y), ground.along(x, y)
    dashed = (np.abs(across) < 0.07) & (along % 9 < 4)
    edge = np.abs(np.abs(across) - (ground.half_width - 0.35)) < 0.06
    if generator.random() < 0.3:
        edge &= False
    worn = 1 + 0.06 * np.sin(across * 2.1) + 0.03 * np.sin(along * 0.7)
    inside = np.abs(across) < ground.half_width
    brightness = np.where(inside & (dashed | edge), 2.0, np.where(inside, worn, 1.0))
    return brightness.astype(np.float32)[:, None]


def _mottle(position: Floats, material: NDArray[np.int16]) -> Floats:
    coarse = np.where(material == 7, 9.0, 3.0).astype(np.float32)
    x, y, z = (position * coarse[:, None]).T
    wave: Floats = np.sin(x * 1.7 + np.sin(y * 2.3)) * np.sin(y * 1.3 + z) * np.sin(z * 2.9 + x * 0.7)
    return np.where(np.isin(material, (0, 1, 4, 5, 6, 7)), wave, 0.2 * wave)


def _shadowed(position: Floats, sun: Floats, solids: Sequence[Solid]) -> NDArray[np.bool_]:
    """Whether ground points are in the shadow of a small solid's bounding box, approximated at half its height."""
    dark = np.zeros(len(position), bool)
    x, y = np.ascontiguousarray(position[:, 0]), np.ascontiguousarray(position[:, 1])
    for solid in solids:
        corners = solid.corners
        high = float(corners[1, 2] - corners[0, 2])
        throw = sun[:2] / sun[2] * np.float32(high * 0.6)
        centre_xy = corners[:, :2].mean(0) - throw / 2
        along, across = corners[4, :2] - corners[0, :2], corners[2, :2] - corners[0, :2]
        radius = np.hypot(*along) + np.hypot(*across) + np.hypot(*throw)
        if high > 4.5 or np.hypot(*centre_xy) > 60:
            continue
        close = np.nonzero((np.abs(x - centre_xy[0]) < radius) & (np.abs(y - centre_xy[1]) < radius))[0]
        for shift in (-0.45, 0.0, 0.45):
            dx, dy = x[close] - centre_xy[0] + throw[0] * shift, y[close] - centre_xy[1] + throw[1] * shift
            dark[close] |= (np.abs(dx * along[0] + dy * along[1]) < along @ along / 2) & (
                np.abs(dx * across[0] + dy * across[1]) < across @ across / 2
            )
    return dark


def _clouds(height: int, width: int, generator: np.random.Generator) -> Floats:
    cells = generator.normal(0, 1, (4, 8)).astype(np.float32)
    picture = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)
