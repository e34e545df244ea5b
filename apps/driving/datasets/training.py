"""Data sets of packed synthetic scenes, augmented on the fly: sweeps for LiDAR networks, images for camera networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.driving.datasets.packing import PART, Pack
from apps.driving.models.structures import to_camera_boxes
from shared.data.dataset import Batch
from shared.data.order import Indices, Key

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepAugmentation:
    """Mirroring left and right, turning and scaling the whole scene, lifting it, and losing points."""

    mirror: float = 0.5
    turn_rad: float = np.pi / 4
    scale: float = 0.05
    lift_m: float = 0.1
    most_lost: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarScenes:
    """Synthetic sweeps of the forward half circle. Boxes with fewer than ``fewest_points`` returns are not learnt.

    ``intensity=False`` shows the network zeros in place of the intensity, which differs more between sensors than
    shapes do.
    """

    scenes: int = 4000
    validation_scenes: int = 128
    seed: int = 7
    range_m: tuple[float, float, float, float, float, float] = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
    fewest_points: int = 5
    field_of_view_deg: float = 180.0
    intensity: bool = True
    augmentation: SweepAugmentation = field(default_factory=SweepAugmentation)

    def train(self, input: Any = None) -> Sweeps:
        return Sweeps(self, self._pack("train", self.scenes))

    def validation(self, input: Any = None) -> Sweeps:
        return Sweeps(self, self._pack("validation", self.validation_scenes))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": f"{self.scenes} synthetic LiDAR scenes (ray-cast, exact boxes); {self.validation_scenes} "
            "others for validation",
            "synthetic": True,
            "scenes": self.scenes,
            "seed": self.seed,
        }

    def _pack(self, split: str, count: int) -> Pack:
        return Pack(count=count, seed=self.seed, split=split, field_of_view_deg=self.field_of_view_deg)


class Sweeps:
    """Batches of ``points``, ``boxes`` and ``labels``: lists of tensors (N, 4), (M, 7) and (M,); ``index`` (B,)."""

    def __init__(self, config: LidarScenes, pack: Pack) -> None:
        self.config, self.count = config, pack.count
        parts = pack.parts()
        self.points = [np.load(part / "points.npy", mmap_mode="r") for part in parts]
        self.tables = [dict(np.load(part / "index.npz")) for part in parts]

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> tuple[Floats, Floats]:
        """Points (N, 4) and table (M, 15; see ``packing.rows``) of one scene as it was made."""
        part, place = divmod(int(index), PART)
        table = self.tables[part]
        start, stop = table["point_offsets"][place : place + 2]
        first, last = table["truth_offsets"][place : place + 2]
        return np.array(self.points[part][start:stop]), table["truth"][first:last].copy()

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        samples = [self._sample(int(index), key) for index in indices]
        return {
            "points": [torch.from_numpy(points) for points, _, _ in samples],
            "boxes": [torch.from_numpy(boxes) for _, boxes, _ in samples],
            "labels": [torch.from_numpy(labels) for _, _, labels in samples],
            "index": torch.tensor(indices.tolist()),
        }

    def _sample(self, index: int, key: Key | None) -> tuple[Floats, Floats, NDArray[np.int64]]:
        points, table = self.scene(index)
        table = table[table[:, 8] >= self.config.fewest_points]
        boxes, labels = table[:, :7].copy(), table[:, 7].astype(np.int64)
        if key is not None:
            points, boxes = augment_sweep(points, boxes, self.config.augmentation, key.generator(index))
        points = shown(points, self.config)
        kept = within(boxes, self.config.range_m)
        return points, boxes[kept], labels[kept]


def shown(points: Floats, config: LidarScenes) -> Floats:
    """Points (N, 4) as the network is to see them: those in its range, with or without their intensity."""
    points = points.compress(within(points, config.range_m), axis=0)
    if not config.intensity:
        points[:, 3] = 0
    return points


def within(points: Floats, range_m: tuple[float, ...]) -> NDArray[np.bool_]:
    """(N,) whether x, y, z (the first three columns) lie in a range of x, y, z from and to."""
    inside = np.ones(len(points), bool)
    # Column by column: several times as fast as all three at once.
    for column, low, high in zip(points.T, range_m[:3], range_m[3:], strict=False):
        inside &= (column >= low) & (column < high)
    return inside


def augment_sweep(
    points: Floats, boxes: Floats, how: SweepAugmentation, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Points (N, 4) and boxes (M, 7) of one scene, changed alike; the points in a new order."""
    mirror = generator.random() < how.mirror
    turn = generator.uniform(-how.turn_rad, how.turn_rad)
    scale = generator.uniform(1 - how.scale, 1 + how.scale)
    lift = generator.uniform(-how.lift_m, how.lift_m)
    kept = len(points) - int(generator.uniform(0, how.most_lost) * len(points))
    points = points.take(generator.permutation(len(points))[:kept], axis=0)
    cosine, sine = np.cos(turn), np.sin(turn)
    side = -1.0 if mirror else 1.0
    plane = (scale * np.array([[cosine, sine], [-sine * side, cosine * side]])).astype(np.float32)
    for places in (points, boxes):
        places[:, :2] = places[:, :2] @ plane
        places[:, 2] = places[:, 2] * scale + lift
    boxes[:, 3:6] *= scale
    boxes[:, 6] = np.mod(side * boxes[:, 6] + turn + np.pi, 2 * np.pi) - np.pi
    return points, boxes


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageAugmentation:
    """Mirroring, coming nearer, tilting, and changes of brightness, contrast, colour and noise, as shares of the whole.

    ``nearer`` is the largest change of scale: what is seen 1.2 times as large is 1.2 times as near for a camera of
    the same focal length. ``tilt`` moves the image up or down, by a share of its height, and the principal point with
    it, so that the row in which an object stands does not tell its depth.
    """

    mirror: float = 0.5
    nearer: float = 0.25
    tilt: float = 0.08
    brightness: float = 0.25
    contrast: float = 0.3
    colour: float = 0.1
    noise: float = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraScenes:
    """Synthetic images at ``image_scale`` of KITTI's. What is cut off or hidden by more than half is not learnt.

    ``shortest_px`` is the least height of an object's 2D box at that scale, ``farthest_m`` its greatest depth.
    """

    scenes: int = 6000
    validation_scenes: int = 128
    seed: int = 11
    image_scale: float = 0.5
    shortest_px: float = 8.0
    farthest_m: float = 60.0
    augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)

    def train(self, input: Any = None) -> Images:
        return Images(self, self._pack("train", self.scenes))

    def validation(self, input: Any = None) -> Images:
        return Images(self, self._pack("validation", self.validation_scenes))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": f"{self.scenes} synthetic camera images (rendered, exact boxes); {self.validation_scenes} "
            "others for validation",
            "synthetic": True,
            "scenes": self.scenes,
            "seed": self.seed,
        }

    def _pack(self, split: str, count: int) -> Pack:
        return Pack(count=count, seed=self.seed, split=split, field_of_view_deg=90.0, image_scale=self.image_scale)


class Images:
    """Batches of ``images`` (B, 3, H, W) uint8 RGB and ``intrinsics`` (B, 3, 3), with lists for each image's objects.

    ``boxes_camera`` (M, 7), ``labels`` (M,), ``boxes_2d`` (M, 4), ``centres_2d`` (M, 2), ``depths`` (M,), and
    ``index`` (B,).
    """

    def __init__(self, config: CameraScenes, pack: Pack) -> None:
        self.config, self.count = config, pack.count
        parts = pack.parts()
        self.images = [np.load(part / "images.npy", mmap_mode="r") for part in parts]
        self.tables = [dict(np.load(part / "index.npz")) for part in parts]

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> tuple[NDArray[np.uint8], Floats, Floats, Floats]:
        """Image (H, W, 3), intrinsics (3, 3), LiDAR to camera (4, 4) and table (M, 15) of one scene as it was made."""
        part, place = divmod(int(index), PART)
        table = self.tables[part]
        first, last = table["truth_offsets"][place : place + 2]
        mount, intrinsics = table["lidar_to_camera"][place], table["intrinsics"][place]
        return np.array(self.images[part][place]), intrinsics.copy(), mount, table["truth"][first:last].copy()

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        samples = [self._sample(int(index), key) for index in indices]
        lists = ("boxes_camera", "labels", "boxes_2d", "centres_2d", "depths")
        batch: Batch = {name: [torch.from_numpy(sample[name]) for sample in samples] for name in lists}
        batch |= {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in ("images", "intrinsics")}
        batch["index"] = torch.tensor(indices.tolist())
        return batch

    def _sample(self, index: int, key: Key | None) -> dict[str, Any]:
        image, intrinsics, mount, table = self.scene(index)
        boxes = to_camera_boxes(table[:, :7], mount)
        generator = None if key is None else key.generator(index)
        if generator is not None:
            image = moved(image, intrinsics, boxes, table[:, 11:15], self.config.augmentation, generator)
        projected = boxes[:, :3] @ intrinsics.T
        centres = projected[:, :2] / np.maximum(projected[:, 2:], 1e-3)
        height, width = image.shape[:2]
        seen = (boxes[:, 2] > 1) & (boxes[:, 2] < self.config.farthest_m)
        seen &= ((centres >= 0) & (centres < (width, height))).all(axis=1)
        seen &= (table[:, 14] - table[:, 12] >= self.config.shortest_px) & (table[:, 10] < 2) & (table[:, 9] < 0.5)
        boxes, centres, boxes_2d = boxes[seen], centres[seen], table[seen, 11:15]
        if generator is not None:
            if generator.random() < self.config.augmentation.mirror:
                image = image[:, ::-1]
                intrinsics[0, 2] = width - 1 - intrinsics[0, 2]
                boxes[:, 0] *= -1
                boxes[:, 6] = np.mod(np.pi - boxes[:, 6] + np.pi, 2 * np.pi) - np.pi
                centres[:, 0] = width - 1 - centres[:, 0]
                boxes_2d = np.concatenate(
                    [width - 1 - boxes_2d[:, 2:3], boxes_2d[:, 1:2], width - 1 - boxes_2d[:, :1], boxes_2d[:, 3:]], 1
                )
            image = recolour(image, self.config.augmentation, generator)
        return {
            "images": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "intrinsics": intrinsics,
            "boxes_camera": boxes,
            "labels": table[seen, 7].astype(np.int64),
            "boxes_2d": np.ascontiguousarray(boxes_2d),
            "centres_2d": centres.astype(np.float32),
            "depths": boxes[:, 2].copy(),
        }


def moved(
    image_HWC: NDArray[np.uint8],
    intrinsics: Floats,
    boxes_camera: Floats,
    boxes_2d: Floats,
    how: ImageAugmentation,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """The image seen from nearer or further and tilted; changes the principal point, the boxes and the 2D boxes alike.

    An object keeps its offsets across the viewing direction, its size and the angle under which it is seen; its depth
    changes with the scale. What comes into the image from beyond its edge repeats the edge.
    """
    import cv2

    height, width = image_HWC.shape[:2]
    scale = float(np.exp(generator.uniform(-1, 1) * np.log1p(how.nearer)))
    shift = float(generator.uniform(-how.tilt, how.tilt)) * height
    centre = intrinsics[:2, 2].copy()
    offset = centre * (1 - scale) + (0, shift)
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    image = cv2.warpAffine(
        np.ascontiguousarray(image_HWC),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    intrinsics[1, 2] += shift
    before = np.arctan2(boxes_camera[:, 0], boxes_camera[:, 2])
    boxes_camera[:, 2] /= scale
    turned = boxes_camera[:, 6] - before + np.arctan2(boxes_camera[:, 0], boxes_camera[:, 2])
    boxes_camera[:, 6] = np.mod(turned + np.pi, 2 * np.pi) - np.pi
    boxes_2d[:] = (boxes_2d * scale + np.tile(offset, 2)).clip(0, (width - 1, height - 1) * 2)
    return image


def recolour(image_HWC: NDArray[np.uint8], how: ImageAugmentation, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The image under other light: a gain for each channel, an offset, and noise."""
    gain = 1 + generator.uniform(-how.contrast, how.contrast) + generator.uniform(-how.colour, how.colour, 3)
    offset = 255 * generator.uniform(-how.brightness, how.brightness) / 2
    spread = 255 * generator.uniform(0, how.noise)
    noise = generator.standard_normal(image_HWC.shape[:2], np.float32) * np.float32(spread)
    mean = image_HWC.mean(dtype=np.float32)
    changed = (image_HWC - mean) * gain.astype(np.float32) + np.float32(mean + offset) + noise[..., None]
    return np.clip(changed, 0, 255).astype(np.uint8)
