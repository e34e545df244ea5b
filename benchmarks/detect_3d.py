"""3D detection: mmdet3d's own test step against ours, on the same weights and inputs, in one process.

The peer is what mmdet3d's inferencers and test loop call for each frame: ``pseudo_collate`` and ``test_step``. Both
sides begin with arrays in memory and end with boxes. FCOS3D looks at the six cameras of a vehicle, PointPillars at one
synthetic sweep; ours computes with the program that is chosen here. mmcv's compiled operators are not in this
environment; both sides use the same stand-in for them. Judged by CPU-seconds, in turns.

The bar: at least 2.5 times as fast as mmdet3d, end to end, with the same boxes.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.app import app
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.inference.artifacts import open_detector
from apps.driving.inference.detect import CameraDetector, Detector, LidarDetector
from apps.driving.models import structures
from apps.driving.models.pillars import ProgramPillars
from apps.driving.recipes import RECIPES
from benchmarks.report import report
from shared.deploy.artifact import load_weights
from shared.deploy.registry import Registry
from shared.recipes import recipe_of

REPEATS = 15
BAR = 2.5
CAMERAS = 6
TOLERANCE = 2e-3
Found = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    """Times both, compares what they found, and reports."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    figures: dict[str, float] = {}
    equal, notes = True, []
    for name, prepare in (("fcos3d", cameras), ("pointpillars", sweep)):
        detector, ours_opened, weights = network(name)
        peer, ours = prepare(detector, ours_opened)
        expected, found = peer(), ours()
        equal &= all(same(one, other) for one, other in zip(expected, found, strict=True))
        times = interleaved(peer, ours)
        figures |= {f"{name} mmdet3d, CPU ms": 1e3 * times[0], f"{name} trivium, CPU ms": 1e3 * times[1]}
        figures[f"{name} ratio"] = times[0] / times[1]
        notes.append(f"{name}: {weights}, {sum(len(scores) for _, scores, _ in expected)} boxes")
    ratio = min(figures["fcos3d ratio"], figures["pointpillars ratio"])
    note = (
        f"{'; '.join(notes)}; equal to {TOLERANCE}: {equal}. Ratio is the smaller of the two; medians of {REPEATS}, "
        f"{torch.get_num_threads()} threads. The bar is {BAR:g} times."
    )
    figures["load of the machine"] = os.getloadavg()[0]
    report("detect_3d", figures, ratio=ratio, ok=equal and ratio >= BAR, note=note)


def network(name: str) -> tuple[nn.Module, Detector, str]:
    """The shipped detector of mmdet3d in evaluation mode, ours of the same weights, and what they are."""
    artifact = Registry(app.weights).newest(name)
    recipe = recipe_of(app, artifact.recipe())
    detector = load_weights(recipe.model.build(recipe.input), artifact, "cpu")
    ours = open_detector(artifact, "cpu")
    program = ours.program
    assert program is not None
    return detector, ours, f"shipped weights, version {artifact.manifest.version}, by {program.name} ({program.reason})"


def cameras(detector: nn.Module, opened: Detector) -> tuple[Callable[[], list[Found]], Callable[[], list[Found]]]:
    """Six synthetic images: one after the other through ``test_step``, and together through ours, with its program."""
    from mmengine.dataset import pseudo_collate

    frames = [
        scene(np.random.default_rng(n), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0)) for n in range(CAMERAS)
    ]
    views = [next(iter(frame.cameras.values())) for frame in frames]
    images = [torch.from_numpy(view.image_HWC).permute(2, 0, 1).contiguous() for view in views]
    intrinsics = torch.from_numpy(np.stack([view.intrinsics for view in views]))
    assert isinstance(opened, CameraDetector)

    def peer() -> list[Found]:
        results = []
        for number, image in enumerate(images):
            data = structures.camera_data([image], intrinsics[number : number + 1])
            item: dict[str, Any] = {"inputs": {"img": image}, "data_samples": data["data_samples"][0]}
            with torch.no_grad():
                results.append(
                    structures.instance_tensors(detector.test_step(pseudo_collate([item]))[0].pred_instances_3d)
                )
        return results

    def ours() -> list[Found]:
        with torch.inference_mode():
            maps = opened.program({"image": opened.colours(images)})
            return [opened.decode(maps, n, intrinsics[n].float(), (1.0, 1.0)) for n in range(len(images))]

    return peer, ours


def sweep(detector: nn.Module, opened: Detector) -> tuple[Callable[[], list[Found]], Callable[[], list[Found]]]:
    """One synthetic sweep through ``test_step``, and through ours, with its program.

    Here ours is shown the points that mmdet3d takes of a pillar, no more, so that both find the same.
    """
    from mmengine.dataset import pseudo_collate

    frame = scene(np.random.default_rng(0), sensors=Sensors(field_of_view_deg=180.0))
    assert frame.points_lidar_m is not None
    points = torch.from_numpy(RECIPES["small"]().input.crop(frame.points_lidar_m))
    assert isinstance(opened, LidarDetector) and isinstance(opened.network, ProgramPillars)
    preprocessor: Any = detector.data_preprocessor
    fast, voxels = opened.network, preprocessor.voxel_layer
    fast.encoder.most_points, fast.encoder.most_pillars = int(voxels.max_num_points), int(voxels.max_voxels[1])

    def peer() -> list[Found]:
        data = structures.lidar_data([points])
        item: dict[str, Any] = {"inputs": {"points": points}, "data_samples": data["data_samples"][0]}
        with torch.no_grad():
            return [structures.instance_tensors(detector.test_step(pseudo_collate([item]))[0].pred_instances_3d)]

    def ours() -> list[Found]:
        with torch.inference_mode():
            return [fast.predict(points)]

    return peer, ours


def interleaved(peer: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Median CPU-seconds of each, taken in turns so that what else the machine does weighs on both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for call, taken in ((peer, times[0]), (ours, times[1])):
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def same(one: Found, other: Found) -> bool:
    """Whether each box of one has its equal in the other, and they are as many."""
    if len(one[1]) != len(other[1]):
        return False
    for box, score, label in zip(*one, strict=True):
        away = (other[0] - box).abs().amax(dim=1) + (other[1] - score).abs() + 10.0 * (other[2] != label)
        if away.min() > TOLERANCE:
            return False
    return True


if __name__ == "__main__":
    main()
