"""Batches of packed images for camera networks: the choice of objects to train on, and the augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.driving.adapters.projection import to_camera_boxes
from apps.driving.datasets.packing import BOX_2D, CLASS, OCCLUSION, RETURNS, TRUNCATION, Pack
from apps.driving.datasets.sampling import ImageSampling
from apps.driving.datasets.sweeps import class_numbers
from apps.driving.types import CameraInput, Floats, wrap_angle
from shared.data.dataset import Batch
from shared.data.order import Indices, Key


class Images:
    """Batches of ``images`` uint8 RGB, (B, 3, H, W) or a list of (3, H, W) if sizes differ, ``intrinsics`` (B, 3, 3)
    and ``index`` (B,), with lists for the objects of each image: ``boxes_camera`` (M, 7), ``labels`` (M,), ``boxes_2d``
    (M, 4), ``centres_2d`` (M, 2), ``depths`` (M,).
    """

    def __init__(self, pack: Pack, input: CameraInput, sampling: ImageSampling, merge: Mapping[str, str]) -> None:
        self.pack, self.sampling = pack, sampling
        self.classes = tuple((kind.name, kind.reach_m) for kind in input.classes)
        self.numbers = class_numbers(pack.names, merge, input.classes)

    def __len__(self) -> int:
        return len(self.pack)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        samples = [self._sample(int(index), key) for index in indices]
        lists = ("boxes_camera", "labels", "boxes_2d", "centres_2d", "depths", "images")
        batch: Batch = {name: [torch.from_numpy(sample[name]) for sample in samples] for name in lists}
        if len({image.shape for image in batch["images"]}) == 1:
            batch["images"] = torch.stack(batch["images"])
        batch["intrinsics"] = torch.from_numpy(np.stack([sample["intrinsics"] for sample in samples]))
        batch |= {"index": torch.tensor(indices.tolist()), "classes": self.classes}
        return batch

    def _sample(self, index: int, key: Key | None) -> dict[str, Any]:
        image, intrinsics, lidar_to_camera, table = self.pack.image(index)
        labels = self.numbers[table[:, CLASS].astype(np.int64)]
        # An object without LiDAR returns is hidden. Without a LiDAR the number of returns is unknown, which is -1.
        usable = (labels >= 0) & (table[:, RETURNS] != 0)
        usable &= (table[:, OCCLUSION] < 2) & (table[:, TRUNCATION] < 0.5)
        table, labels = table[usable], labels[usable]
        boxes, boxes_2d = to_camera_boxes(table[:, :7], lidar_to_camera), table[:, BOX_2D].copy()
        generator = None if key is None else key.generator(index)
        if generator is not None:
            image = zoom_and_tilt(image, intrinsics, boxes, boxes_2d, self.sampling, generator)
        projected = boxes[:, :3] @ intrinsics.T
        centres = projected[:, :2] / np.maximum(projected[:, 2:], 1e-3)
        height, width = image.shape[:2]
        visible = (boxes[:, 2] > 1) & (boxes[:, 2] < self.sampling.farthest_m)
        visible &= ((centres >= 0) & (centres < (width, height))).all(axis=1)
        visible &= boxes_2d[:, 3] - boxes_2d[:, 1] >= self.sampling.shortest_px
        boxes, centres, boxes_2d = boxes[visible], centres[visible], boxes_2d[visible]
        if generator is not None:
            if generator.random() < self.sampling.mirror:
                image = image[:, ::-1]
                intrinsics[0, 2] = width - 1 - intrinsics[0, 2]
                boxes[:, 0] *= -1
                boxes[:, 6] = wrap_angle(np.pi - boxes[:, 6])
                centres[:, 0] = width - 1 - centres[:, 0]
                boxes_2d = np.concatenate(
                    [width - 1 - boxes_2d[:, 2:3], boxes_2d[:, 1:2], width - 1 - boxes_2d[:, :1], boxes_2d[:, 3:]], 1
                )
            image = change_colours(image, self.sampling, generator)
        return {
            "images": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "intrinsics": intrinsics,
            "boxes_camera": boxes,
            "labels": labels[visible],
            "boxes_2d": np.ascontiguousarray(boxes_2d),
            "centres_2d": centres.astype(np.float32),
            "depths": boxes[:, 2].copy(),
        }


def zoom_and_tilt(
    image_HWC: NDArray[np.uint8],
    intrinsics: Floats,
    boxes_camera: Floats,
    boxes_2d: Floats,
    sampling: ImageSampling,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """The image zoomed and tilted. Changes the principal point, the boxes and the 2D boxes in place.

    An object keeps its lateral offsets, its size and its observation angle; its depth changes with the scale. Pixels
    from beyond the border repeat the border.
    """
    import cv2

    height, width = image_HWC.shape[:2]
    scale = float(np.exp(generator.uniform(-1, 1) * np.log1p(sampling.nearer)))
    shift = float(generator.uniform(-sampling.tilt, sampling.tilt)) * height
    centre = intrinsics[:2, 2].copy()
    offset = centre * (1 - scale) + (0, shift)
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    image: NDArray[np.uint8] = cv2.warpAffine(
        np.ascontiguousarray(image_HWC),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    intrinsics[1, 2] += shift
    bearing = np.arctan2(boxes_camera[:, 0], boxes_camera[:, 2])
    boxes_camera[:, 2] /= scale
    yaw = boxes_camera[:, 6] - bearing + np.arctan2(boxes_camera[:, 0], boxes_camera[:, 2])
    boxes_camera[:, 6] = wrap_angle(yaw)
    boxes_2d[:] = (boxes_2d * scale + np.tile(offset, 2)).clip(0, (width - 1, height - 1) * 2)
    return image


def change_colours(
    image_HWC: NDArray[np.uint8], sampling: ImageSampling, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """The image under different light: a gain for each channel, an offset, and noise."""
    gain = (
        1
        + generator.uniform(-sampling.contrast, sampling.contrast)
        + generator.uniform(-sampling.colour, sampling.colour, 3)
    )
    offset = 255 * generator.uniform(-sampling.brightness, sampling.brightness) / 2
    sigma = 255 * generator.uniform(0, sampling.noise)
    noise = generator.standard_normal(image_HWC.shape[:2], np.float32) * np.float32(sigma)
    mean = image_HWC.mean(dtype=np.float32)
    changed = (image_HWC - mean) * gain.astype(np.float32) + np.float32(mean + offset) + noise[..., None]
    clipped: NDArray[np.uint8] = np.clip(changed, 0, 255).astype(np.uint8)
    return clipped
