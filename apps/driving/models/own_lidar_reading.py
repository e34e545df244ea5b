"""Reads a LiDAR network and its input from a configuration that mmengine dumped and a checkpoint's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apps.driving.models import AXES
from apps.driving.models.own import OwnConfiguration
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

_NUSCENES, _KITTI = "NuScenesDataset", "KittiDataset"
_SUPPORTED_STEPS = (
    *("LoadPointsFromFile", "LoadPointsFromMultiSweeps", "LoadAnnotations3D", "MultiScaleFlipAug3D"),
    *("GlobalRotScaleTrans", "RandomFlip3D", "PointsRangeFilter", "PointShuffle", "Pack3DDetInputs"),
)
"""Steps of a test pipeline that are done here, or that do not change the points."""
_ENCODER_LAYERS = ("voxel_encoder.pfn_layers.0", "voxel_encoder.vfe_layers.0")
_LINEAR_AND_NORM_NAMES = (("linear", "norm"), ("0", "1"))
_MAX_SWEEPS = 100
_MAX_RELATIVE_RESIDUAL = 0.05
"""Maximum residual of the equations, relative to the norm of the running means."""


def read_own_lidar(
    settings: Mapping[str, Any],
    trained_classes: Sequence[str] | None,
    weights: Mapping[str, Tensor],
    name: str,
    *,
    axes: str | None = None,
    max_intensity: float | None = None,
) -> ParsedConfiguration:
    """Reads the network and its points from ``settings``; ``name`` is the file's name for error messages.

    ``trained_classes`` are the classes in the checkpoint, None if it has none. ``axes`` (of ``AXES``) and
    ``max_intensity`` describe the training points, None if the user did not state them. Raises InvalidInputError for
    what does not run here.
    """
    model = model_settings(settings, name)
    dataset = dataset_settings(settings, name)
    kind = type_name(dataset)
    steps = list(all_steps(dataset.get("pipeline") or settings.get("test_pipeline")))
    load_step, sweeps_step = find_step(steps, "LoadPointsFromFile"), find_step(steps, "LoadPointsFromMultiSweeps")
    if load_step is not None and (load_step.get("norm_intensity") or load_step.get("coord_type", "LIDAR") != "LIDAR"):
        raise InvalidInputError(
            f"{name}: LoadPointsFromFile with norm_intensity, or with a coord_type other than LIDAR, does not run here"
        )
    intensity, intensity_note = _intensity_scale(kind, weights)
    option_notes = []
    if max_intensity is not None:
        intensity, intensity_note = max_intensity, None
        option_notes.append(f"intensity, from the option: 0 to {intensity:g}")
    if axes is not None:
        option_notes.append(f"axes, from the option: {axes}")
    own = OwnConfiguration(
        model=model,
        classes=class_names(trained_classes, dataset, settings, name),
        # mmdet3d overwrites the fifth column with the time, and omits the intensity by default.
        columns=_columns(load_step, [0, 1, 2]) if sweeps_step is None else _columns(sweeps_step, [0, 1, 2, 4]),
        intensity=intensity,
        quarter_turn=int(kind == _NUSCENES) if axes is None else AXES.index(axes),
        earlier_sweeps=0 if sweeps_step is None else _sweep_count(sweeps_step.get("sweeps_num", 10)),
        remove_close=sweeps_step is not None and bool(sweeps_step.get("remove_close", False)),
    )
    return ParsedConfiguration(
        own=own,
        read=(*_read_notes(own, kind, trained_classes is not None), *option_notes),
        assumed=tuple(
            filter(None, [*_assumption_notes(own, kind, steps, load_step, axes_unknown=axes is None), intensity_note])
        ),
    )


def _read_notes(own: OwnConfiguration, kind: str, from_checkpoint: bool) -> tuple[str, ...]:
    rows, columns = own.grid
    class_source = "the checkpoint" if from_checkpoint else "the configuration"
    return (
        f"classes, from {class_source}: {', '.join(own.classes)}",
        f"point_cloud_range: {', '.join(f'{value:g}' for value in own.range_m)} m; {rows} by {columns} pillars",
        f"columns of a point: {', '.join(map(str, own.columns))}; earlier sweeps: {own.earlier_sweeps}",
        f"data set: {kind or 'none'}",
    )


def _assumption_notes(
    own: OwnConfiguration,
    kind: str,
    steps: Sequence[Mapping[str, Any]],
    load_step: Mapping[str, Any] | None,
    *,
    axes_unknown: bool,
) -> Iterator[str]:
    if axes_unknown and kind not in (_KITTI, _NUSCENES):
        yield (
            "its LiDAR frame is x forward, y left, z up, as in mmdet3d except for nuScenes "
            "(otherwise give --option axes=...)"
        )
    if load_step is None:
        yield "the configuration lists no LoadPointsFromFile: points are taken as x, y, z and intensity"
    unsupported = sorted({type_name(step) for step in steps} - set(_SUPPORTED_STEPS))
    if unsupported:
        yield f"the points can do without {', '.join(unsupported)} of the test pipeline, which does not run here"
    if not own.has_anchor_sizes():
        yield "objects have a car's size (used only for training): the head has no anchor size for each class"


def _columns(step: Mapping[str, Any] | None, default: list[int]) -> tuple[int, ...]:
    use_dim: Any = [0, 1, 2, 3] if step is None else step.get("use_dim", default)
    if isinstance(use_dim, int):
        use_dim = list(range(min(use_dim, 100)))
    if not isinstance(use_dim, list) or not all(isinstance(column, int) for column in use_dim):
        raise InvalidInputError(
            f"use_dim of the test pipeline is {use_dim}; expected a number of columns, or a list of columns"
        )
    return tuple(use_dim)


def _sweep_count(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number <= _MAX_SWEEPS:
        raise InvalidInputError(f"sweeps_num of the test pipeline is {number}; expected 0 to {_MAX_SWEEPS}")
    return number


def _intensity_scale(kind: str, weights: Mapping[str, Tensor]) -> tuple[float, str | None]:
    """The factor from intensities in [0, 1] to the network's, and a note if it is assumed."""
    if kind == _NUSCENES:
        return 255.0, None
    if kind == _KITTI:
        return 1.0, None
    mean = mean_intensity(weights)
    if mean is not None and mean > 1:
        return 255.0, (
            "training intensities were 0 to 255: by the running mean of its encoder's normalisation, their mean over "
            f"points and pillar padding is {mean:.3g} (otherwise give --option intensity=...)"
        )
    return 1.0, "training intensities were 0 to 1, as in KITTI's files (otherwise give --option intensity=...)"


def mean_intensity(weights: Mapping[str, Tensor]) -> float | None:
    """The mean of the fourth point column in training, padding included, from a pillar encoder; None if unknown.

    The normalisation after the first linear layer holds the mean of each output, which is the layer's output for the
    mean input. This gives more equations than inputs; if they contradict each other, the mean is unknown.
    """
    for layer in _ENCODER_LAYERS:
        for prefix in ("", "pts_"):
            for linear, norm in _LINEAR_AND_NORM_NAMES:
                weight = weights.get(f"{prefix}{layer}.{linear}.weight")
                mean = weights.get(f"{prefix}{layer}.{norm}.running_mean")
                if weight is None or mean is None or weight.ndim != 2 or not 4 < weight.shape[1] < weight.shape[0]:
                    continue
                if mean.shape != weight.shape[:1]:
                    continue
                layer_weight, running_mean = weight.double(), mean.double()
                inputs = torch.linalg.lstsq(layer_weight, running_mean[:, None], driver="gelsd").solution[:, 0]
                is_consistent = bool(
                    (layer_weight @ inputs - running_mean).norm() <= _MAX_RELATIVE_RESIDUAL * running_mean.norm()
                )
                return float(inputs[3]) if is_consistent and running_mean.any() else None
    return None
