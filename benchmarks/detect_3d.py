"""3D detection: mmdet3d's own test step against ours, on the same weights and inputs, in one process.

The peer is what mmdet3d's inferencers and test loop call for each frame: ``pseudo_collate`` and ``test_step``. Both
sides start with arrays in memory and end with boxes. FCOS3D gets the images of six cameras, PointPillars one synthetic
sweep. Ours uses the program chosen on this machine; in fp32 with torch modules it must find the same boxes. For a
program that rounds, the loss of AP R40 on the recipe's validation data is shown. mmcv's compiled operators are not
available in this environment; both sides use the same replacement. CPU-seconds are compared, in turns. The time of our
second stage after PointPillars is also printed: mmdet3d has no second stage.

``--large`` measures something else: FCOS3D with ResNeXt-101 32x4d at 1024 x 2048, with random weights, on one image
with each program. INT8 is calibrated on that image, and only shows the speed.

The bars: at least 2.5 times as fast as mmdet3d end to end, with the same boxes in fp32; AP within 0.5 points in bf16
and 1 point in INT8; the large network in at most 8 CPU-seconds in bf16.

    python -m benchmarks.detect_3d [--cases N] [--large]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
from apps.driving.models.dense import dense_camera
from apps.driving.models.fcos3d import FCOS3D, OUTPUTS, ImageToHeads, example_image
from apps.driving.models.pillars import ProgramPillars
from apps.driving.types import CameraInput
from benchmarks.report import one_thread, report
from shared.app import DenseNetwork, DomainScore
from shared.deploy.artifact import load_weights
from shared.deploy.onnx_network import write_onnx
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.openvino import compile_model, open_core, openvino_compute
from shared.deploy.programs.program import Placement, Program
from shared.deploy.programs.timing import measure_latency
from shared.deploy.programs.torch_eager import load_eager
from shared.deploy.registry import Registry
from shared.recipes import recipe_of
from shared.threads import set_compute_threads

REPEATS = 15
BAR, LARGE_BAR = 2.5, 8.0
LARGE_SIZE = 1024, 2048
AP_LOSS_BARS = {"bf16": 0.5, "int8": 1.0}
"""The maximum loss in points of AP."""
CAMERAS = 6
MAX_DIFFERENCE = 2e-3
Detections = tuple[Tensor, Tensor, Tensor]
"""Boxes, scores and labels."""


def main() -> None:
    """Times both, compares their boxes, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="frames on which AP is compared")
    parser.add_argument("--large", action="store_true", help="FCOS3D with ResNeXt-101 at 1024 x 2048 instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    one_thread()
    if arguments.large:
        large()
        return
    figures: dict[str, float] = {}
    equal, within_loss, notes = True, True, []
    for name, prepare in (("fcos3d", cameras), ("pointpillars", sweep)):
        detector, opened, reference, weights = network(name)
        peer, ours = prepare(detector, opened)
        expected, found = peer(), prepare(detector, reference)[1]()
        equal &= all(same(one, other) for one, other in zip(expected, found, strict=True))
        times = interleaved(peer, ours)
        figures |= {f"{name} mmdet3d, CPU ms": 1e3 * times[0], f"{name} trivium, CPU ms": 1e3 * times[1]}
        figures[f"{name} ratio"] = times[0] / times[1]
        notes.append(f"{name}: {weights}, {sum(len(scores) for _, scores, _ in expected)} boxes")
        assert opened.program is not None
        if (bar := AP_LOSS_BARS.get(opened.program.name.rpartition("-")[2])) is not None:
            before, after = (
                average_precision(name, program, arguments.cases) for program in ("torch", opened.program.name)
            )
            figures[f"{name} AP lost (points)"] = before.value - after.value
            within_loss &= before.value - after.value <= bar
            notes.append(f"{before.name} {before.value:.2f} in fp32 and {after.value:.2f} on {before.count}")
    figures["second stage after pointpillars, CPU ms"] = 1e3 * second_stage()
    ratio = min(figures["fcos3d ratio"], figures["pointpillars ratio"])
    note = (
        f"{'; '.join(notes)}; equal in fp32 to {MAX_DIFFERENCE}: {equal}. Ratio is the smaller of the two; medians of "
        f"{REPEATS}, {torch.get_num_threads()} threads. The bar is {BAR:g} times."
    )
    figures["load of the machine"] = os.getloadavg()[0]
    report("detect_3d", figures, ratio=ratio, ok=equal and within_loss and ratio >= BAR, note=note)


def average_precision(name: str, program: str, cases: int) -> DomainScore:
    """AP R40 of a shipped network with a program, on the validation data of its recipe."""
    artifact = Registry(app.weights).newest(name)
    assert app.score is not None
    with use_program(program):
        predictor = app.predictor([artifact], "cpu")
    return app.score(predictor, recipe_of(app, artifact.recipe()).data, cases)[0]


def network(name: str) -> tuple[nn.Module, Detector, Detector, str]:
    """mmdet3d's detector with the shipped weights, ours with the chosen program and with torch, and a description."""
    artifact = Registry(app.weights).newest(name)
    recipe = recipe_of(app, artifact.recipe())
    detector = load_weights(recipe.model.build(recipe.input), artifact, "cpu")
    ours = open_detector(artifact, "cpu")
    with use_program("torch"):
        reference = open_detector(artifact, "cpu")
    program = ours.program
    assert program is not None
    description = f"shipped weights, version {artifact.manifest.version}, by {program.name} ({program.reason})"
    return detector, ours, reference, description


def large() -> None:
    """Times FCOS3D with ResNeXt-101 32x4d on one image of 1024 x 2048 with each program, and reports."""
    import nncf
    import openvino

    height, width = LARGE_SIZE
    detector = FCOS3D(backbone="resnext101_32x4d").build(CameraInput()).eval()
    library = DenseNetwork(module=ImageToHeads(detector), inputs={}, outputs=OUTPUTS)
    image = {"image": example_image(height, width)}
    dense = dense_camera(detector)
    place = Placement("cpu", set_compute_threads())
    with tempfile.TemporaryDirectory(prefix="trivium-large-") as folder:
        onnx, int8 = Path(folder) / "model.onnx", Path(folder) / "openvino-int8.xml"
        write_onnx(dense, onnx)
        quantised = nncf.quantize(
            open_core().read_model(onnx),
            nncf.Dataset([{"image": image["image"][:, :, : height // 4, : width // 4].numpy()}]),
            subset_size=1,
        )
        openvino.save_model(quantised, int8, compress_to_fp16=False)
        compute = {
            "mmdet3d": load_eager(replace(library, inputs=dense.inputs)),
            "torch-bf16": load_eager(dense, "bf16"),
        }
        compute |= {
            "openvino": openvino_compute(compile_model(onnx, "fp32", place)),
            "openvino-bf16": openvino_compute(compile_model(onnx, "bf16", place)),
            "openvino-int8": openvino_compute(compile_model(int8, "int8", place)),
        }
        programs = {name: Program(name=name, compute=function) for name, function in compute.items()}
        milliseconds = measure_latency(programs, image, time.process_time)
    figures = {f"{name} (CPU-seconds)": value / 1e3 for name, value in milliseconds.items()}
    figures["load of the machine"] = os.getloadavg()[0]
    best = min(value / 1e3 for name, value in milliseconds.items() if name.endswith("bf16"))
    note = (
        f"random weights, one image of {height} x {width}, {place.threads} threads; INT8 of random weights shows speed "
        f"alone. The bar is {LARGE_BAR:g} CPU-seconds in bf16; its best is {best:.3g}"
    )
    ratio = milliseconds["mmdet3d"] / 1e3 / best
    report("detect_3d --large", figures, ratio=ratio, ok=best <= LARGE_BAR, note=note)


def cameras(
    detector: nn.Module, opened: Detector
) -> tuple[Callable[[], list[Detections]], Callable[[], list[Detections]]]:
    """Runs six synthetic images one by one through ``test_step``, and as one batch through ours."""
    from mmengine.dataset import pseudo_collate

    frames = [
        scene(np.random.default_rng(n), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0)) for n in range(CAMERAS)
    ]
    views = [next(iter(frame.cameras.values())) for frame in frames]
    images = [torch.from_numpy(view.image_HWC).permute(2, 0, 1).contiguous() for view in views]
    intrinsics = torch.from_numpy(np.stack([view.intrinsics for view in views]))
    assert isinstance(opened, CameraDetector)

    def peer() -> list[Detections]:
        results = []
        for index, image in enumerate(images):
            data = structures.camera_data([image], intrinsics[index : index + 1])
            item: dict[str, Any] = {"inputs": {"img": image}, "data_samples": data["data_samples"][0]}
            with torch.no_grad():
                results.append(
                    structures.instance_tensors(detector.test_step(pseudo_collate([item]))[0].pred_instances_3d)
                )
        return results

    def ours() -> list[Detections]:
        with torch.inference_mode():
            maps = opened.program({"image": opened.colours(images)})
            return [opened.decode(maps, n, intrinsics[n].float(), (1.0, 1.0)) for n in range(len(images))]

    return peer, ours


def sweep(
    detector: nn.Module, opened: Detector
) -> tuple[Callable[[], list[Detections]], Callable[[], list[Detections]]]:
    """Runs one synthetic sweep through ``test_step`` and through ours.

    Here ours uses as many points per pillar as mmdet3d, so that both find the same boxes.
    """
    from mmengine.dataset import pseudo_collate

    frame = scene(np.random.default_rng(0), sensors=Sensors(field_of_view_deg=180.0))
    assert frame.points_lidar_m is not None
    assert isinstance(opened, LidarDetector) and isinstance(opened.network, ProgramPillars)
    points = torch.from_numpy(opened.input.crop(frame.points_lidar_m))
    preprocessor: Any = detector.data_preprocessor
    fast, voxels = opened.network, preprocessor.voxel_layer
    if int(voxels.max_num_points) > 0:
        fast.encoder.max_points, fast.encoder.max_pillars = int(voxels.max_num_points), int(voxels.max_voxels[1])

    def peer() -> list[Detections]:
        data = structures.lidar_data([points])
        item: dict[str, Any] = {"inputs": {"points": points}, "data_samples": data["data_samples"][0]}
        with torch.no_grad():
            return [structures.instance_tensors(detector.test_step(pseudo_collate([item]))[0].pred_instances_3d)]

    def ours() -> list[Detections]:
        with torch.inference_mode():
            return [fast.predict(points)]

    return peer, ours


def second_stage() -> float:
    """The median CPU-seconds of the shipped second stage for the boxes of one synthetic sweep."""
    artifact = Registry(app.weights).newest("pointpillars")
    detector = app.predictor([artifact, *app.served_with(artifact)], "cpu").detectors["pointpillars"]
    frame = scene(np.random.default_rng(0), sensors=Sensors(field_of_view_deg=180.0))
    boxes = replace(detector, second_stage=None).detect(frame)
    second = detector.second_stage
    return statistics.median(timed(lambda: second.refine(boxes, frame.points_lidar_m)) for _ in range(REPEATS))


def timed(call: Callable[[], Any]) -> float:
    """The CPU-seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def interleaved(peer: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """The median CPU-seconds of each, measured in turns so that other load on the machine affects both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for call, seconds in ((peer, times[0]), (ours, times[1])):
            seconds.append(timed(call))
    return statistics.median(times[0]), statistics.median(times[1])


def same(expected: Detections, found: Detections) -> bool:
    """Whether both have the same number of boxes, and each expected box has an equal."""
    if len(expected[1]) != len(found[1]):
        return False
    for box, score, label in zip(*expected, strict=True):
        distance = (found[0] - box).abs().amax(dim=1) + (found[1] - score).abs() + 10.0 * (found[2] != label)
        if distance.min() > MAX_DIFFERENCE:
            return False
    return True


if __name__ == "__main__":
    main()
