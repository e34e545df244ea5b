"""Checks whether a detector's fast path computes the same as mmdet3d's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import CameraNetwork, network_of
from apps.driving.types import Camera, CameraInput, LidarInput
from shared.errors import InvalidInputError

TOLERANCE = 1e-3
_POINT_COUNT = 2_000
_IMAGE_SIZE = (128, 256)
_SIZE_MULTIPLE = 64


def parity(model: MMDet3DModel, detector: nn.Module) -> dict[str, Any]:
    """Runs both on one random input; returns the compared quantities and the differences, in JSON types.

    The maps that the head decodes are compared, not the boxes, which are chosen by scores that may tie. ``is_equal`` is
    False, and the fast path must not be used, if they differ by ``TOLERANCE`` of a map's largest value or more. Raises
    InvalidInputError if the network's maps are not finite.
    """
    results: list[tuple[list[Tensor], int]] = []
    with torch.inference_mode(), without_priors(detector), small_grid(model, detector) as input:
        for fast in (False, True):
            network = network_of(model, detector, fast=fast)
            if isinstance(network, CameraNetwork):
                _use_small_images(network)
            with recorded_maps(network.detector) as maps:
                if isinstance(network, CameraNetwork):
                    boxes, _, _ = network.predict(random_camera())
                else:
                    assert isinstance(input, LidarInput)
                    network.layout = replace(network.layout, quarter_turn=0)
                    boxes, _, _ = network.predict(random_sweep(input))
            results.append((maps, len(boxes)))
    (own_maps, own_boxes), (fast_maps, fast_boxes) = results
    if not all(bool(part.isfinite().all()) for part in own_maps):
        raise InvalidInputError(
            f"the network of {model.config} outputs values that are not finite: its weights or variances are out of "
            "range, as after a training that diverged; import a checkpoint from an earlier epoch"
        )
    largest = max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in zip(own_maps, fast_maps, strict=True)
    )
    return {
        "compared": "the maps that the head decodes, mmdet3d's own forward pass and the fast path, on random numbers",
        "largest_relative_difference": float(f"{largest:.2g}"),
        "maps": len(own_maps),
        "boxes": {"mmdet3d": own_boxes, "fast_path": fast_boxes},
    }


def _use_small_images(network: CameraNetwork) -> None:
    """Lets a network keep about the size of the random image: it treats all parts of an image alike, and 3840 x 2160
    pixels would take minutes."""
    network.resize = None
    if network.affine is not None:
        width, height, stride = network.affine
        # The remainders are kept, so that sides that its layers cannot halve are refused on import.
        network.affine = (_IMAGE_SIZE[1] + width % _SIZE_MULTIPLE, _IMAGE_SIZE[0] + height % _SIZE_MULTIPLE, stride)


@contextmanager
def small_grid(model: MMDet3DModel, detector: nn.Module) -> Iterator[LidarInput | CameraInput]:
    """Reduces a LiDAR detector's range to 64 x 64 pillars or more within the context, whose value is the input, with
    the reduced range in the network's axes.

    Its convolutions treat all parts of the grid alike, and would take seconds on a grid of 512 x 512. The minima
    stay, to which the pillars' centres refer, and so do the remainders, so that grids that its layers cannot halve are
    refused on import. CenterPoint's map keeps the cells for its largest number of boxes. A camera's input stays as it
    is.
    """
    input = model.input()
    if not isinstance(input, LidarInput):
        yield input
        return
    network: Any = detector
    voxels = network.data_preprocessor.voxel_layer
    canvas = getattr(network, "pts_middle_encoder", None) or network.middle_encoder
    full_range, shape = voxels.point_cloud_range, (canvas.ny, canvas.nx)
    coder: Any = getattr(getattr(network, "pts_bbox_head", None), "bbox_coder", None)
    if hasattr(coder, "out_size_factor"):
        least = max(_SIZE_MULTIPLE, coder.out_size_factor * math.sqrt(coder.max_num))
    else:
        least = _SIZE_MULTIPLE
    whole = math.ceil(least / _SIZE_MULTIPLE) * _SIZE_MULTIPLE
    rows, columns = (min(size, whole + size % _SIZE_MULTIPLE) for size in shape)
    x0, y0, z0, _, _, z1 = map(float, full_range)
    x1, y1 = x0 + columns * float(voxels.voxel_size[0]), y0 + rows * float(voxels.voxel_size[1])
    voxels.point_cloud_range = [x0, y0, z0, x1, y1, z1]
    canvas.ny, canvas.nx = rows, columns
    try:
        yield replace(input, range_m=(x0, y0, z0, x1, y1, z1))
    finally:
        voxels.point_cloud_range = full_range
        canvas.ny, canvas.nx = shape


def is_equal(result: Mapping[str, Any]) -> bool:
    """Whether the fast path may replace mmdet3d's forward pass, by the result of ``parity``."""
    return bool(result["largest_relative_difference"] < TOLERANCE)


@contextmanager
def without_priors(detector: nn.Module) -> Iterator[None]:
    """Removes the mean depths and sizes from FCOS3D's or PGD's coder within the context.

    The coder writes the means of each pixel's best class into the map. If classes score nearly the same, rounding
    decides which is best: the more pixels and classes, the more such differences.
    """
    head: Any = getattr(detector, "bbox_head", None)
    coder = getattr(head, "bbox_coder", None)
    # SMOKE's coder has base_depth, and applies its means after the maps.
    names = ("base_depths", "base_dims") if hasattr(coder, "base_depths") else ()
    priors = {name: getattr(coder, name) for name in names}
    for name in priors:
        setattr(coder, name, None)
    try:
        yield
    finally:
        for name, value in priors.items():
            setattr(coder, name, value)


@contextmanager
def recorded_maps(detector: nn.Module) -> Iterator[list[Tensor]]:
    """Collects copies of the maps that the detector's head decodes within the context, in order."""
    head: Any = getattr(detector, "pts_bbox_head", None) or detector.bbox_head
    decode = head.predict_by_feat
    maps: list[Tensor] = []

    def recording(*arguments: Any, **settings: Any) -> Any:
        # Cloned, because mmdet3d's heads write into their maps.
        maps.extend(value.clone() for value in _tensors((arguments, settings)))
        return decode(*arguments, **settings)

    head.predict_by_feat = recording
    try:
        yield maps
    finally:
        del head.predict_by_feat


def _tensors(nested: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and dictionaries, in order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _tensors(value)


def random_sweep(input: LidarInput) -> Tensor:
    """(2000, 4) points, uniformly distributed in the range and in intensity."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(input.range_m[:3]), torch.tensor(input.range_m[3:])
    numbers = torch.rand(_POINT_COUNT, 4, generator=generator)
    return torch.cat([low + numbers[:, :3] * (high - low), numbers[:, 3:]], dim=1)


def random_camera() -> Camera:
    """A random image of 256 x 128 pixels, with a wide-angle camera's intrinsics."""
    height, width = _IMAGE_SIZE
    return Camera(
        image_HWC=np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8),
        intrinsics=np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]], np.float32),
        lidar_to_camera=np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32),
    )
