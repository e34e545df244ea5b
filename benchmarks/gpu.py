"""The networks on a GPU, with eager torch in fp32 and with the programs for GPUs, in milliseconds per call.

The networks are FCOS3D with ResNeXt-101 32x4d on an image of 1024 x 2048, MONAI's LUNA16 network on a box around the
lungs of 384 x 256 x 256 voxels in four tiles, and the forecaster on 2,048 windows. The weights are random: only speed
is measured. fp16 runs with channels last in a CUDA graph of the one input shape, with torch.compile and without. The
steps around the networks are timed too: uploading and resizing an image on the device, and the decoding of PointPillars
and FCOS3D including suppression. So are whole predictions: JPEG files of 1024 x 2048 to boxes in frames per second, one
by one and overlapped as in ``trivium predict driving FOLDER --each``, which must give the same boxes; and a CT of 512 x
512 x 256 from its DICOM files to findings, as the p95 of the seconds. The goals of 120 frames per second and 0.2 s are
printed, but do not decide whether the benchmark passes. A program may differ from fp32 by little more than eager torch
in the same format does.

Without a GPU the same code runs on the CPU in bf16 at small sizes. That shows that the code runs, not how fast a GPU
is.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apps.driving.adapters import kitti
from apps.driving.inference.detect import CameraDetector
from apps.driving.inference.upload import image_at_focal_length
from apps.driving.inference.video import overlapped
from apps.driving.models.decoding import CAMERA, AnchorDecoder, CameraDecoder, Normalisation, anchors
from apps.driving.models.dense import dense_camera
from apps.driving.models.fcos3d import FCOS3D, example_image
from apps.driving.predictor import DrivingPredictor, Options
from apps.driving.recipes import RECIPES as DRIVING
from apps.driving.types import Camera, CameraInput
from apps.finance.models.settings import FinanceModel
from apps.finance.models.tft import dense, example_input
from apps.finance.types import FinanceInput
from apps.medical.adapters.source import read_volume
from apps.medical.datasets.synth.phantom import volume as phantom
from apps.medical.models.boxes import BoxDecoder
from apps.medical.models.dense import dense_network
from apps.medical.models.retinanet import full
from apps.medical.predictor import NodulePredictor
from apps.medical.predictor import Options as FindingOptions
from apps.medical.types import ChestInput
from benchmarks.detect_ct import dicom_zip
from benchmarks.report import report
from shared.app import DenseNetwork
from shared.deploy.programs.program import Compute, Placement, Program, ProgramError, Source, relative_error
from shared.deploy.programs.table import find_program

PROGRAMS = {
    "cuda": ("torch", "torch-bf16", "torch-fp16", "cudagraph-fp16", "compile-fp16"),
    "cpu": ("torch", "torch-bf16"),
}
FRAMES_BAR = 35.0
"""Frames per second of FCOS3D ResNeXt-101, the network alone, as the project claims."""
REPEATS = 10
NUM_FRAMES = {"cuda": 240, "cpu": 12}
NUM_SCANS = {"cuda": 20, "cpu": 1}
MAX_BOXES = 50
"""The maximum number of boxes in a frame, as on a busy street."""
FRAMES_GOAL, SCAN_GOAL = 120.0, 0.2


def main() -> None:
    """Measures on this machine's device and reports."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures: dict[str, float] = {}
    notes, outputs_agree = [], True
    timings: dict[str, list[tuple[float, Compute]]] = {}
    for name, network, inputs in networks(small=device == "cpu"):
        device_inputs = {key: value.to(device) for key, value in inputs.items()}
        expected: dict[str, Tensor] = {}
        rounding: dict[str, float] = {}
        for program in PROGRAMS[device]:
            try:
                compute = load(program, network, device)
                outputs = compute(device_inputs)
                milliseconds = timed(lambda: compute(device_inputs), device)  # noqa: B023 - called at once
            except (ProgramError, RuntimeError) as error:
                notes.append(f"{name} by {program}: {str(error).strip().partition(chr(10))[0]}")
                outputs_agree = False
                continue
            figures[f"{name}, {program} (ms)"] = milliseconds
            expected = expected or outputs
            error = relative_error(expected, outputs)
            figures[f"{name}, {program}: differs from fp32 by"] = error
            rounding.setdefault(program.partition("-")[2], error)
            outputs_agree &= error <= 2 * rounding[program.partition("-")[2]] + 1e-3
            timings.setdefault(name, []).append((milliseconds, compute))
    figures["PointPillars decoding and suppression (ms)"] = decoding(device)
    figures |= camera_steps(device)
    camera_timings, scan_timings = timings["FCOS3D ResNeXt-101"], timings["MONAI LUNA16"]
    fastest_ms, fastest_compute = min(camera_timings, key=lambda timing: timing[0])
    file_figures, same_boxes = camera_files(fastest_compute, device)
    figures |= file_figures | ct_files(min(scan_timings, key=lambda timing: timing[0])[1], device)
    outputs_agree &= same_boxes
    if device == "cpu":
        notes.append("there is no GPU: small sizes on the CPU, which say nothing about the speed of a GPU")
    notes.append(f"overlapped frames have the boxes of one by one: {'yes' if same_boxes else 'NO'}")
    notes.append(f"the goals are {FRAMES_GOAL:g} frames a second from JPEG files, and {SCAN_GOAL:g} s from DICOM's")
    note = "; ".join([f"on {device}, medians of {REPEATS}", *notes])
    frames = 1e3 / fastest_ms
    figures["FCOS3D ResNeXt-101, frames a second"] = frames
    report(
        "gpu",
        figures,
        ratio=camera_timings[0][0] / fastest_ms,
        ok=outputs_agree and (device == "cpu" or frames >= FRAMES_BAR),
        note=note,
    )


def networks(*, small: bool) -> list[tuple[str, DenseNetwork, Mapping[str, Tensor]]]:
    """The name, the network and the inputs of each network, on the CPU."""
    height, width = (64, 128) if small else (1024, 2048)
    camera = dense_camera(FCOS3D(backbone="resnext101_32x4d").build(CameraInput()).eval())
    chest = dense_network(full().build(ChestInput()).eval())
    size = (2, 1, 32, 32, 16) if small else (4, 1, 192, 128, 256)
    window = FinanceInput(context=64, horizon=8)
    forecaster = dense(FinanceModel().build(window).eval())
    return [
        ("FCOS3D ResNeXt-101", camera, {"image": example_image(height, width)}),
        ("MONAI LUNA16", chest, {"image": torch.rand(size)}),
        ("TFT", forecaster, example_input(window, 64 if small else 2048)),
    ]


def load(program: str, network: DenseNetwork, device: str) -> Compute:
    """Loads a program of the network's torch modules. Raises ``ProgramError`` if it cannot be used."""
    runtime, format = find_program(program)
    if (reason := runtime.why_not(format, device)) is not None:
        raise ProgramError(reason)
    return runtime.load(Source(None, lambda: network), format, Placement(device))


def timed(call: Callable[[], Any], device: str) -> float:
    """The median milliseconds of a call, until the device has finished."""
    milliseconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return statistics.median(milliseconds[1:])


def decoding(device: str) -> float:
    """Milliseconds from PointPillars' maps to boxes, on maps with a hundred anchors above the minimum score."""
    input_spec = DRIVING["small"]().input
    rows, columns, kinds = 124, 108, len(input_spec.classes)
    decoder = AnchorDecoder(anchors(input_spec, rows, columns).to(device), kinds)
    generator = torch.Generator().manual_seed(0)
    scores, boxes, directions = (
        torch.randn(1, number * 2 * kinds, rows, columns, generator=generator).to(device) for number in (kinds, 7, 2)
    )
    return timed(lambda: decoder(scores - 2, boxes * 0.1, directions), device)


def camera_steps(device: str) -> dict[str, float]:
    """Milliseconds of an image's upload, resizing and normalisation, and of decoding FCOS3D's maps to boxes.

    Some hundred candidates are above the minimum score.
    """
    height, width = (128, 256) if device == "cpu" else (1024, 2048)
    focal_px = 0.6 * width
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (height * 3 // 2, width * 3 // 2, 3), generator=generator, dtype=torch.uint8)
    intrinsics = torch.tensor([[focal_px * 1.5, 0, width * 0.75], [0, focal_px * 1.5, height * 0.75], [0, 0, 1]])
    camera = Camera(image_HWC=pixels.numpy(), intrinsics=intrinsics.numpy(), lidar_to_camera=torch.eye(4).numpy())
    colours, decoder = Normalisation(), CameraDecoder()

    def prepare_image() -> Tensor:
        return colours([image_at_focal_length(camera, focal_px, device)[0]])

    maps = {}
    for stride in decoder.strides:
        rows, columns = -(-height // stride), -(-width // stride)
        for name, channels in (("scores", 3), ("boxes", 7), ("directions", 2), ("centerness", 1)):
            values = torch.randn(1, channels, rows, columns, generator=generator)
            if name == "scores":
                values = values - 5
            maps[f"{name}_{stride}"] = (values.abs() * 5 if name == "boxes" else values).to(device)
    return {
        "image to the device, resized and normalised (ms)": timed(prepare_image, device),
        "FCOS3D decoding and suppression (ms)": timed(
            lambda: [part.cpu() for part in decoder(maps, 0, intrinsics, (1 / 1.5, 1 / 1.5))], device
        ),
    }


def camera_files(network: Compute, device: str) -> tuple[dict[str, float], bool]:
    """Frames per second from JPEG files to boxes, one by one and overlapped, and whether both found the same boxes."""
    height, width = (64, 128) if device == "cpu" else (1024, 2048)
    input_spec = CameraInput(image=(height, width), focal_px=0.6 * width)

    def raise_scores(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises the scores in the maps: random weights would find nothing."""
        return {name: value + 4 if name.startswith("scores") else value for name, value in network(inputs).items()}

    program = Program(name="fastest", compute=raise_scores, device=device)
    decoder = CameraDecoder(suppression=replace(CAMERA, boxes=MAX_BOXES))
    detector = CameraDetector(program, input_spec, device, decode=decoder)
    predictor = DrivingPredictor(detectors={"fcos3d": detector}, least_scores={}, device=device)
    options = Options(score=0.05)
    with tempfile.TemporaryDirectory(prefix="trivium-frames-") as folder:
        root = Path(folder)
        ids = write_frames(root, NUM_FRAMES[device], input_spec)

        def read(frame_id: str) -> Any:
            return predictor.prepare(kitti.read_frame(root, frame_id, labelled=False, device=device), options)

        def finish(computed: Any) -> Any:
            return predictor.finish(computed, options)

        methods: dict[str, Callable[[Sequence[str]], list[Any]]] = {
            "one by one": lambda frame_ids: [finish(predictor.compute(read(one))) for one in frame_ids],
            "overlapped": lambda frame_ids: [
                answer.result() for _, answer in overlapped(frame_ids, read, predictor.compute, finish, device=device)
            ],
        }
        results, figures = [], {}
        for name, run in methods.items():
            run(ids[:4])
            start = time.perf_counter()
            results.append(run(ids))
            figures[f"FCOS3D ResNeXt-101, JPEG to boxes, {name} (frames/s)"] = len(ids) / (time.perf_counter() - start)
    pairs = [(one.boxes, other.boxes) for one, other in zip(*results, strict=True)]
    figures["boxes a frame"] = float(np.mean([len(one) for one, _ in pairs]))
    return figures, bool(pairs) and all(
        len(a) > 0 and a.names == b.names and np.allclose(a.array, b.array, atol=1e-3) for a, b in pairs
    )


def write_frames(root: Path, count: int, input_spec: CameraInput) -> list[str]:
    """Writes camera frames in KITTI's layout: JPEG images of the input's size and focal length, with calibrations."""
    (height, width), focal_px = input_spec.image, input_spec.training_focal_px
    for part in ("image_2", "calib"):
        (root / part).mkdir()
    camera = f"{focal_px} 0 {width / 2} 0 0 {focal_px} {height / 2} 0 0 0 1 0"
    text = f"P2: {camera}\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    generator, ids = np.random.default_rng(0), [f"{number:06d}" for number in range(count)]
    for frame_id in ids:
        coarse = generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(root / "image_2" / f"{frame_id}.jpg", quality=92)
        (root / "calib" / f"{frame_id}.txt").write_text(text, encoding="utf-8")
    return ids


def ct_files(network: Compute, device: str) -> dict[str, float]:
    """Seconds from the DICOM files of a phantom to findings, with MONAI's LUNA16 network with random weights."""

    def raise_scores(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises the scores in the maps: every anchor is a candidate, which is more than a trained network has."""
        return {name: value + 1 if name.startswith("logits") else value for name, value in network(inputs).items()}

    input_spec = ChestInput() if device == "cuda" else ChestInput(spacing_mm=(5.0, 5.0, 5.0))
    program = Program(name="fastest", compute=raise_scores, device=device)
    predictor = NodulePredictor(
        decoder=BoxDecoder.of_settings(full()), input=input_spec, device=device, program=program
    )
    scan, _ = phantom(np.random.default_rng(5), spacing_mm=(1.4, 1.4, 5.0), nodules=4, diameters_mm=(10, 20))
    if device == "cuda":  # upsample a small phantom, made in seconds, to the voxels of a scan
        fine = scan.voxels_zyx.repeat(4, 0).repeat(2, 1).repeat(2, 2)
        scan = replace(scan, voxels_zyx=fine, spacing_mm=(0.7, 0.7, 1.25))
    seconds = []
    with tempfile.TemporaryDirectory(prefix="trivium-scan-") as folder:
        file = dicom_zip(scan, Path(folder))
        for _ in range(NUM_SCANS[device] + 1):
            start = time.perf_counter()
            (findings,) = predictor.predict([read_volume([file])], FindingOptions(min_score=0.0))
            seconds.append(time.perf_counter() - start)
    shape = " x ".join(str(size) for size in scan.voxels_zyx.shape[::-1])
    name = f"MONAI LUNA16, DICOM of {shape} to {len(findings.nodules)} findings, p95 (s)"
    return {name: float(np.quantile(seconds[1:], 0.95))}


if __name__ == "__main__":
    main()
