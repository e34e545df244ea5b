"""The field's protocols over a predictor and a data set: KITTI's AP R40, or nuScenes' precision by centres."""

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
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

if TYPE_CHECKING:
    from apps.driving.datasets.frame_data import FrameData
    from apps.driving.predictor import DrivingPredictor

RANGE_M = 50.0
"""How far from the vehicle a class is judged that nuScenes does not have."""
_TITLES = {"2d": "2D", "aos": "AOS", "bev": "BEV", "3d": "3D"}


def evaluate(predictor: DrivingPredictor, data: FrameData, limit: int | None = None) -> Table:
    """Every model of the predictor that can look at the data's frames, on those that validate; at most ``limit``.

    All boxes count, whatever their score, as the protocols ask. Refuses data that no model can look at.
    """
    rows: list[Sequence[str]] = []
    notes: list[str] = []
    for name, detector in predictor.detectors.items():
        frames, found, few = [], [], 0
        for frame in labelled_frames(data, detector, limit):
            found.append(detector.detect(frame))
            frames.append(_light(frame))
            few += isinstance(detector, LidarDetector) and len(frame.earlier_sweeps) < detector.earlier_sweeps
        if frames:
            score = kitti_rows if data.protocol == "kitti" else centre_rows
            more, said = score(name, detector, frames, found, dict(data.merge))
            rows += more
            if few:
                said = [*said, f"{few} frames come with fewer sweeps than it learnt from, and it finds less in them."]
            notes += [f"{name}: {text}" for text in (f"{len(frames)} frames.", *said)]
    if not rows:
        needed = " or ".join(
            sorted({"a sweep" if d.sensor == "lidar" else "images" for d in predictor.detectors.values()})
        )
        raise InvalidInputError(f"none of the frames that validate has {needed}, which the models need")
    if data.protocol == "kitti":
        title = "AP R40 in percent by KITTI's protocol (3D overlap 0.7 for cars, 0.5 for others)"
        return Table(title=title, columns=("model", "class", "", "easy", "moderate", "hard"), rows=rows, notes=notes)
    thresholds = [f"AP {threshold:g} m" for threshold in nuscenes_detection.THRESHOLDS_M]
    columns = ("model", "class", "objects", "AP", *thresholds, "ATE (m)", "ASE", "AOE (rad)")
    return Table(title="AP by the distance of centres, as nuScenes defines it", columns=columns, rows=rows, notes=notes)


def score(predictor: DrivingPredictor, data: FrameData, limit: int | None = None) -> tuple[DomainScore, ...]:
    """By model: the mean over its classes of KITTI's AP R40, 3D, moderate, on the frames that validate.

    On data without what KITTI's labels have of the image, of AP by the distance of centres. Refuses data in which no
    class of a model is labelled.
    """
    scores = []
    for name, detector in predictor.detectors.items():
        seen = list(labelled_frames(data, detector, limit))
        if not seen:
            continue
        frames, found = [_light(frame) for frame in seen], [detector.detect(frame) for frame in seen]
        if data.protocol == "kitti":
            measure = "mean AP R40, 3D, moderate"
            found = [in_image(frame, boxes) for frame, boxes in zip(frames, found, strict=True)]
            judged = kitti_ap.evaluate(frames, found)
            classes = [kind.name for kind in detector.input.classes if f"{kind.name}/3d/moderate" in judged]
            value, counted = _mean(judged[f"{kind}/3d/moderate"] for kind in classes), "objects/moderate"
        else:
            measure, counted = "mean AP by the distance of centres", "objects"
            frames = _with_merged(frames, dict(data.merge))
            classes = _labelled(detector, frames)
            judged = _by_centres(frames, found, classes) if classes else {"map_present": 0.0}
            value = judged["map_present"]
        if not classes:
            known = ", ".join(kind.name for kind in detector.input.classes)
            raise InvalidInputError(
                f"none of the classes of {name} ({known}) is labelled in the frames that validate; --data.merge says "
                "what your labels call them"
            )
        scores.append(
            DomainScore(
                name=f"{name}: {measure}",
                value=value,
                count=f"{sum(int(judged[f'{kind}/{counted}']) for kind in classes)} objects in {len(frames)} frames",
                data=data.fingerprint()["description"],
            )
        )
    return tuple(scores)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0


def kitti_rows(
    model: str, detector: Detector, frames: Sequence[Frame], found: Sequence[Boxes3D], merge: Mapping[str, str]
) -> tuple[list[Sequence[str]], list[str]]:
    """By class: how many objects there are, then AP in the image, with the heading (AOS), from above, in space.

    Vans keep their name: the protocol counts one found as a car neither for nor against.
    """
    scores = kitti_ap.evaluate(frames, [in_image(frame, boxes) for frame, boxes in zip(frames, found, strict=True)])
    rows: list[Sequence[str]] = []
    for name in (kind.name for kind in detector.input.classes if kind.name in kitti_ap.OVERLAPS):
        counts = (f"{scores[f'{name}/objects/{level}']:.0f}" for level in kitti_ap.DIFFICULTIES)
        rows.append((model, name, "objects", *counts))
        for measure, title in _TITLES.items():
            values = (scores.get(f"{name}/{measure}/{level}") for level in kitti_ap.DIFFICULTIES)
            rows.append((model, name, title, *("-" if value is None else f"{value:.2f}" for value in values)))
    said = ["n objects, fewer than 41, give at most (n - 1) / 40, even where all are found."]
    return rows, said if any(int(row[3]) < kitti_ap.RECALLS for row in rows if row[2] == "objects") else []


def centre_rows(
    model: str, detector: Detector, frames: Sequence[Frame], found: Sequence[Boxes3D], merge: Mapping[str, str]
) -> tuple[list[Sequence[str]], list[str]]:
    """By class of the network that is labelled at all: objects, AP, and the errors of what was hit at 2 m."""
    truth = _with_merged(frames, merge)
    names = _labelled(detector, truth)
    if not names:
        labelled = sorted({name for frame in truth if frame.truth is not None for name in frame.truth.names})
        known = ", ".join(kind.name for kind in detector.input.classes)
        return [], [f"none of its classes ({known}) is labelled; the labels have {', '.join(labelled)}."]
    scores = _by_centres(truth, found, names)
    rows: list[Sequence[str]] = [
        (
            *(model, name, f"{scores[f'{name}/objects']:.0f}", f"{scores[f'{name}/ap']:.3f}"),
            *(f"{scores[f'{name}/ap/{threshold:g}']:.3f}" for threshold in nuscenes_detection.THRESHOLDS_M),
            *("-" if (v := scores.get(f"{name}/{error}")) is None else f"{v:.3f}" for error in ("ate", "ase", "aoe")),
        )
        for name in names
    ]
    said = [f"mean AP {scores['map_present']:.3f} over the classes that occur."]
    return rows, said + _unseen(detector, truth, names)


def _labelled(detector: Detector, frames: Sequence[Frame]) -> list[str]:
    """The classes of a network that are labelled at all."""
    labelled = {name for frame in frames if frame.truth is not None for name in frame.truth.names}
    return [kind.name for kind in detector.input.classes if kind.name in labelled]


def _by_centres(frames: Sequence[Frame], found: Sequence[Boxes3D], names: Sequence[str]) -> dict[str, float]:
    """nuScenes' scores of the classes, each judged as far from the vehicle as nuScenes does or ``RANGE_M``."""
    return nuscenes_detection.evaluate(
        DetectionBoxes.of_frames(frames), DetectionBoxes.of_detections(found), ranges_m=_ranges(names)
    )


def _ranges(names: Sequence[str]) -> dict[str, float]:
    return {name: nuscenes_detection.RANGES_M.get(name, RANGE_M) for name in names}


def in_image(frame: Frame, boxes: Boxes3D) -> Boxes3D:
    """The boxes of which the frame's first camera shows something: what KITTI's labels are about."""
    camera = next(iter(frame.cameras.values()), None)
    return boxes if camera is None else boxes.take(_shows(camera, boxes))


def in_any_image(frame: Frame, boxes: Boxes3D) -> Boxes3D:
    """The boxes of which some camera of the frame shows something; all of them where there is no camera."""
    if not frame.cameras:
        return boxes
    return boxes.take(np.any([_shows(camera, boxes) for camera in frame.cameras.values()], axis=0))


def _shows(camera: Camera, boxes: Boxes3D) -> NDArray[np.bool_]:
    """(N,) whether a camera shows a tenth of a box or more."""
    size = (camera.image_HWC.shape[0], camera.image_HWC.shape[1])
    shown, cut = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, size)
    seen: NDArray[np.bool_] = ~np.isnan(shown).any(axis=1) & (cut < 0.9)
    return seen


def labelled_frames(data: FrameData, detector: Detector, limit: int | None) -> Iterator[Frame]:
    """The frames that validate and that the detector can look at, evenly chosen where there is a limit."""
    cases = data.cases()
    count = len(cases) if limit is None else min(limit, len(cases))
    chosen = np.unique(np.linspace(0, len(cases) - 1, count).round().astype(int)).tolist()
    for number in progress_bar(chosen, len(chosen), "detecting in frames"):
        frame = cases.read(number)
        if frame.truth is None:
            raise InvalidInputError(f"frame {frame.name} has no labels to be scored against")
        if frame.points_lidar_m is not None if detector.sensor == "lidar" else frame.cameras:
            yield frame


def _light(frame: Frame) -> Frame:
    """The frame without its points and pixels, so that thousands fit into memory."""

    def bare(camera: Camera) -> Camera:
        return replace(camera, image_HWC=np.broadcast_to(np.zeros((), np.uint8), camera.image_HWC.shape))

    bare_frame = replace(frame, points_lidar_m=None, earlier_sweeps=())
    return replace(bare_frame, cameras={name: bare(one) for name, one in frame.cameras.items()})


def _with_merged(frames: Sequence[Frame], merge: Mapping[str, str]) -> list[Frame]:
    """The frames with their labels called what they are learnt as."""

    def merged(frame: Frame) -> Boxes3D:
        assert frame.truth is not None
        return replace(frame.truth, names=tuple(merge.get(name, name) for name in frame.truth.names))

    return [replace(frame, truth=merged(frame)) for frame in frames]


def _unseen(detector: Detector, frames: Sequence[Frame], names: Sequence[str]) -> list[str]:
    """A sentence where objects that are judged lie where a LiDAR network does not look."""
    if not isinstance(detector.input, LidarInput):
        return []
    ranges_m, outside, judged = _ranges(names), 0, 0
    for frame in frames:
        assert frame.truth is not None
        place = frame.truth.centre_lidar_m
        near = np.array([name in names for name in frame.truth.names], bool)
        near &= np.hypot(place[:, 0], place[:, 1]) < [ranges_m.get(name, 0.0) for name in frame.truth.names]
        judged += int(near.sum())
        outside += int((near & ~within(place, detector.input.range_m)).sum())
    if not outside:
        return []
    return [f"{outside} of {judged} labelled objects lie outside of the range that it was trained on."]
