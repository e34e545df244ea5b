"""The networks on a GPU, each by eager torch in fp32 and by the programs that are for GPUs, in milliseconds a call.

FCOS3D with ResNeXt-101 32x4d on an image of 1024 x 2048, MONAI's LUNA16 network on a lungs' box of 384 x 256 x 256
voxels in four tiles, the forecaster on 2,048 windows; random weights, for speed alone. fp16 runs with channels last,
compiled or captured in a graph of its one shape. What is around a network is timed too: an image's upload and resizing
on the device, and the decoding of PointPillars and of FCOS3D, with suppression there.
A program may differ from fp32 by little more than eager torch does in its format.

Without a GPU the same code runs on the CPU in bf16 at small sizes: it shows that it runs, and nothing of a GPU's speed.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from apps.driving.inference.upload import image_at_focal_length
from apps.driving.models.decoding import AnchorDecoder, CameraDecoder, Normalisation, anchors
from apps.driving.models.dense import dense_camera
from apps.driving.models.fcos3d import FCOS3D, example_image
from apps.driving.recipes import RECIPES as DRIVING
from apps.driving.types import Camera, CameraInput
from apps.finance.models.settings import FinanceModel
from apps.finance.models.tft import dense, example_input
from apps.finance.types import FinanceInput
from apps.medical.models.dense import dense_network
from apps.medical.models.retinanet import full
from apps.medical.types import ChestInput
from benchmarks.report import report
from shared.app import DenseNetwork
from shared.deploy.programs.program import Compute, Placement, ProgramError, Source, relative_error
from shared.deploy.programs.table import find_program

PROGRAMS = {
    "cuda": ("torch", "torch-bf16", "torch-fp16", "cudagraph-fp16", "compile-fp16"),
    "cpu": ("torch", "torch-bf16"),
}
FRAMES_BAR = 35.0
"""FCOS3D ResNeXt-101, frames a second, network alone: the project's claim."""
REPEATS = 10


def main() -> None:
    """Measures what this machine has and reports."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures: dict[str, float] = {}
    notes, agree, best, eager_ms = [], True, float("inf"), 0.0
    for name, network, inputs in networks(small=device == "cpu"):
        given = {key: value.to(device) for key, value in inputs.items()}
        expected: dict[str, Tensor] = {}
        rounding: dict[str, float] = {}
        for program in PROGRAMS[device]:
            try:
                compute = load(program, network, device)
                found = compute(given)
                milliseconds = timed(lambda: compute(given), device)  # noqa: B023 - called at once
            except (ProgramError, RuntimeError) as error:
                notes.append(f"{name} by {program}: {str(error).strip().partition(chr(10))[0]}")
                agree = False
                continue
            figures[f"{name}, {program} (ms)"] = milliseconds
            expected = expected or found
            error = relative_error(expected, found)
            figures[f"{name}, {program}: differs from fp32 by"] = error
            rounding.setdefault(program.partition("-")[2], error)
            agree &= error <= 2 * rounding[program.partition("-")[2]] + 1e-3
            if name == "FCOS3D ResNeXt-101":
                eager_ms = eager_ms or milliseconds
                best = min(best, milliseconds)
    figures["PointPillars decoding and suppression (ms)"] = decoding(device)
    figures |= around_the_camera(device)
    if device == "cpu":
        notes.append("there is no GPU: small sizes on the CPU, which say nothing of a GPU's speed")
    note = "; ".join([f"on {device}, medians of {REPEATS}", *notes])
    frames = 1e3 / best
    figures["FCOS3D ResNeXt-101, frames a second"] = frames
    report("gpu", figures, ratio=eager_ms / best, ok=agree and (device == "cpu" or frames >= FRAMES_BAR), note=note)


def networks(*, small: bool) -> list[tuple[str, DenseNetwork, Mapping[str, Tensor]]]:
    """Name, network and inputs of each, on the CPU."""
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
    """The network by a program that is made from its modules. Raises ``ProgramError``."""
    runtime, format = find_program(program)
    if (reason := runtime.why_not(format, device)) is not None:
        raise ProgramError(reason)
    return runtime.load(Source(None, lambda: network), format, Placement(device))


def timed(call: Callable[[], Any], device: str) -> float:
    """The median of a call's milliseconds, until the device has computed it."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


def decoding(device: str) -> float:
    """Milliseconds from PointPillars' maps to boxes, on maps in which a hundred anchors are above the least score."""
    seen = DRIVING["small"]().input
    rows, columns, kinds = 124, 108, len(seen.classes)
    decoder = AnchorDecoder(anchors(seen, rows, columns).to(device), kinds)
    generator = torch.Generator().manual_seed(0)
    scores, boxes, directions = (
        torch.randn(1, number * 2 * kinds, rows, columns, generator=generator).to(device) for number in (kinds, 7, 2)
    )
    return timed(lambda: decoder(scores - 2, boxes * 0.1, directions), device)


def around_the_camera(device: str) -> dict[str, float]:
    """Milliseconds of an image's upload, resizing and normalisation, and from FCOS3D's maps of it to boxes.

    Some hundred candidates are above the least score.
    """
    height, width = (128, 256) if device == "cpu" else (1024, 2048)
    focal_px = 0.6 * width
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (height * 3 // 2, width * 3 // 2, 3), generator=generator, dtype=torch.uint8)
    intrinsics = torch.tensor([[focal_px * 1.5, 0, width * 0.75], [0, focal_px * 1.5, height * 0.75], [0, 0, 1]])
    camera = Camera(image_HWC=pixels.numpy(), intrinsics=intrinsics.numpy(), lidar_to_camera=torch.eye(4).numpy())
    colours, decoder = Normalisation(), CameraDecoder()

    def prepared() -> Tensor:
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
        "image to the device, resized and normalised (ms)": timed(prepared, device),
        "FCOS3D decoding and suppression (ms)": timed(
            lambda: [part.cpu() for part in decoder(maps, 0, intrinsics, (1 / 1.5, 1 / 1.5))], device
        ),
    }


if __name__ == "__main__":
    main()
