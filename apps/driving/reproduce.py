"""The headline table: what the shipped weights find in synthetic scenes and in real frames, and how long they take.

The peer column shows, on the same frames, the detector without its second stage if it has one, else the previous
version of the model's weights if one is shipped.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from apps.driving.adapters import argoverse2, kitti, nuscenes
from apps.driving.datasets.synth.scenes import MIN_POINTS, scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.inference.detect import Detector, LidarDetector, shown_boxes
from apps.driving.inference.evaluation import in_image
from apps.driving.metrics.kitti_ap import evaluate
from apps.driving.metrics.matching import Counts, count, match
from apps.driving.models import MODELS, structures
from apps.driving.models.fcos3d import FCOS3D
from apps.driving.predictor import DrivingPredictor, served_with
from apps.driving.types import Boxes3D, CameraInput, Frame
from shared.app import Table
from shared.data.registry import read_registry
from shared.deploy.artifact import Artifact
from shared.deploy.registry import Registry
from shared.progress_bar import progress_bar

_ROOT = Path(__file__).parent
_CLASSES = ("car", "pedestrian", "cyclist")
_SEED = 90_001
"""Seed of the scenes that are scored here; no recipe trains on them or chooses a threshold with them."""
_BARS = {("car", "bev"): 70.0, ("car", "3d"): 45.0, ("pedestrian", "3d"): 40.0}
"""Target AP R40 (moderate) of PointPillars on 100 scenes."""
_OWN_VEHICLE_M = 3.0
_NUSCENES_RECALL_BAR = 10 / 16
_CLASS_OF = {
    "regular_vehicle": "car",
    "large_vehicle": "truck",
    "box_truck": "truck",
    "truck_cab": "truck",
    "bus": "truck",
}
"""For class names of Argoverse 2 and nuScenes: the class that is scored, or the one for which a car box is ignored."""
Rows = dict[str, str]


def table(quick: bool) -> Table:
    """``quick`` scores 16 synthetic scenes; otherwise 100, plus the time of ResNeXt-101 on one 1024 x 2048 image."""
    warnings.simplefilter("ignore")
    rows: list[Sequence[str]] = []
    synthetic = scenes(16 if quick else 100)
    real = real_frames()
    registry = Registry(_ROOT / "weights")
    for name in MODELS:
        newest = registry.newest(name)
        ours, peer = shipped_and_peer(registry, newest)
        figures = model_rows(ours, name, synthetic, real)
        peer_figures = {} if peer is None else model_rows(peer, name, synthetic, real)
        rows += [(f"{name}: {label}", peer_figures.get(label, "-"), text) for label, text in figures.items()]
        if real["KITTI"]:
            rows.append(latency(name, ours.detectors[name], real["KITTI"]))
    rows.append(resnext(quick))
    notes = [
        f"Synthetic: {len(synthetic)} scenes of KITTI's LiDAR made by apps.driving.datasets.synth, none of them used "
        "for training. AP R40 in % by KITTI's protocol (IoU 0.7 for cars, 0.5 for others), moderate. A bar is "
        "the value to be reached, in 100 scenes.",
        "Real: the frames of the data registry, at the score thresholds chosen on synthetic scenes; the shipped "
        f"networks were trained on synthetic scenes only. Counted: objects with at least {MIN_POINTS} returns; in "
        "KITTI only the easy and moderate ones, and a box on another one is ignored. So few frames show whether cars "
        "are found, not how often.",
        "Peer, on the same frames: PointPillars without its second stage.",
    ]
    if not all(real.values()):
        notes.append(
            "Not all real frames are on this machine; `trivium data list kitti_object nuscenes_sample av2_7fab2350` "
            "says where to get them."
        )
    return Table(title="3D object detection", columns=("figure", "peer", "trivium"), rows=rows, notes=notes)


def scenes(number: int) -> list[Frame]:
    """Synthetic frames: a sweep of the front half circle (180 degrees) and an image of KITTI's size."""
    sensors = Sensors(field_of_view_deg=180.0, image_scale=1.0)
    numbers = progress_bar(range(number), number, "making synthetic scenes")
    return [scene(np.random.default_rng((_SEED, n)), sensors=sensors, name=f"{n:06d}") for n in numbers]


def real_frames() -> dict[str, list[Frame]]:
    """KITTI's five frames, nuScenes' key frame and one sweep of Argoverse 2, if they are on this machine."""
    entries = read_registry(_ROOT / "datasets" / "registry.json")
    found: dict[str, list[Frame]] = {}
    for data_set, name, read in (
        ("KITTI", "kitti_object", kitti.read),
        ("nuScenes", "nuscenes_sample", nuscenes.read),
        ("Argoverse 2", "av2_7fab2350", argoverse2.read),
    ):
        entry = entries.get(name)
        root = None if entry is None else entry.locate()
        found[data_set] = (
            [] if root is None else [with_scored_classes(frame) for frame in read(root / "driving" / name)]
        )
    # The second of the two sweeps shows the same street 0.1 s later.
    return found | {"Argoverse 2": found["Argoverse 2"][:1]}


def shipped_and_peer(registry: Registry, newest: Artifact) -> tuple[DrivingPredictor, DrivingPredictor | None]:
    """The shipped detector, and its peer: itself without its second stage, or its previous version."""
    second = served_with(newest)
    ours = DrivingPredictor.load([newest, *second], "cpu")
    if second:
        return ours, DrivingPredictor.load([newest], "cpu")
    previous = sorted(registry.versions(newest.manifest.name).items())[:-1]
    return ours, DrivingPredictor.load([registry.open(previous[-1][1])], "cpu") if previous else None


def model_rows(
    predictor: DrivingPredictor, model: str, synthetic: Sequence[Frame], real: Mapping[str, Sequence[Frame]]
) -> Rows:
    """The rows of one model of the predictor: label to text."""
    detector, thresholds = predictor.detectors[model], predictor.least_scores[model]
    rows = dict(synthetic_rows(detector, synthetic))
    for data_set, frames in real.items():
        # The Argoverse 2 sample has no images.
        if frames and (detector.sensor == "lidar" or frames[0].cameras):
            rows |= dict(real_rows(data_set, detector, thresholds, frames))
    return rows


def synthetic_rows(detector: Detector, frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
    """AP R40 of each class, and how many cars and cyclists have the right heading rather than the opposite one."""
    found = [detector.detect(frame) for frame in progress_bar(frames, len(frames), "detecting in synthetic scenes")]
    scores = evaluate(frames, [in_image(frame, boxes) for frame, boxes in zip(frames, found, strict=True)])
    for kind in _CLASSES:
        objects = int(scores.get(f"{kind}/objects/moderate", 0))
        for measure, title in (("bev", "BEV"), ("3d", "3D")):
            value = scores.get(f"{kind}/{measure}/moderate")
            if value is not None and objects:
                bar = _BARS.get((kind, measure)) if detector.sensor == "lidar" else None
                text = f"{value:.1f} ({objects} objects{bar_verdict(value, bar)})"
                yield f"{kind}, AP R40 {title}, synthetic", text
    for kind in ("car", "cyclist"):
        right, matched = count_right_headings(frames, found, kind)
        if matched:
            yield (
                f"{kind}s with the right heading, synthetic",
                f"{100 * right / matched:.0f} % of {matched} with 20 returns",
            )


def count_right_headings(frames: Sequence[Frame], found: Sequence[Boxes3D], kind: str) -> tuple[int, int]:
    """Among the objects of a class with at least 20 returns: how many are found within 1 m with a heading error below
    90 degrees, and how many are found within 1 m."""
    right = number = 0
    for frame, boxes in zip(frames, found, strict=True):
        assert frame.truth is not None
        pairs = match(frame, boxes, kind, criterion="centre", threshold=1.0, fewest_points=20).true_positives
        right += int((np.cos(frame.truth.yaw[pairs[:, 0]] - boxes.yaw[pairs[:, 1]]) > 0).sum())
        number += len(pairs)
    return right, number


def bar_verdict(value: float, bar: float | None) -> str:
    """Whether a value reaches its bar, or by how much it misses it; empty without a bar."""
    if bar is None:
        return ""
    return f"; bar {bar:.0f} met" if value >= bar else f"; bar {bar:.0f} missed by {bar - value:.1f}"


def with_scored_classes(frame: Frame) -> Frame:
    """The frame with the names of the classes that are scored. KITTI objects that are neither easy nor moderate get a
    name for which a detection is ignored."""
    truth = frame.truth
    if truth is not None:
        truth = replace(truth, names=tuple(_CLASS_OF.get(name, name) for name in truth.names))
        frame = replace(frame, truth=truth)
    if truth is None or truth.box_2d is None or truth.occlusion is None or truth.truncation is None:
        return frame
    hard = (truth.box_2d[:, 3] - truth.box_2d[:, 1] < 25) | (truth.occlusion > 1) | (truth.truncation > 0.3)
    ignored = {"car": "van", "pedestrian": "person_sitting"}
    names = tuple(ignored.get(name, name) if is_hard else name for name, is_hard in zip(truth.names, hard, strict=True))
    return replace(frame, truth=replace(truth, names=names))


def real_rows(
    data_set: str, detector: Detector, thresholds: Mapping[str, float], frames: Sequence[Frame]
) -> Iterator[tuple[str, str]]:
    """True positives, objects and false positives in real frames."""
    found = [shown_boxes(detector.detect(frame), thresholds) for frame in frames]
    shown = (
        [in_image(frame, boxes) for frame, boxes in zip(frames, found, strict=True)] if data_set == "KITTI" else found
    )
    for kind in _CLASSES:
        parts, counts = [], []
        for label, criterion, threshold in (
            ("BEV IoU 0.5", "iou", 0.5),
            ("BEV IoU 0.7", "iou", 0.7),
            ("centre within 2 m", "centre", 2.0),
        ):
            counted = count(
                frames,
                shown,
                kind,
                criterion="iou" if criterion == "iou" else "centre",
                threshold=threshold,
                fewest_points=MIN_POINTS,
            )
            counts.append(counted)
            parts.append(f"{label}: {counted.true_positives} of {counted.objects}, {counted.false_positives} false")
        if counted.objects + counted.detections:
            if beyond := count_beyond_range(detector, frames, kind):
                parts.append(f"{beyond} of the objects are beyond the range")
            if kind == "car" and detector.sensor == "lidar":
                parts += real_cars_bar(data_set, *counts)
            yield f"{kind}, {data_set}, frames: {len(frames)}", "; ".join(parts)
    own = sum(count_own_vehicle_boxes(boxes) for boxes in found)
    yield f"boxes on the own vehicle, {data_set}", str(own)


def count_beyond_range(detector: Detector, frames: Sequence[Frame], kind: str) -> int:
    """How many of the scored objects are outside the range of a LiDAR network; 0 for a camera network."""
    if not isinstance(detector, LidarDetector):
        return 0
    number = 0
    for frame in frames:
        truth = frame.truth
        assert truth is not None
        counted = np.array([name == kind for name in truth.names], bool)
        if truth.point_counts is not None:
            counted &= truth.point_counts >= MIN_POINTS
        number += int((counted & ~detector.in_range(frame, truth)).sum())
    return number


def real_cars_bar(data_set: str, at_half: Counts, at_seven_tenths: Counts, within_2_m: Counts) -> list[str]:
    """The bar for the cars in these frames, and whether it is met."""
    if data_set == "KITTI":
        met = at_half.objects == at_half.true_positives and at_seven_tenths.true_positives >= 2
        verdict = "met" if met and at_half.false_positives <= 5 else "missed"
        return [f"bar (all at 0.5, 2 at 0.7, at most 5 false): {verdict}"]
    if data_set == "nuScenes":
        # The bar was ten of 16 cars; the frame has fewer cars with enough returns in its single sweep.
        met = within_2_m.true_positives >= _NUSCENES_RECALL_BAR * within_2_m.objects and within_2_m.false_positives <= 3
        return [f"bar (62 % within 2 m, at most 3 false): {'met' if met else 'missed'}"]
    return []


def count_own_vehicle_boxes(boxes: Boxes3D) -> int:
    """How many boxes have their centre within the vehicle that carries the sensors."""
    along, across = np.abs(boxes.centre_lidar_m[:, 0]), np.abs(boxes.centre_lidar_m[:, 1])
    return int(((along < _OWN_VEHICLE_M) & (across < _OWN_VEHICLE_M / 2)).sum())


def latency(name: str, detector: Detector, frames: Sequence[Frame]) -> Sequence[str]:
    """The median milliseconds for a real frame, from points or image in memory to boxes."""
    detector.detect(frames[0])
    times = []
    for frame in frames:
        began = time.perf_counter()
        detector.detect(frame)
        times.append(1e3 * (time.perf_counter() - began))
    text = f"{statistics.median(times):.0f} ms on this CPU, {torch.get_num_threads()} threads"
    return (f"{name}: one real frame", "python -m benchmarks.detect_3d", text)


def resnext(quick: bool) -> Sequence[str]:
    """Times the network on this machine. The claim of 35 frames/s at 1024 x 2048 is for a GPU."""
    title = "FCOS3D, ResNeXt-101 32x8d, 1024 x 2048"
    if quick:
        return (title, "35 frames/s on a GPU (claim)", "not measured on this CPU")
    detector = FCOS3D().build(CameraInput(image=(1024, 2048), focal_px=2262.5)).eval()
    image, intrinsics = (
        torch.zeros(1, 3, 1024, 2048, dtype=torch.uint8),
        torch.tensor([[[2262.5, 0, 1024], [0, 2262.5, 512], [0, 0, 1.0]]]),
    )
    began = time.perf_counter()
    with torch.inference_mode():
        structures.predict(detector, structures.camera_data(image, intrinsics))
    return (title, "35 frames/s on a GPU (claim)", f"{1 / (time.perf_counter() - began):.3f} frames/s on this CPU")
