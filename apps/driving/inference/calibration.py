"""The operating point: the minimum score of each class, chosen on labelled frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from apps.driving.types import BoxInput, CameraInput, LidarInput, within
from shared.data.order import evenly_spaced

if TYPE_CHECKING:
    from apps.driving.datasets.frame_data import FrameData
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.task import DetectionScores
    from shared.deploy.artifact import Artifact
    from shared.recipe import Recipe

MAX_SAMPLES, MAX_SWEEPS = 48, 160


def calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """For each class the minimum score with the highest F1 on up to 48 evenly spaced validation samples of the recipe's
    data; for a second stage on up to 160 sweeps, together with its detector.

    A class without objects or without detections gets 0.3; ``classes_without_objects`` lists the former.
    """
    from apps.driving.models.configurations import MMDet3DModel

    if isinstance(recipe.model, MMDet3DModel):
        return _operating_point(recipe, *_score_imported(recipe, recipe.model, model))
    if isinstance(recipe.input, BoxInput):
        return _operating_point(recipe, *score_second_stage(recipe, recipe.input, model))
    task, dataset = recipe.task.build(), recipe.data.validation(recipe.input)
    scores: Any = task.scores()
    indices = evenly_spaced(len(dataset), MAX_SAMPLES)
    model.eval()
    with torch.inference_mode():
        for index in indices:
            task.evaluate(model, dataset.batch(np.array([index]), None), scores)
    return _operating_point(recipe, scores, len(indices))


def calibrate_second(recipe: Recipe, model: nn.Module, detector: Artifact) -> dict[str, Any]:
    """As ``calibrate``, for a second stage with the boxes of ``detector``."""
    assert isinstance(recipe.input, BoxInput)
    input = replace(recipe.input, detector=detector.path)
    return _operating_point(recipe, *score_second_stage(recipe, input, model))


def _operating_point(recipe: Recipe, scores: DetectionScores, scenes: int) -> dict[str, Any]:
    return {
        "least_scores": scores.thresholds(),
        "classes_without_objects": [name for label, (name, _) in enumerate(scores.classes) if not scores.curve(label)],
        "scenes": scenes,
        "synthetic": bool(recipe.data.fingerprint()["synthetic"]),
    }


def score_second_stage(recipe: Recipe, input: BoxInput, model: nn.Module) -> tuple[DetectionScores, int]:
    """The scores of a second stage with its detector on the validation data, and the number of sweeps."""
    from apps.driving.datasets.found_boxes import detect_in_pack
    from apps.driving.inference.second_stage import SecondStage
    from apps.driving.task import DetectionScores

    data: FrameData = recipe.data  # type: ignore[assignment]
    second_stage = SecondStage(model.eval(), input, str(next(model.parameters()).device))
    scores = DetectionScores(classes=tuple((kind.name, kind.reach_m) for kind in input.classes))
    names = [kind.name for kind in input.classes]
    pack = data.pack("validation", input)
    number = 0
    for sweep in detect_in_pack(pack, input, dict(data.merge), second_stage, most=MAX_SWEEPS):
        # The detector runs twice on a sweep that covers 360 degrees; only the range ahead is scored.
        detections = sweep.boxes.take(within(sweep.boxes.centre_lidar_m, input.range_m))
        assert detections.scores is not None
        labels = np.array([names.index(name) for name in detections.names], np.int64)
        visible = within(sweep.objects, input.range_m) & ~(
            (sweep.returns >= 0) & (sweep.returns < data.sweeps.fewest_points)
        )
        centres = detections.centre_lidar_m[:, :2]
        scores.add(number, centres, detections.scores, labels, sweep.objects[visible, :2], sweep.numbers[visible])
        number += 1
    return scores, number


def _score_imported(recipe: Recipe, settings: MMDet3DModel, model: nn.Module) -> tuple[DetectionScores, int]:
    """The scores of an imported model's predictions, and the number of frames. No losses are computed.

    Only objects and boxes that the model can detect and that are labelled count: those in its range, or in an image.
    """
    from apps.driving.inference.artifacts import imported_detector
    from apps.driving.inference.evaluation import in_any_image, labelled_frames
    from apps.driving.task import CameraTask, DetectionScores

    data: FrameData = recipe.data  # type: ignore[assignment]
    assert isinstance(recipe.input, LidarInput | CameraInput)
    device = str(next(model.parameters()).device)
    detector = imported_detector(settings, recipe.input, model.eval(), device)
    sees_points = isinstance(recipe.input, LidarInput)
    factor = 1.0 if sees_points else CameraTask().reach_factor
    names = [kind.name for kind in detector.input.classes]
    scores = DetectionScores(classes=tuple((kind.name, kind.reach_m * factor) for kind in detector.input.classes))
    frames, merge = 0, dict(data.merge)
    for frame in labelled_frames(data, detector, MAX_SAMPLES):
        assert frame.truth is not None
        detections, truth = detector.detect(frame), frame.truth
        if data.protocol == "kitti" or not sees_points:
            detections, truth = in_any_image(frame, detections), in_any_image(frame, truth)
        if isinstance(recipe.input, LidarInput):
            truth = truth.take(within(truth.centre_lidar_m, recipe.input.range_m))
            detections = detections.take(within(detections.centre_lidar_m, recipe.input.range_m))
            if truth.point_counts is not None:
                too_few_points = (truth.point_counts >= 0) & (truth.point_counts < data.sweeps.fewest_points)
                truth = truth.take(~too_few_points)
        class_names = [merge.get(name, name) for name in truth.names]
        labels = np.array([names.index(name) if name in names else -1 for name in class_names], np.int64)
        detection_labels = np.array([names.index(name) for name in detections.names], np.int64)
        assert detections.scores is not None
        scores.add(
            frames,
            detections.centre_lidar_m[:, :2],
            detections.scores,
            detection_labels,
            truth.centre_lidar_m[:, :2],
            labels,
        )
        frames += 1
    return scores, frames
