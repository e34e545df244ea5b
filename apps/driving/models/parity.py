"""Whether the fast path of a detector computes what mmdet3d's own forward pass does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import CameraNetwork, network_of
from apps.driving.types import Camera, LidarInput
from shared.errors import InvalidInputError

TOLERANCE = 1e-3
_POINTS = 20_000
_IMAGE = (192, 512)
_ALIGNED = 64


def parity(model: MMDet3DModel, detector: nn.Module) -> dict[str, Any]:
    """Both ways on one input of random numbers; what was compared and found, in JSON types.

    Compared are the maps that the head decodes: boxes are chosen by scores that may tie. Where they differ by more than
    ``TOLERANCE`` of a map's largest value, ``is_equal`` says that the fast path is not to be used. Refuses a network
    whose maps are not finite.
    """
    found: list[tuple[list[Tensor], int]] = []
    input = model.input()
    with torch.inference_mode(), without_priors(detector):
        for fast in (False, True):
            network = network_of(model, detector, fast=fast)
            if isinstance(network, CameraNetwork):
                _see_small(network)
            with recorded_maps(network.detector) as maps:
                if isinstance(network, CameraNetwork):
                    boxes, _, _ = network.predict(random_camera())
                else:
                    assert isinstance(input, LidarInput)
                    boxes, _, _ = network.predict(random_sweep(input))
            found.append((maps, len(boxes)))
    (own, own_boxes), (other, other_boxes) = found
    if not all(bool(part.isfinite().all()) for part in own):
        raise InvalidInputError(
            f"the network of {model.config} gives numbers that are not finite: its weights or variances are out of "
            "bounds, as of a training that diverged; import the checkpoint of an epoch before that"
        )
    largest = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in zip(own, other, strict=True))
    return {
        "compared": "the maps that the head decodes, mmdet3d's own forward pass and the fast path, on random numbers",
        "largest_relative_difference": float(f"{largest:.2g}"),
        "maps": len(own),
        "boxes": {"mmdet3d": own_boxes, "fast_path": other_boxes},
    }


def _see_small(network: CameraNetwork) -> None:
    """Has a network see the random image at about its own size: it computes each part of an image alike, and one of
    3840 x 2160 pixels for minutes."""
    network.resize = None
    if network.affine is not None:
        wide, high, stride = network.affine
        # The rest stays: sides that its layers cannot halve are refused on import.
        network.affine = (_IMAGE[1] + wide % _ALIGNED, _IMAGE[0] + high % _ALIGNED, stride)


def is_equal(found: Mapping[str, Any]) -> bool:
    """Whether what ``parity`` found lets the fast path stand for mmdet3d's forward pass."""
    return bool(found["largest_relative_difference"] < TOLERANCE)


@contextmanager
def without_priors(detector: nn.Module) -> Iterator[None]:
    """FCOS3D's coder, and PGD's, without means of depth and size while it is open.

    It takes those of each pixel's best class into the map, and of classes whose scores are nearly alike the rounding of
    sums decides which that is: more pixels and classes, more such differences.
    """
    head: Any = getattr(detector, "bbox_head", None)
    coder = getattr(head, "bbox_coder", None)
    # SMOKE's has base_depth, and takes its means after the maps.
    names = ("base_depths", "base_dims") if hasattr(coder, "base_depths") else ()
    kept = {name: getattr(coder, name) for name in names}
    for name in kept:
        setattr(coder, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(coder, name, value)


@contextmanager
def recorded_maps(detector: nn.Module) -> Iterator[list[Tensor]]:
    """Collects copies of the maps that the detector's head is given to decode, in their order, while it is open."""
    head: Any = getattr(detector, "pts_bbox_head", None) or detector.bbox_head
    decode = head.predict_by_feat
    maps: list[Tensor] = []

    def recording(*arguments: Any, **settings: Any) -> Any:
        # Copies: the heads of mmdet3d write into their maps.
        maps.extend(value.clone() for value in _tensors((arguments, settings)))
        return decode(*arguments, **settings)

    head.predict_by_feat = recording
    try:
        yield maps
    finally:
        del head.predict_by_feat


def _tensors(nested: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and dictionaries."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _tensors(value)


def random_sweep(input: LidarInput) -> Tensor:
    """(20000, 4) points anywhere in the range, of any intensity."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(input.range_m[:3]), torch.tensor(input.range_m[3:])
    numbers = torch.rand(_POINTS, 4, generator=generator)
    return torch.cat([low + numbers[:, :3] * (high - low), numbers[:, 3:]], dim=1)


def random_camera() -> Camera:
    """An image of 512 x 192 random pixels, with the intrinsics of a wide camera."""
    height, width = _IMAGE
    return Camera(
        image_HWC=np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8),
        intrinsics=np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]], np.float32),
        lidar_to_camera=np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32),
    )
