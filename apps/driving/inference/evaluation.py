"""Scores a predictor on a data set by a published protocol: KITTI's AP R40, or nuScenes' AP by centre distance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.projection import image_boxes
from apps.driving.inference.detect import Detector, LidarDetector
from apps.driving.metrics import kitti_ap, nuscenes_detection
from apps.driving.metrics.nuscenes_boxes import DetectionBoxes
from apps.driving.types import Boxes3D, Camera, Frame, LidarInput, within
from shared.app import DomainScore, Table
from shared.data.order import evenly_spaced
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

if TYPE_CHECKING:
    from apps.driving.datasets.frame_data import FrameData
    from apps.driving.predictor import DrivingPredictor

RANGE_M = 50.0
"""The range around the vehicle in which a class that nuScenes does not have is scored, in metres."""


def evaluate(predictor: DrivingPredictor, data: FrameData, limit: int | None = None) -> Table:
    """Scores every model of the predictor that can read the data's frames, on at most ``limit`` validation frames.

    All boxes count, whatever their score, as the protocols require. KITTI's protocol needs the size of each image: if
    one is missing, all scores are by centre distance, with a note. Raises InvalidInputError if no model can read the
    data.
    """
    rows: list[Sequence[str]] = []
    notes: list[str] = []
    detected: dict[str, tuple[list[Frame], list[Boxes3D], int]] = {}
    for name, detector in predictor.detectors.items():
        frames, detections, lacking_sweeps = [], [], 0
        for frame in labelled_frames(data, detector, limit):
            detections.append(detector.detect(frame))
            frames.append(_without_sensor_data(frame))
            lacking_sweeps += (
                isinstance(detector, LidarDetector) and len(frame.earlier_sweeps) < detector.earlier_sweeps
            )
        detected[name] = frames, detections, lacking_sweeps
    has_images = _have_images(frame for frames, _, _ in detected.values() for frame in frames)
    is_kitti = data.protocol == "kitti" and has_images
    for name, (frames, detections, lacking_sweeps) in detected.items():
        if frames:
            detector, make_rows = predictor.detectors[name], kitti_rows if is_kitti else centre_rows
            model_rows, model_notes = make_rows(name, detector, frames, detections, dict(data.merge))
            rows += model_rows
            if data.protocol == "kitti" and not has_images:
                model_notes = [*model_notes, *_without_image_note(frames)]
            if lacking_sweeps:
                model_notes = [
                    *model_notes,
                    f"{lacking_sweeps} frames have fewer sweeps than the model was trained on; it finds fewer objects "
                    "in them.",
                ]
            notes += [f"{name}: {text}" for text in (f"{len(frames)} frames.", *model_notes)]
    if not rows:
        needed_data = " or ".join(
            sorted({"a sweep" if d.sensor == "lidar" else "images" for d in predictor.detectors.values()})
        )
        raise InvalidInputError(f"no validation frame has {needed_data}, which the models need")
    if is_kitti:
        title = "AP R40 in percent by KITTI's protocol (3D IoU 0.7 for cars, 0.5 for others)"
        return Table(title=title, columns=("model", "class", "", "easy", "moderate", "hard"), rows=rows, notes=notes)
    thresholds = [f"AP {threshold:g} m" for threshold in nuscenes_detection.THRESHOLDS_M]
    columns = ("model", "class", "objects", "AP", *thresholds, "ATE (m)", "ASE", "AOE (rad)")
    return Table(title="AP by centre distance, as nuScenes defines it", columns=columns, rows=rows, notes=notes)


def score(predictor: DrivingPredictor, data: FrameData, limit: int | None = None) -> tuple[DomainScore, ...]:
    """For each model the mean over its classes of KITTI's AP R40, 3D, moderate, on the validation frames.

    For data whose labels lack KITTI's image fields, or frames without an image, the mean AP by centre distance. Raises
    InvalidInputError if none of a model's classes is labelled.
    """
    scores = []
    for name, detector in predictor.detectors.items():
        readable_frames = list(labelled_frames(data, detector, limit))
        if not readable_frames:
            continue
        frames, detections = (
            [_without_sensor_data(frame) for frame in readable_frames],
            [detector.detect(frame) for frame in readable_frames],
        )
        if data.protocol == "kitti" and _have_images(frames):
            measure = "mean AP R40, 3D, moderate"
            detections = [in_image(frame, boxes) for frame, boxes in zip(frames, detections, strict=True)]
            results = kitti_ap.evaluate(frames, detections)
            classes = [kind.name for kind in detector.input.classes if f"{kind.name}/3d/moderate" in results]
            value, count_key = _mean(results[f"{kind}/3d/moderate"] for kind in classes), "objects/moderate"
        else:
            measure, count_key = "mean AP by centre distance", "objects"
            frames = _with_merged_classes(frames, dict(data.merge))
            classes = _labelled_classes(detector, frames)
            results = _centre_scores(frames, detections, classes) if classes else {"map_present": 0.0}
            value = results["map_present"]
        if not classes:
            class_names = ", ".join(kind.name for kind in detector.input.classes)
            raise InvalidInputError(
                f"none of the classes of {name} ({class_names}) is labelled in the validation frames; map your labels' "
                "class names to them with --data.merge"
            )
        scores.append(
            DomainScore(
                name=f"{name}: {measure}",
                value=value,
                count=f"{sum(int(results[f'{kind}/{count_key}']) for kind in classes)} objects in {len(frames)} frames",
                data=data.fingerprint()["description"],
            )
        )
    return tuple(scores)


def _have_images(frames: Iterable[Frame]) -> bool:
    """Whether every frame has an image."""
    return all(frame.cameras for frame in frames)


def _without_image_note(frames: Sequence[Frame]) -> list[str]:
    """A note if some frames of KITTI have no image."""
    count = sum(not frame.cameras for frame in frames)
    if not count:
        return []
    return [
        f"{count} of {len(frames)} frames have no image in image_2, whose size KITTI's protocol needs, so all scores "
        "are by centre distance. Boxes outside of the camera's view, where KITTI labels nothing, count as false there."
    ]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0


def kitti_rows(
    model: str, detector: Detector, frames: Sequence[Frame], detections: Sequence[Boxes3D], merge: Mapping[str, str]
) -> tuple[list[Sequence[str]], list[str]]:
    """Rows for each class: the number of objects, then AP in the image (2D), orientation similarity (AOS), AP in the
    bird's-eye view (BEV) and in 3D; and notes.

    Vans keep their name: the protocol ignores a van that is detected as a car.
    """
    scores = kitti_ap.evaluate(
        frames, [in_image(frame, boxes) for frame, boxes in zip(frames, detections, strict=True)]
    )
    rows: list[Sequence[str]] = []
    for name in (kind.name for kind in detector.input.classes if kind.name in kitti_ap.MIN_OVERLAPS):
        counts = (f"{scores[f'{name}/objects/{level}']:.0f}" for level in kitti_ap.DIFFICULTIES)
        rows.append((model, name, "objects", *counts))
        for measure, title in kitti_ap.TITLES.items():
            values = (scores.get(f"{name}/{measure}/{level}") for level in kitti_ap.DIFFICULTIES)
            rows.append((model, name, title, *("-" if value is None else f"{value:.2f}" for value in values)))
    note = ["A class with n < 41 objects reaches at most 100 (n - 1) / 40, even if all are found."]
    return rows, note if any(int(row[3]) < kitti_ap.MAX_THRESHOLDS for row in rows if row[2] == "objects") else []


def centre_rows(
    model: str, detector: Detector, frames: Sequence[Frame], detections: Sequence[Boxes3D], merge: Mapping[str, str]
) -> tuple[list[Sequence[str]], list[str]]:
    """A row for each class of the network that has labels: objects, AP, and the errors of true positives at 2 m; and
    notes."""
    truth = _with_merged_classes(frames, merge)
    names = _labelled_classes(detector, truth)
    if not names:
        labelled = sorted({name for frame in truth if frame.truth is not None for name in frame.truth.names})
        class_names = ", ".join(kind.name for kind in detector.input.classes)
        return [], [f"none of its classes ({class_names}) is labelled; the labels contain {', '.join(labelled)}."]
    scores = _centre_scores(truth, detections, names)
    rows: list[Sequence[str]] = [
        (
            *(model, name, f"{scores[f'{name}/objects']:.0f}", f"{scores[f'{name}/ap']:.3f}"),
            *(f"{scores[f'{name}/ap/{threshold:g}']:.3f}" for threshold in nuscenes_detection.THRESHOLDS_M),
            *("-" if (v := scores.get(f"{name}/{error}")) is None else f"{v:.3f}" for error in ("ate", "ase", "aoe")),
        )
        for name in names
    ]
    note = [f"mean AP {scores['map_present']:.3f} over the classes with objects."]
    return rows, note + _out_of_range_note(detector, truth, names)


def _labelled_classes(detector: Detector, frames: Sequence[Frame]) -> list[str]:
    """The classes of a network that have at least one label."""
    labelled = {name for frame in frames if frame.truth is not None for name in frame.truth.names}
    return [kind.name for kind in detector.input.classes if kind.name in labelled]


def _centre_scores(frames: Sequence[Frame], detections: Sequence[Boxes3D], names: Sequence[str]) -> dict[str, float]:
    """nuScenes' scores of the classes, each within nuScenes' range for it, or ``RANGE_M`` if nuScenes has none."""
    return nuscenes_detection.evaluate(
        DetectionBoxes.of_frames(frames), DetectionBoxes.of_detections(detections), ranges_m=_ranges(names)
    )


def _ranges(names: Sequence[str]) -> dict[str, float]:
    return {name: nuscenes_detection.RANGES_M.get(name, RANGE_M) for name in names}


def in_image(frame: Frame, boxes: Boxes3D) -> Boxes3D:
    """The boxes that are visible in the frame's first camera: KITTI labels only these. All if there is no camera."""
    camera = next(iter(frame.cameras.values()), None)
    return boxes if camera is None else boxes.take(_is_visible(camera, boxes))


def in_any_image(frame: Frame, boxes: Boxes3D) -> Boxes3D:
    """The boxes that are visible in at least one camera of the frame; all if there is no camera."""
    if not frame.cameras:
        return boxes
    return boxes.take(np.any([_is_visible(camera, boxes) for camera in frame.cameras.values()], axis=0))


def _is_visible(camera: Camera, boxes: Boxes3D) -> NDArray[np.bool_]:
    """(N,) whether a box projects into the image, with less than 90 % of its rectangle cut off by the borders."""
    size = (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
    box_2d, truncation = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, size)
    visible: NDArray[np.bool_] = ~np.isnan(box_2d).any(axis=1) & (truncation < 0.9)
    return visible


def labelled_frames(data: FrameData, detector: Detector, limit: int | None) -> Iterator[Frame]:
    """The validation frames that the detector can read, evenly spaced if there is a limit."""
    cases = data.cases()
    indices = evenly_spaced(len(cases), limit)
    for index in progress_bar(indices, len(indices), "detecting in frames"):
        frame = cases.read(index)
        if frame.truth is None:
            raise InvalidInputError(f"frame {frame.name} has no labels to score against")
        if frame.points_lidar_m is not None if detector.sensor == "lidar" else frame.cameras:
            yield frame


def _without_sensor_data(frame: Frame) -> Frame:
    """The frame without points and pixels, so that thousands fit into memory."""

    def without_pixels(camera: Camera) -> Camera:
        return replace(camera, image_HWC=np.broadcast_to(np.zeros((), np.uint8), camera.image_HWC.shape))

    without_points = replace(frame, points_lidar_m=None, earlier_sweeps=())
    return replace(without_points, cameras={name: without_pixels(camera) for name, camera in frame.cameras.items()})


def _with_merged_classes(frames: Sequence[Frame], merge: Mapping[str, str]) -> list[Frame]:
    """The frames with their labels renamed to the classes that they are merged into."""

    def merged(frame: Frame) -> Boxes3D:
        assert frame.truth is not None
        return replace(frame.truth, names=tuple(merge.get(name, name) for name in frame.truth.names))

    return [replace(frame, truth=merged(frame)) for frame in frames]


def _out_of_range_note(detector: Detector, frames: Sequence[Frame], names: Sequence[str]) -> list[str]:
    """A note if some scored objects lie outside of the range of a LiDAR network."""
    if not isinstance(detector.input, LidarInput):
        return []
    ranges_m, outside, scored = _ranges(names), 0, 0
    for frame in frames:
        assert frame.truth is not None
        centres = frame.truth.centre_lidar_m
        is_scored = np.array([name in names for name in frame.truth.names], bool)
        is_scored &= np.hypot(centres[:, 0], centres[:, 1]) < [ranges_m.get(name, 0.0) for name in frame.truth.names]
        scored += int(is_scored.sum())
        outside += int((is_scored & ~within(centres, detector.input.range_m)).sum())
    if not outside:
        return []
    return [f"{outside} of {scored} labelled objects lie outside the range that it was trained on."]
