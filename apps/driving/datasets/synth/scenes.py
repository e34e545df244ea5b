"""Street scenes with exact ground truth: a LiDAR sweep and a camera image, ray-cast from the same solids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.projection import image_boxes
from apps.driving.datasets.synth.casting import GROUND, NOTHING, Bank, Floats, Ground, Hits, Rays, Solid, cast
from apps.driving.datasets.synth.image import black_camera, render
from apps.driving.datasets.synth.layout import KIND_SHARES, KINDS, PlacedShape, lay_out
from apps.driving.datasets.synth.sensors import STEEP_DEG, STEEP_RETURN_RATES, Sensors, lidar_rays
from apps.driving.datasets.synth.shapes import INDEX, MATERIALS, place
from apps.driving.datasets.synth.surroundings import own_vehicle
from apps.driving.types import Boxes3D, Camera, Frame

REFLECTIVITY = np.array([row[1] for row in MATERIALS], np.float32)
LOSS = np.array([row[2] for row in MATERIALS], np.float32)
_MIN_RANGE_M = 1.4
KITTI = Sensors()
MIN_POINTS = 5
"""Boxes with fewer returns should neither be trained on nor counted as missed by a LiDAR network."""


def scene(
    generator: np.random.Generator, *, sensors: Sensors = KITTI, kind: str | None = None, name: str = "synthetic"
) -> Frame:
    """A scene: points (N, 4), camera, and ground truth with the number of returns from each object.

    The ground truth has every car, van, truck, pedestrian and cyclist with at least one LiDAR return or one visible
    pixel. ``kind`` is one of ``layout.KINDS``, or None to draw one. The same generator state gives the same scene.
    """
    kind = kind or str(generator.choice(KINDS, p=KIND_SHARES))
    ground = _ground(kind, sensors, generator)
    behind = -sensors.max_range_m if sensors.field_of_view_deg > 180 else -3.0
    placed = lay_out(kind, ground, generator, behind, sensors.max_range_m, sensors.sizes)
    if sensors.own_vehicle:
        placed.append(PlacedShape(own_vehicle(generator), 0.3, 0.0, 0.0))
    solids, heights = _solids(placed, ground)
    casts = [
        (rays, cast(rays, ground, solids, generator, sensors.max_range_m)) for rays in lidar_rays(sensors, generator)
    ]
    returned = [returns(rays, hits, placed, sensors, generator) for rays, hits in casts]
    points, instances = (np.concatenate(part) for part in zip(*returned, strict=True))
    counts = np.bincount(instances[instances >= 0], minlength=len(placed))
    lidar_to_camera = _random_mounting(generator)
    if sensors.image_scale:
        camera, visibility = render(ground, solids, lidar_to_camera, sensors.image_scale, generator)
    else:
        camera = black_camera(lidar_to_camera)
        visibility = _lidar_visibility([hits for _, hits in casts], counts)
    truth = _truth(placed, heights, counts, visibility, camera)
    return Frame(name=name, points_lidar_m=points, cameras={"image_2": camera}, truth=truth)


def _lidar_visibility(hits: Sequence[Hits], counts: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """For each counted object: the number of rays that would hit it without occlusion, and of those that hit it."""
    visibility: dict[int, tuple[int, int]] = {}
    for part in hits:
        visible = np.bincount(part.instance[part.instance >= 0], minlength=len(counts))
        for item, patches in part.unoccluded.items():
            total, shown = visibility.get(item, (0, 0))
            more = int(visible[item]) if counts[item] else 0
            visibility[item] = total + sum(int(mask.sum()) for _, mask in patches), shown + more
    return visibility


def _ground(kind: str, sensors: Sensors, generator: np.random.Generator) -> Ground:
    half = {"street": 4.8, "alley": 3.3, "avenue": 7.4, "junction": 5.0, "lot": 40.0, "open": 4.5}[kind] + float(
        generator.normal() * 0.5
    )
    if kind == "alley" and generator.random() < 0.35:
        half -= 0.6
    heading = generator.normal(0, np.deg2rad(4)) if kind != "open" else generator.normal(0, np.deg2rad(8))
    lane = 1.7 if kind != "avenue" or generator.random() < 0.5 else 5.0
    waves = np.stack(
        [
            generator.normal(0, 0.12, 4),
            generator.normal(0, 0.12, 4),
            generator.uniform(0, 2 * np.pi, 4),
            np.abs(generator.normal(0, 0.025, 4)),
        ],
        1,
    )
    return Ground(
        height=-float(sensors.height_m + generator.normal() * sensors.height_spread_m),
        slope=(float(generator.normal(0, 0.012)), float(generator.normal(0, 0.015))),
        heading=float(heading),
        offset=float(lane + generator.normal() * 0.4),
        half_width=half,
        kerb=float(np.clip(generator.normal(0.09, 0.06), 0, 0.2)),
        waves=waves.astype(np.float32),
        banks=tuple(_bank(side, half, generator) for side in (1, -1) if kind != "lot" and generator.random() < 0.5),
    )


def _bank(side: int, half_width: float, generator: np.random.Generator) -> Bank:
    """Slightly rising front gardens and verges, or an embankment."""
    rise = float(generator.choice([generator.uniform(0.1, 0.6), generator.uniform(0.6, 3.0)], p=[0.7, 0.3]))
    return Bank(side, half_width + float(generator.uniform(0.5, 6)), float(generator.uniform(0.04, 0.5)), rise)


def _solids(placed: Sequence[PlacedShape], ground: Ground) -> tuple[list[Solid], Floats]:
    x = np.array([item.x for item in placed], np.float32)
    y = np.array([item.y for item in placed], np.float32)
    heights = ground.elevation(x, y).astype(np.float32)
    solids = [
        place(item.shape, item.x, item.y, float(z), item.yaw, number)
        for number, (item, z) in enumerate(zip(placed, heights, strict=True))
    ]
    return solids, heights


def returns(
    rays: Rays, hits: Hits, placed: Sequence[PlacedShape], sensors: Sensors, generator: np.random.Generator
) -> tuple[Floats, NDArray[np.int16]]:
    """Points (N, 4) and their instances, with losses and noise, ring by ring in the order of the sensor."""
    hit = hits.instance != NOTHING
    distance, instance = hits.distance[hit], hits.instance[hit]
    material, direction = hits.material[hit], rays.directions[hit]
    cosine = np.abs((hits.normal[hit] * direction).sum(-1))
    reflectivity = REFLECTIVITY[material] * np.exp(generator.normal(0, 0.18, len(distance)).astype(np.float32))
    # The returned signal decreases with the square of the distance and with the angle of incidence.
    signal = reflectivity * np.maximum(cosine, 0.02) * (90 / distance) ** 2
    detection_rate = 1 / (1 + (0.04 / signal) ** 2)
    if sensors.steep_losses:
        steep = np.rad2deg(np.arcsin(-direction[:, 2]))
        detection_rate *= np.interp(steep, STEEP_DEG, STEEP_RETURN_RATES).astype(np.float32)
    chance = generator.random(len(distance), np.float32)
    kept = (chance < detection_rate * (1 - LOSS[material])) & (distance > _MIN_RANGE_M)
    # Some light passes the glass and returns from inside the car. Returns from beyond the car are not simulated.
    glass = kept & (material == INDEX["glass"]) & (generator.random(len(distance), np.float32) < 0.45)
    deeper = distance + generator.uniform(0.3, 1.2, len(distance)).astype(np.float32)
    glass[glass] = _inside(direction[glass] * deeper[glass, None], instance[glass], placed)
    distance = np.where(glass, deeper, distance)
    distance = distance + sensors.range_noise_m * generator.normal(0, 1, len(distance)).astype(np.float32)
    # The sensor compensates for distance and for most of the angle. An eighth of the intensities is multiplied by a
    # random factor from 0 to 1.
    intensity = reflectivity * (0.7 + 0.3 * np.sqrt(cosine))
    intensity *= np.minimum(generator.random(len(distance), np.float32) * 8, 1)
    intensity = np.clip(np.round(intensity, 2), 0, 0.99)
    points = np.concatenate([rays.origin + direction * distance[:, None], intensity[:, None]], axis=1)
    # Small-scale roughness: grit and grass.
    grass = np.float32(generator.uniform(0.002, 0.012))
    rough = np.where(instance == GROUND, np.where(material == 1, grass, np.float32(0.002)), np.float32(0))
    points[:, 2] += rough * generator.normal(0, 1, len(points)).astype(np.float32)
    return points[kept].astype(np.float32), instance[kept]


def _inside(points: Floats, instance: NDArray[np.int16], placed: Sequence[PlacedShape]) -> NDArray[np.bool_]:
    """(N,): whether points (N, 3) are inside the BEV outline of their object, at least 5 cm from its sides."""
    table = np.array([[item.x, item.y, item.yaw, *item.shape.size] for item in placed], np.float32)[instance]
    offset = points[:, :2] - table[:, :2]
    cosine, sine = np.cos(table[:, 2]), np.sin(table[:, 2])
    along, across = offset[:, 0] * cosine + offset[:, 1] * sine, offset[:, 1] * cosine - offset[:, 0] * sine
    half = table[:, 3:5] / 2 - np.float32(0.05)
    within: NDArray[np.bool_] = (np.abs(along) < half[:, 0]) & (np.abs(across) < half[:, 1])
    return within


def _random_mounting(generator: np.random.Generator) -> Floats:
    """LiDAR to camera as on KITTI's vehicle, with small random differences like those between its calibrations."""
    axes = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float64)
    roll, pitch, yaw = np.deg2rad(generator.normal(0, (0.3, 0.4, 0.3)))
    small = np.array([[1, -roll, yaw], [roll, 1, -pitch], [-yaw, pitch, 1]])
    u, _, v = np.linalg.svd(small)
    transform = np.eye(4)
    transform[:3, :3] = u @ v @ axes
    transform[:3, 3] = (0.055, -0.075, -0.27)
    return transform.astype(np.float32)


def _truth(
    placed: Sequence[PlacedShape],
    heights: Floats,
    counts: NDArray[np.int64],
    visibility: dict[int, tuple[int, int]],
    camera: Camera,
) -> Boxes3D:
    """The boxes of the target classes, with truncation, occlusion and 2D boxes as KITTI defines them.

    Occlusion depends on the visible fraction of the object's own silhouette: above 0.8 fully visible (0), above 0.4
    partly (1), above 0.1 largely occluded (2), else unknown (3), which is in none of the benchmark's difficulties.
    Truncation is the fraction of its projected box outside the image.
    """
    kept = [
        number
        for number, item in enumerate(placed)
        if item.shape.name and (counts[number] > 0 or visibility.get(number, (0, 0))[1] > 0)
    ]
    size = np.array([placed[i].shape.size for i in kept], np.float32).reshape(-1, 3)
    centre = np.array([[placed[i].x, placed[i].y, heights[i]] for i in kept], np.float32).reshape(-1, 3)
    centre[:, 2] += size[:, 2] / 2
    boxes = Boxes3D(
        centre_lidar_m=centre,
        size_m=size,
        yaw=np.array([placed[i].yaw for i in kept], np.float32),
        names=tuple(str(placed[i].shape.name) for i in kept),
        point_counts=counts[kept].astype(np.int64),
    )
    height, width = camera.image_HWC.shape[:2]
    box_2d, truncation = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, (height, width))
    total, shown = np.array([visibility.get(i, (0, 0)) for i in kept], np.float32).reshape(-1, 2).T
    fraction = shown / np.maximum(total, 1)
    occlusion = np.select([fraction > 0.8, fraction > 0.4, fraction > 0.1], [0, 1, 2], 3).astype(np.int64)
    return replace(boxes, truncation=truncation, occlusion=occlusion, box_2d=box_2d)
