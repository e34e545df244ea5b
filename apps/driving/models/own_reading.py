"""From a configuration that mmengine dumped, and the checkpoint's metadata, to a LiDAR network and what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apps.driving.models import AXES
from apps.driving.models.own import OwnConfiguration
from apps.driving.models.own_pipeline import Reading, classes_of, dataset_of, model_of, step_of, steps_of, type_of
from shared.errors import InvalidInputError

_NUSCENES, _KITTI = "NuScenesDataset", "KittiDataset"
_STEPS = (
    *("LoadPointsFromFile", "LoadPointsFromMultiSweeps", "LoadAnnotations3D", "MultiScaleFlipAug3D"),
    *("GlobalRotScaleTrans", "RandomFlip3D", "PointsRangeFilter", "PointShuffle", "Pack3DDetInputs"),
)
"""Steps of a test pipeline that are done here, or that leave the points as they are."""
_LAYERS = ("voxel_encoder.pfn_layers.0", "voxel_encoder.vfe_layers.0")
_PARTS = (("linear", "norm"), ("0", "1"))
_MAX_SWEEPS = 100
_CONTRADICTION = 0.05
"""By how much of the means that were kept the equations may miss them."""


def read_own(
    settings: Mapping[str, Any],
    trained_classes: Sequence[str] | None,
    weights: Mapping[str, Tensor],
    name: str,
    *,
    axes: str | None = None,
    greatest_intensity: float | None = None,
) -> Reading:
    """What ``settings`` say of the network, its points and its frames; ``name`` is that of the file in refusals.

    ``trained_classes`` are the checkpoint's own, None where it has none. ``axes`` (of ``AXES``) and
    ``greatest_intensity`` are what the user says of the points that it learnt from, None where nothing is said.
    Refuses what does not run here.
    """
    model = model_of(settings, name)
    dataset = dataset_of(settings, name)
    kind = type_of(dataset)
    steps = list(steps_of(dataset.get("pipeline") or settings.get("test_pipeline")))
    loads, sweeps = step_of(steps, "LoadPointsFromFile"), step_of(steps, "LoadPointsFromMultiSweeps")
    if loads is not None and (loads.get("norm_intensity") or loads.get("coord_type", "LIDAR") != "LIDAR"):
        raise InvalidInputError(
            f"{name}: LoadPointsFromFile with norm_intensity or another coord_type does not run here"
        )
    intensity, about_intensity = _intensity(kind, weights)
    said = []
    if greatest_intensity is not None:
        intensity, about_intensity = greatest_intensity, None
        said.append(f"intensity, as was said: 0 to {intensity:g}")
    if axes is not None:
        said.append(f"axes, as was said: {axes}")
    own = OwnConfiguration(
        model=model,
        classes=classes_of(trained_classes, dataset, settings, name),
        # mmdet3d writes the time over the fifth column, and by default leaves the intensity out.
        columns=_columns(loads, [0, 1, 2]) if sweeps is None else _columns(sweeps, [0, 1, 2, 4]),
        intensity=intensity,
        quarter_turn=int(kind == _NUSCENES) if axes is None else AXES.index(axes),
        earlier_sweeps=0 if sweeps is None else _sweeps(sweeps.get("sweeps_num", 10)),
        remove_close=sweeps is not None and bool(sweeps.get("remove_close", False)),
    )
    return Reading(
        own=own,
        read=(*_read(own, kind, trained_classes is not None), *said),
        assumed=tuple(filter(None, [*_assumed(own, kind, steps, loads, axes_unknown=axes is None), about_intensity])),
    )


def _read(own: OwnConfiguration, kind: str, from_checkpoint: bool) -> tuple[str, ...]:
    rows, columns = own.grid
    place = "the checkpoint" if from_checkpoint else "the configuration"
    return (
        f"classes, from {place}: {', '.join(own.classes)}",
        f"point_cloud_range: {', '.join(f'{value:g}' for value in own.range_m)} m; {rows} by {columns} pillars",
        f"columns of a point: {', '.join(map(str, own.columns))}; earlier sweeps: {own.earlier_sweeps}",
        f"data set: {kind or 'none'}",
    )


def _assumed(
    own: OwnConfiguration,
    kind: str,
    steps: Sequence[Mapping[str, Any]],
    loads: Mapping[str, Any] | None,
    *,
    axes_unknown: bool,
) -> Iterator[str]:
    if axes_unknown and kind not in (_KITTI, _NUSCENES):
        yield (
            "its LiDAR frame is x forward, y left, z up, as mmdet3d's own frames are but for nuScenes' "
            "(else say --option axes=...)"
        )
    if loads is None:
        yield "the configuration lists no LoadPointsFromFile: points are taken as x, y, z and intensity"
    others = sorted({type_of(step) for step in steps} - set(_STEPS))
    if others:
        yield f"points need no {', '.join(others)}, which the test pipeline has and is not done here"
    if not own.has_anchor_sizes():
        yield "objects are of a car's size (for training alone): the head has no anchor of its own for each class"


def _columns(step: Mapping[str, Any] | None, default: list[int]) -> tuple[int, ...]:
    use: Any = [0, 1, 2, 3] if step is None else step.get("use_dim", default)
    if isinstance(use, int):
        use = list(range(min(use, 100)))
    if not isinstance(use, list) or not all(isinstance(column, int) for column in use):
        raise InvalidInputError(f"use_dim of the test pipeline is {use}; expected a number of columns, or a list")
    return tuple(use)


def _sweeps(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number <= _MAX_SWEEPS:
        raise InvalidInputError(f"sweeps_num of the test pipeline is {number}; expected 0 to {_MAX_SWEEPS}")
    return number


def _intensity(kind: str, weights: Mapping[str, Tensor]) -> tuple[float, str | None]:
    """By what an intensity in [0, 1] is multiplied for the network, and a sentence where that is not known."""
    if kind == _NUSCENES:
        return 255.0, None
    if kind == _KITTI:
        return 1.0, None
    mean = mean_intensity(weights)
    if mean is not None and mean > 1:
        return 255.0, (
            f"intensities were 0 to 255 when it learnt: their mean over the points and the padding of pillars, as its "
            f"encoder's normalisation kept it, is {mean:.3g} (else say --option intensity=...)"
        )
    return 1.0, "intensities were 0 to 1 when it learnt, as in KITTI's files (else say --option intensity=...)"


def mean_intensity(weights: Mapping[str, Tensor]) -> float | None:
    """The mean of the fourth column that a pillar encoder learnt from, padding included; None where it is not known.

    The normalisation behind the first linear layer keeps the mean of each of its outputs, which is the layer of the
    mean of its inputs: more equations than inputs. Where they contradict each other nothing is known.
    """
    for layer in _LAYERS:
        for before in ("", "pts_"):
            for linear, norm in _PARTS:
                weight = weights.get(f"{before}{layer}.{linear}.weight")
                mean = weights.get(f"{before}{layer}.{norm}.running_mean")
                if weight is None or mean is None or weight.ndim != 2 or not 4 < weight.shape[1] < weight.shape[0]:
                    continue
                if mean.shape != weight.shape[:1]:
                    continue
                layer_weight, kept = weight.double(), mean.double()
                inputs = torch.linalg.lstsq(layer_weight, kept[:, None], driver="gelsd").solution[:, 0]
                agree = bool((layer_weight @ inputs - kept).norm() <= _CONTRADICTION * kept.norm())
                return float(inputs[3]) if agree and kept.any() else None
    return None
