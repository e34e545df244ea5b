"""From a configuration that mmengine dumped, and the checkpoint's metadata, to a camera network and what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apps.driving.models.own_camera import ImageResize, OwnCamera
from apps.driving.models.own_pipeline import Reading, classes_of, dataset_of, model_of, step_of, steps_of, type_of
from shared.errors import InvalidInputError

_STEPS = (
    *("LoadImageFromFileMono3D", "LoadImageFromFile", "Resize", "AffineResize", "LoadAnnotations3D"),
    *("MultiScaleFlipAug3D", "RandomFlip3D", "Pack3DDetInputs"),
)
"""Steps of a test pipeline that are done here, or that leave the image as it is."""
_COLOURS = ("color", "color_ignore_orientation")


def read_own_camera(settings: Mapping[str, Any], trained_classes: Sequence[str] | None, name: str) -> Reading:
    """What ``settings`` say of the network, its images and its frames; ``name`` is that of the file in refusals.

    ``trained_classes`` are the checkpoint's own, None where it has none. Refuses what does not run here.
    """
    dataset = dataset_of(settings, name)
    steps = list(steps_of(dataset.get("pipeline") or settings.get("test_pipeline")))
    others = sorted({type_of(step) for step in steps} - set(_STEPS))
    if others:
        raise InvalidInputError(
            f"{name}: the test pipeline of its camera network has {', '.join(others)}, which does not run here on "
            "images; Resize and AffineResize do"
        )
    for step in steps:
        if step.get("color_type", "color") not in _COLOURS:
            raise InvalidInputError(f"{name}: its images are read as color_type={step['color_type']!r}, not in colour")
    resize = step_of(steps, "Resize")
    own = OwnCamera(
        model=model_of(settings, name),
        classes=classes_of(trained_classes, dataset, settings, name),
        resize=None if resize is None else _resize(resize, name),
        affine=_affine(step_of(steps, "AffineResize"), name),
    )
    return Reading(
        own=own,
        read=tuple(_read(own, dataset, settings, trained_classes is not None)),
        assumed=tuple(_assumed(own, steps)),
    )


def _read(
    own: OwnCamera, dataset: Mapping[str, Any], settings: Mapping[str, Any], from_checkpoint: bool
) -> Iterator[str]:
    yield f"classes, from {'the checkpoint' if from_checkpoint else 'the configuration'}: {', '.join(own.classes)}"
    if own.affine is not None:
        yield f"images: {own.affine[0]} x {own.affine[1]} pixels, as wide and centre on centre (AffineResize)"
    else:
        learnt = step_of(list(steps_of(_trained_on(settings).get("pipeline"))), "Resize")
        at_test = "as they are" if own.resize is None else f"resized {own.resize.in_words()}"
        yield f"images: {at_test}" + ("" if learnt is None else f"; in training Resize had {_said(learnt)}")
    yield f"strides: {', '.join(map(str, own.strides))}"
    yield f"data set: {type_of(dataset) or 'none'}"


def _assumed(own: OwnCamera, steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not steps:
        yield "images are seen as they are: the configuration lists no test pipeline"
    if not own.has_base_sizes():
        yield "objects are of a car's size (for training alone): the coder has no base_dims"


def _trained_on(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return dataset_of(settings, "", loaders=("train_dataloader",))


def _said(step: Mapping[str, Any]) -> str:
    kept = {key: step[key] for key in ("scale", "scale_factor", "keep_ratio") if key in step}
    return ", ".join(f"{key}={value}" for key, value in kept.items())[:100]


def _resize(step: Mapping[str, Any], name: str) -> ImageResize | None:
    """The settings of mmcv's ``Resize``; None for one that leaves the image as it is."""
    if step.get("interpolation", "bilinear") != "bilinear" or step.get("backend", "cv2") != "cv2":
        raise InvalidInputError(f"{name}: Resize runs here as cv2's bilinear alone")
    scale, factor, keep = step.get("scale"), step.get("scale_factor"), step.get("keep_ratio", False)
    if scale:
        wide, high = _pair(scale, int, "scale", name)
        return ImageResize(scale=(int(wide), int(high)), keep_ratio=bool(keep))
    factors = _pair(1.0 if factor is None else factor, int | float, "scale_factor", name)
    return None if factors == (1, 1) else ImageResize(factor=factors, keep_ratio=bool(keep))


def _affine(step: Mapping[str, Any] | None, name: str) -> tuple[int, int, int] | None:
    """Width, height and stride of SMOKE's ``AffineResize``."""
    if step is None:
        return None
    stride = step.get("down_ratio")
    if not isinstance(stride, int) or isinstance(stride, bool):
        raise InvalidInputError(f"{name}: down_ratio of AffineResize is {stride}; expected one integer")
    wide, high = _pair(step.get("img_scale"), int, "img_scale", name)
    return int(wide), int(high), stride


def _pair(value: Any, kind: Any, what: str, name: str) -> tuple[float, float]:
    """Two numbers of a setting, of width and height, or one that stands for both."""
    found = value if isinstance(value, list) else [value, value]
    if len(found) == 2 and all(isinstance(one, kind) and not isinstance(one, bool) for one in found):
        return found[0], found[1]
    raise InvalidInputError(f"{name}: {what} of its test pipeline is {str(value)[:60]}; expected width and height")
