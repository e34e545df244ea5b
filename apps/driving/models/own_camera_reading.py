"""Reads a camera network and its input from a configuration that mmengine dumped and a checkpoint's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apps.driving.models.own_camera import ImageResize, OwnCamera
from apps.driving.models.own_pipeline import (
    ParsedConfiguration,
    all_steps,
    class_names,
    dataset_settings,
    find_step,
    model_settings,
    type_name,
)
from shared.errors import InvalidInputError

_SUPPORTED_STEPS = (
    *("LoadImageFromFileMono3D", "LoadImageFromFile", "Resize", "AffineResize", "LoadAnnotations3D"),
    *("MultiScaleFlipAug3D", "RandomFlip3D", "Pack3DDetInputs"),
)
"""Steps of a test pipeline that are done here, or that do not change the image."""
_COLOUR_TYPES = ("color", "color_ignore_orientation")


def read_own_camera(
    settings: Mapping[str, Any], trained_classes: Sequence[str] | None, name: str
) -> ParsedConfiguration:
    """Reads the network and its images from ``settings``; ``name`` is the file's name for error messages.

    ``trained_classes`` are the classes in the checkpoint, None if it has none. Raises InvalidInputError for what does
    not run here.
    """
    dataset = dataset_settings(settings, name)
    steps = list(all_steps(dataset.get("pipeline") or settings.get("test_pipeline")))
    unsupported = sorted({type_name(step) for step in steps} - set(_SUPPORTED_STEPS))
    if unsupported:
        raise InvalidInputError(
            f"{name}: the test pipeline of its camera network has {', '.join(unsupported)}, which does not run here; "
            "only Resize and AffineResize do"
        )
    for step in steps:
        if step.get("color_type", "color") not in _COLOUR_TYPES:
            raise InvalidInputError(
                f"{name}: it reads images with color_type={step['color_type']!r}; only colour images are supported"
            )
    resize = find_step(steps, "Resize")
    own = OwnCamera(
        model=model_settings(settings, name),
        classes=class_names(trained_classes, dataset, settings, name),
        resize=None if resize is None else _image_resize(resize, name),
        affine=_affine_resize(find_step(steps, "AffineResize"), name),
    )
    return ParsedConfiguration(
        own=own,
        read=tuple(_read_notes(own, dataset, settings, trained_classes is not None)),
        assumed=tuple(_assumption_notes(own, steps)),
    )


def _read_notes(
    own: OwnCamera, dataset: Mapping[str, Any], settings: Mapping[str, Any], from_checkpoint: bool
) -> Iterator[str]:
    yield f"classes, from {'the checkpoint' if from_checkpoint else 'the configuration'}: {', '.join(own.classes)}"
    if own.affine is not None:
        yield f"images: {own.affine[0]} x {own.affine[1]} pixels, scaled to this width about the centre (AffineResize)"
    else:
        training_resize = find_step(list(all_steps(_training_dataset(settings).get("pipeline"))), "Resize")
        at_test = "not resized" if own.resize is None else f"resized {own.resize.as_text()}"
        yield f"images: {at_test}" + (
            "" if training_resize is None else f"; in training Resize had {_resize_text(training_resize)}"
        )
    yield f"strides: {', '.join(map(str, own.strides))}"
    yield f"data set: {type_name(dataset) or 'none'}"


def _assumption_notes(own: OwnCamera, steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not steps:
        yield "images are not resized: the configuration lists no test pipeline"
    if not own.has_base_sizes():
        yield "objects have a car's size (used only for training): the coder has no base_dims"


def _training_dataset(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return dataset_settings(settings, "", loaders=("train_dataloader",))


def _resize_text(step: Mapping[str, Any]) -> str:
    settings = {key: step[key] for key in ("scale", "scale_factor", "keep_ratio") if key in step}
    return ", ".join(f"{key}={value}" for key, value in settings.items())[:100]


def _image_resize(step: Mapping[str, Any], name: str) -> ImageResize | None:
    """The settings of mmcv's ``Resize``; None if it does not change the image."""
    if step.get("interpolation", "bilinear") != "bilinear" or step.get("backend", "cv2") != "cv2":
        raise InvalidInputError(f"{name}: Resize runs here only with cv2's bilinear interpolation")
    scale, factor, keep_ratio = step.get("scale"), step.get("scale_factor"), step.get("keep_ratio", False)
    if scale:
        width, height = _pair(scale, int, "scale", name)
        return ImageResize(scale=(int(width), int(height)), keep_ratio=bool(keep_ratio))
    factors = _pair(1.0 if factor is None else factor, int | float, "scale_factor", name)
    return None if factors == (1, 1) else ImageResize(factor=factors, keep_ratio=bool(keep_ratio))


def _affine_resize(step: Mapping[str, Any] | None, name: str) -> tuple[int, int, int] | None:
    """Width, height and stride of SMOKE's ``AffineResize``."""
    if step is None:
        return None
    stride = step.get("down_ratio")
    if not isinstance(stride, int) or isinstance(stride, bool):
        raise InvalidInputError(f"{name}: down_ratio of AffineResize is {stride}; expected one integer")
    width, height = _pair(step.get("img_scale"), int, "img_scale", name)
    return int(width), int(height), stride


def _pair(value: Any, kind: Any, key: str, name: str) -> tuple[float, float]:
    """Width and height from a setting of two numbers, or of one for both."""
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) == 2 and all(isinstance(item, kind) and not isinstance(item, bool) for item in pair):
        return pair[0], pair[1]
    raise InvalidInputError(f"{name}: {key} of its test pipeline is {str(value)[:60]}; expected width and height")
