"""KITTI's average precision of 3,769 frames: mmdet3d's own evaluation against ours, on the CPU.

Both score the same synthetic labels and results, with about six objects and twelve detections per frame. mmdet3d
computes the overlap of rotated boxes only on a GPU, so the two are compared by the overlap in the image, with
orientation (2D, AOS); ours is also timed for all four metrics. numba compiles mmdet3d's functions on a few frames
before timing starts.

    python -m benchmarks.score_kitti [--quick]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from apps.driving.metrics.kitti_ap import DIFFICULTIES, MIN_OVERLAPS, average_precision
from apps.driving.metrics.kitti_objects import KittiObjects
from benchmarks.report import report

FRAMES = 3769
SIZES = {"Car": (1.5, 1.6, 3.9), "Pedestrian": (1.75, 0.65, 0.8), "Cyclist": (1.7, 0.6, 1.8), "Van": (2.0, 1.9, 5.0)}
FOCAL_PX, CENTRE_PX = 721.0, (609.0, 172.0)


def main() -> None:
    """Runs the comparison and prints it; ``--quick`` takes a tenth of the frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the frames")
    frames = FRAMES // 10 if parser.parse_args().quick else FRAMES
    random = np.random.default_rng(0)
    rows = [synthetic_frame(random) for _ in range(frames)]
    labels, detections = (_objects([frame[side] for frame in rows]) for side in (0, 1))
    start = time.perf_counter()
    ours = average_precision(labels, detections, measures=("2d",))
    our_2d_s = time.perf_counter() - start
    start = time.perf_counter()
    average_precision(labels, detections)
    our_all_s = time.perf_counter() - start
    evaluation = mmdet3d_evaluation()
    min_overlaps = np.array([[list(MIN_OVERLAPS.values())] * 3])
    label_annotations, result_annotations = ([_annotations(frame[side]) for frame in rows] for side in (0, 1))
    evaluation.do_eval(label_annotations[:5], result_annotations[:5], [0, 1, 2], min_overlaps, ["bbox", "aos"])
    start = time.perf_counter()
    figures = evaluation.do_eval(label_annotations, result_annotations, [0, 1, 2], min_overlaps, ["bbox", "aos"])
    peer_s = time.perf_counter() - start
    difference = max(
        abs(float(figures[column][index, level, 0]) - ours[f"{name}/{measure}/{difficulty}"])
        for index, name in enumerate(MIN_OVERLAPS)
        for level, difficulty in enumerate(DIFFICULTIES)
        for measure, column in (("2d", 4), ("aos", 7))
    )
    report(
        "score_kitti",
        {
            "frames": frames,
            "objects": len(labels),
            "detections": len(detections),
            "mmdet3d, 2D and AOS s": peer_s,
            "ours, 2D and AOS s": our_2d_s,
            "ours, 2D, AOS, BEV and 3D s": our_all_s,
            "largest difference of an AP in percent": difference,
        },
        ratio=peer_s / our_2d_s,
        ok=difference < 1e-6,
        note="synthetic labels and results, in memory; numba compiled beforehand",
    )


Row = tuple[str, list[float]]


def synthetic_frame(random: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """The labels and the results of a frame; each row is a name and KITTI's columns 2 to 16."""
    labels, detections = [], []
    for _ in range(random.integers(1, 12)):
        name = str(random.choice(list(SIZES), p=(0.6, 0.2, 0.1, 0.1)))
        depth, yaw = random.uniform(5, 60), random.uniform(-3, 3)
        x = random.uniform(-0.5, 0.5) * depth
        visibility = (random.choice([0, 0, 0, 0.2, 0.4]), random.choice([0, 0, 1, 2]))
        labels.append((name, _columns(np.array(SIZES[name]), x, depth, yaw, visibility, 0.0)))
        for _ in range(random.choice([0, 1, 1, 1, 2])):
            size = np.array(SIZES[name]) * random.normal(1, 0.04, 3)
            pose = (x + random.normal(0, 0.1), depth + random.normal(0, 0.15), yaw + random.normal(0, 0.1))
            detections.append((name.replace("Van", "Car"), _columns(size, *pose, (-1, -1), float(random.beta(4, 2)))))
    for _ in range(random.integers(0, 12)):
        name, depth = str(random.choice(list(SIZES)[:3])), random.uniform(5, 60)
        pose = (random.uniform(-0.5, 0.5) * depth, depth, random.uniform(-3, 3))
        detections.append((name, _columns(np.array(SIZES[name]), *pose, (-1, -1), float(random.beta(1, 4)))))
    return labels, detections


def _columns(
    size: np.ndarray, x: float, depth: float, yaw: float, visibility: tuple[float, float], score: float
) -> list[float]:
    height, width, length = size.tolist()
    u, v = CENTRE_PX[0] + FOCAL_PX * x / depth, CENTRE_PX[1] + FOCAL_PX * 1.65 / depth
    half_width, image_height = FOCAL_PX * (width + length) / 4 / depth, FOCAL_PX * height / depth
    box = [u - half_width, v - image_height, u + half_width, v]
    alpha = yaw - float(np.arctan2(x, depth))
    return [*visibility, alpha, *box, height, width, length, x, 1.65, depth, yaw, score]


def _objects(frames: list[list[Row]]) -> KittiObjects:
    numbers = [number for number, rows in enumerate(frames) for _ in rows]
    names, values = [name for rows in frames for name, _ in rows], [row for rows in frames for _, row in rows]
    return KittiObjects.of_rows(numbers, names, np.array(values))


def _annotations(rows: list[Row]) -> dict[str, np.ndarray]:
    """The annotations of a frame in mmdet3d's format."""
    values = np.array([row for _, row in rows]).reshape(-1, 15)
    return {
        "name": np.array([name for name, _ in rows], np.str_),
        "truncated": values[:, 0],
        "occluded": values[:, 1].astype(int),
        "alpha": values[:, 2],
        "bbox": values[:, 3:7],
        "dimensions": values[:, [9, 7, 8]],
        "location": values[:, 10:13],
        "rotation_y": values[:, 13],
        "score": values[:, 14],
    }


def mmdet3d_evaluation() -> Any:
    """Imports mmdet3d's module from its file: importing its package would need a CUDA compiler."""
    spec = importlib.util.find_spec("mmdet3d")
    if spec is None or spec.origin is None:
        raise SystemExit("mmdet3d is not installed: pip install 'trivium[driving]'")
    package = types.ModuleType("kitti_utils")
    package.__path__ = [str(Path(spec.origin).parent / "evaluation" / "functional" / "kitti_utils")]
    sys.modules["kitti_utils"] = package
    warnings.simplefilter("ignore")
    return importlib.import_module("kitti_utils.eval")


if __name__ == "__main__":
    main()
