"""The settings of an mmdet3d camera detector in the user's own configuration, checked for consistency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own_settings import (
    CAMERA_DETECTORS,
    check_classes,
    checked_settings,
    numbers_setting,
    object_class,
    part_settings,
)
from apps.driving.types import CameraInput, ObjectClass
from shared.errors import InvalidInputError

_MAX_PIXELS = 1 << 23
"""Maximum number of pixels of an image after its resize: about those of 3840 x 2160."""
_MIN_SIDE = 32
_MIN_FACTOR, _MAX_FACTOR = 0.05, 4.0
_PAD_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResize:
    """mmcv's ``Resize``: to ``scale`` (width, height), or to fit within it with ``keep_ratio``; else by ``factor`` (of
    width and height)."""

    scale: tuple[int, int] | None = None
    factor: tuple[float, float] = (1.0, 1.0)
    keep_ratio: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None:
            _check_pixels("Resize", *self.scale)
        if not all(_MIN_FACTOR <= factor <= _MAX_FACTOR for factor in self.factor):
            raise InvalidInputError(
                f"Resize by {self.factor}; factors from {_MIN_FACTOR:g} to {_MAX_FACTOR:g} are supported"
            )

    def as_text(self) -> str:
        """The resize as words that follow "resized"."""
        if self.scale is not None:
            return f"{'within' if self.keep_ratio else 'to'} {self.scale[0]} x {self.scale[1]} pixels"
        return f"by {' and '.join(f'{factor:g}' for factor in sorted(set(self.factor)))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnCamera:
    """The network of a camera detector that was trained with the user's own configuration, in JSON types.

    ``model`` are mmdet3d's settings without those of training, ``classes`` the class names in label order. ``resize``
    is the resize in its test pipeline, None if there is none; ``affine`` (width, height, stride) is SMOKE's.
    ``focal_px`` is the focal length in pixels of its training images after their resize, if the user gave it; it is
    needed for further training. Raises ``InvalidInputError`` if a part is not supported here or inconsistent with
    others.
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
                f"its coder has base_dims for {len(sizes)} classes, but its head has {len(self.classes)} classes"
            )
        self._check_affine()

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the maps that its head decodes, in pixels of the resized image."""
        if self.affine is not None:
            return (self.affine[2],)
        strides = part_settings(self.model, "bbox_head").get("strides")
        return tuple(strides) if isinstance(strides, list) else ()

    def camera_input(self) -> CameraInput:
        """The network's input: its image size and classes; each camera keeps its own focal length."""
        width, height = (self.affine or (self.resize and self.resize.scale) or CameraInput().image[::-1])[:2]
        image = (-(-height // _PAD_MULTIPLE) * _PAD_MULTIPLE, -(-width // _PAD_MULTIPLE) * _PAD_MULTIPLE)
        return CameraInput(image=image, focal_px=None, classes=self._object_classes())

    def has_base_sizes(self) -> bool:
        """Whether its coder has a mean size for each class."""
        return self._base_sizes() is not None

    def _object_classes(self) -> tuple[ObjectClass, ...]:
        sizes = self._base_sizes()
        if sizes is None:
            return tuple(map(object_class, self.classes))
        return tuple(
            object_class(name, (length, width, height))
            for name, (length, height, width) in zip(self.classes, sizes, strict=True)
        )

    def _base_sizes(self) -> list[tuple[float, ...]] | None:
        """Length, height and width of each class, which the predicted sizes are relative to; None if there are none."""
        coder = part_settings(self.model, "bbox_head").get("bbox_coder")
        base_dims = coder.get("base_dims") if isinstance(coder, Mapping) else None
        if base_dims is None:
            return None
        if not isinstance(base_dims, list):
            raise InvalidInputError(f"base_dims is {base_dims}; expected length, height and width of each class")
        sizes = [numbers_setting({"base_dims": size}, "base_dims", 3) for size in base_dims]
        if not all(min(size) > 0 for size in sizes):
            raise InvalidInputError(f"base_dims is {base_dims}; expected lengths, heights and widths above 0")
        return sizes

    def _check_affine(self) -> None:
        is_smoke = self.model["type"] == "SMOKEMono3D"
        if is_smoke != (self.affine is not None) or (is_smoke and self.resize is not None):
            raise InvalidInputError(
                "SMOKE's test pipeline must resize images with AffineResize only, and FCOS3D's and PGD's with Resize; "
                f"that of this {self.model['type']} has {'none' if is_smoke and self.affine is None else 'another'}"
            )
        if self.affine is None:
            return
        width, height, stride = self.affine
        _check_pixels("AffineResize", width, height)
        if not 0 < stride <= _MIN_SIDE:
            raise InvalidInputError(f"AffineResize has a stride of {stride}; expected 1 to {_MIN_SIDE}")


def _check_pixels(step: str, width: int, height: int) -> None:
    """Raises InvalidInputError for an image size that is not supported."""
    if min(width, height) < _MIN_SIDE or width * height > _MAX_PIXELS:
        raise InvalidInputError(
            f"{step} to {width} x {height} pixels; images from {_MIN_SIDE} pixels a side up to 3840 x 2160 are "
            "supported"
        )
