"""A camera detector of mmdet3d in a configuration of the user's own: its settings, which must fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own_settings import (
    CAMERA_DETECTORS,
    SHORT_M,
    check_classes,
    checked_settings,
    metres,
    part_settings,
)
from apps.driving.types import CameraInput, ObjectClass
from shared.errors import InvalidInputError

_MAX_PIXELS = 1 << 23
"""Of an image after its resize: those of 3840 x 2160."""
_MIN_SIDE = 32
_MIN_FACTOR, _MAX_FACTOR = 0.05, 4.0
_PADDED_TO = 32
_ASSUMED_SIZE_M, _ASSUMED_BOTTOM_M = (4.0, 1.8, 1.6), -1.7


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResize:
    """mmcv's ``Resize``: to ``scale`` (width, height), within it where ``keep_ratio``; or by ``factor`` of both."""

    scale: tuple[int, int] | None = None
    factor: tuple[float, float] = (1.0, 1.0)
    keep_ratio: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None:
            _check_pixels("Resize", *self.scale)
        if not all(_MIN_FACTOR <= one <= _MAX_FACTOR for one in self.factor):
            raise InvalidInputError(
                f"Resize by {self.factor}; factors from {_MIN_FACTOR:g} to {_MAX_FACTOR:g} are taken"
            )

    def in_words(self) -> str:
        """As a sentence has it: an image is resized so."""
        if self.scale is not None:
            return f"{'within' if self.keep_ratio else 'to'} {self.scale[0]} x {self.scale[1]} pixels"
        return f"by {' and '.join(f'{one:g}' for one in sorted(set(self.factor)))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnCamera:
    """What the configuration that a camera detector was trained by says of its network, in JSON types.

    ``model`` are mmdet3d's settings without those of training, ``classes`` the names in the order of its labels.
    ``resize`` is what its test does to an image, None where it sees it as it is; ``affine`` (width, height, stride) is
    SMOKE's. ``focal_px`` is the focal length in pixels at which it saw images, after their resize, where the user said
    so: to be trained further. Raises ``InvalidInputError`` where a part is not known here, or does not fit the others.
    """

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    resize: ImageResize | None = None
    affine: tuple[int, int, int] | None = None
    focal_px: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", checked_settings(self.model, CAMERA_DETECTORS))
        object.__setattr__(self, "classes", tuple(name.lower() for name in self.classes))
        head = part_settings(self.model, "bbox_head")
        check_classes(self.classes, head.get("num_classes"))
        if (sizes := self._base_sizes()) is not None and len(sizes) != len(self.classes):
            raise InvalidInputError(
                f"its coder has base_dims of {len(sizes)} classes; its head tells {len(self.classes)} apart"
            )
        self._check_affine()

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps that its head decodes, in pixels of the image after its resize."""
        if self.affine is not None:
            return (self.affine[2],)
        found = part_settings(self.model, "bbox_head").get("strides")
        return tuple(found) if isinstance(found, list) else ()

    def camera_input(self) -> CameraInput:
        """What the network sees, each camera at its own focal length, and looks for."""
        wide, high = (self.affine or (self.resize and self.resize.scale) or CameraInput().image[::-1])[:2]
        image = (-(-high // _PADDED_TO) * _PADDED_TO, -(-wide // _PADDED_TO) * _PADDED_TO)
        return CameraInput(image=image, focal_px=None, classes=self._object_classes())

    def has_base_sizes(self) -> bool:
        """Whether its coder has a size for each class."""
        return self._base_sizes() is not None

    def _object_classes(self) -> tuple[ObjectClass, ...]:
        sizes = self._base_sizes()
        if sizes is None:
            return tuple(
                ObjectClass(name=name, size_m=_ASSUMED_SIZE_M, bottom_m=_ASSUMED_BOTTOM_M) for name in self.classes
            )
        return tuple(
            ObjectClass(
                name=name,
                size_m=(length, width, height),
                bottom_m=_ASSUMED_BOTTOM_M,
                reach_m=0.5 if length <= SHORT_M else 1.0,
            )
            for name, (length, height, width) in zip(self.classes, sizes, strict=True)
        )

    def _base_sizes(self) -> list[tuple[float, ...]] | None:
        """Length, height and width of each class, which the network's sizes are relative to."""
        coder = part_settings(self.model, "bbox_head").get("bbox_coder")
        found = coder.get("base_dims") if isinstance(coder, Mapping) else None
        if found is None:
            return None
        if not isinstance(found, list):
            raise InvalidInputError(f"base_dims is {found}; expected length, height and width of each class")
        sizes = [metres({"base_dims": one}, "base_dims", 3) for one in found]
        if not all(min(one) > 0 for one in sizes):
            raise InvalidInputError(f"base_dims is {found}; expected lengths, heights and widths above 0")
        return sizes

    def _check_affine(self) -> None:
        smoke = self.model["type"] == "SMOKEMono3D"
        if smoke != (self.affine is not None) or (smoke and self.resize is not None):
            raise InvalidInputError(
                "SMOKE's test pipeline resizes an image by AffineResize alone, those of FCOS3D and PGD by Resize; the "
                f"one of this {self.model['type']} {'has no' if smoke and self.affine is None else 'has another'}"
            )
        if self.affine is None:
            return
        wide, high, stride = self.affine
        _check_pixels("AffineResize", wide, high)
        if not 0 < stride <= _MIN_SIDE:
            raise InvalidInputError(f"AffineResize at a stride of {stride}; expected 1 to {_MIN_SIDE}")


def _check_pixels(step: str, wide: int, high: int) -> None:
    """Refuses images of a size that no camera network here sees."""
    if min(wide, high) < _MIN_SIDE or wide * high > _MAX_PIXELS:
        raise InvalidInputError(
            f"{step} to {wide} x {high} pixels; images from {_MIN_SIDE} pixels a side up to 3840 x 2160 are computed "
            "here"
        )
