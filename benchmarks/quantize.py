"""The shipped networks in every program available here: CPU time, speed relative to the library's own, domain score.

The peer of each network is its library's network as trained, eager in fp32: MONAI's RetinaNet, mmdet3d's detectors,
pytorch-forecasting's TFT. Missing programs are made; INT8 as by ``trivium quantize``: calibrated on the recipe's
training data, with the worst layers left in floating point (for the forecaster only the weights are quantised, without
calibration), and scored on the recipe's validation data (synthetic) together with the artifacts that it is served with.
A shipped INT8 program is used as it is, with its recorded scores; ``--again`` makes it again. All programs are timed in
turns, in CPU-seconds, on the network's last input from the application's samples.

The bar: INT8 is at least 3 times as fast as the library's fp32 for the convolutional networks, at a loss below 1 %.

    python -m benchmarks.quantize [--cases N] [--models NAME ...] [--again]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import one_thread, progress, report
from shared.app import App, DenseNetwork, find
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.calibration_inputs import calibration_inputs
from shared.deploy.programs.artifact_network import dense_network
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.making import make_programs, random_examples
from shared.deploy.programs.program import Placement, Program, ProgramError, Source, is_batched
from shared.deploy.programs.store import add_to_cache, is_accepted, stored_programs, weights_digest
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure_latency
from shared.deploy.programs.torch_eager import load_eager
from shared.deploy.quantize import PROGRAMS, Method, quantize
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError
from shared.precision import cpu_has_bf16
from shared.recipes import recipe_of
from shared.threads import set_compute_threads

CONVOLUTIONAL = {"lung_nodules", "pointpillars", "fcos3d"}
SCORED_WITH_DETECTOR = {"lung_nodule_candidates", "lidar_rcnn"}
"""Networks without their own score: they take part in the score of the detector whose marks or boxes they get."""

BAR = 3.0


def main() -> None:
    """Measures each network and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=32, help="cases of the score before and after")
    parser.add_argument("--models", nargs="*", help="the networks; all that ship by default")
    parser.add_argument("--again", action="store_true", help="quantise again even if there is an INT8 program")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    threads = one_thread()
    figures: dict[str, float] = {}
    notes, smallest_ratio, accepted = [], float("inf"), True
    for name in ("medical", "driving", "finance"):
        app = find(name)
        for artifact in shipped(app):
            model = artifact.manifest.name
            if model in SCORED_WITH_DETECTOR or (arguments.models and model not in arguments.models):
                continue
            progress(f"{model}: its programs are made where missing, scored and timed")
            milliseconds_by_program, note, is_within_loss = measure_programs(
                app, artifact, arguments.cases, requantise=arguments.again
            )
            for program, milliseconds in milliseconds_by_program.items():
                figures[f"{model}, {program} (CPU ms)"] = milliseconds
                figures[f"{model}, {program}: times the library's speed"] = (
                    milliseconds_by_program["library"] / milliseconds
                )
            notes.append(f"{model}: {note}")
            if model in CONVOLUTIONAL:
                int8 = [value for program, value in milliseconds_by_program.items() if program.endswith("int8")]
                smallest_ratio = min(smallest_ratio, milliseconds_by_program["library"] / min(int8)) if int8 else 0.0
                accepted &= is_within_loss
    figures |= {"threads": float(threads), "load of the machine": os.getloadavg()[0]}
    ratio = smallest_ratio if smallest_ratio < float("inf") else 0.0
    note = "; ".join(notes) + f". Ratio is the least of INT8 over the convolutional networks; the bar is {BAR:g}"
    report("quantize", figures, ratio=ratio, ok=accepted and ratio >= BAR, note=note)


def measure_programs(
    app: App, artifact: Artifact, cases: int, *, requantise: bool
) -> tuple[dict[str, float], str, bool]:
    """Milliseconds by program, ``library`` first; a description of the scores; whether INT8 loses less than 1 %."""
    dense = dense_network(app, artifact)
    examples = calibration_inputs(app, artifact, [])
    for name in ("onnx", "openvino"):
        if name not in stored_programs(artifact)[0] or (name == "onnx" and dense.dynamic is not None):
            with tempfile.TemporaryDirectory() as folder:
                entries = make_programs(dense, [name], Path(folder), weights_digest(artifact), random_examples(dense))
                add_to_cache(artifact, Path(folder), entries)
    int8: Method = "dynamic" if app.name == "finance" else "static"
    is_within_loss, description = True, ""
    stored = stored_programs(artifact)[0].get(PROGRAMS[int8])
    try:
        if requantise or stored is None or not is_accepted(stored.entry):
            data = recipe_of(app, artifact.recipe()).data
            entry = quantize(app, artifact, data, method=int8, cases=cases, report=progress)
        else:
            entry = stored.entry
        is_within_loss = not entry.scores.get("forced", False)
        before, after = entry.scores["before"], entry.scores["after"]
        description = ", ".join(
            f"{old['name']} {old['value']:.4g} before and {new['value']:.4g} after INT8 on {old['count']}"
            for old, new in zip(before, after, strict=True)
        )
        description += f", calibrated on {entry.inputs}, in floating point: {entry.scores['kept in floating point']}"
    except InvalidInputError as error:
        is_within_loss, description = False, str(error)
    names = ["torch", "onnx", "openvino", PROGRAMS[int8]]
    if cpu_has_bf16():
        names += ["torch-bf16", "openvino-bf16"]
    programs = {
        "library": Program(
            name="library", compute=load_eager(library_network(app, artifact, dense)), batched=is_batched(dense)
        )
    }
    place = Placement("cpu", set_compute_threads())
    files = stored_programs(artifact)[0]
    for name in names:
        runtime, format = find_program(name)
        file = files.get(name) or (files.get("openvino") if name == "openvino-bf16" else None)
        if runtime.file(format) is not None and file is None:
            continue
        try:
            compute = runtime.load(Source(None if file is None else file.path, lambda: dense), format, place)
        except ProgramError as error:
            description += f"; {error}"
            continue
        programs[name] = Program(name=name, compute=compute, batched=is_batched(dense))
    return (
        measure_latency(programs, examples.inputs[-1], time.process_time),
        f"{description} (timed on {examples.description})",
        is_within_loss,
    )


def library_network(app: App, artifact: Artifact, dense: DenseNetwork) -> DenseNetwork:
    """The same network of the library's own modules, without folded layers."""
    recipe = recipe_of(app, artifact.recipe())
    with use_program("torch"):
        model: Any = load_weights(recipe.model.build(recipe.input), artifact, "cpu")
    module: nn.Module
    if app.name == "medical":
        from apps.medical.models.dense import Maps

        module = Maps(model.network.to(memory_format=torch.contiguous_format))
    elif artifact.manifest.name == "pointpillars":
        from apps.driving.models.pointpillars import PillarsToHeads

        module = PillarsToHeads(model)
    elif artifact.manifest.name == "fcos3d":
        from apps.driving.models.fcos3d import ImageToHeads

        module = ImageToHeads(model)
    else:
        from dataclasses import replace

        from apps.finance.models.tft import Forecaster

        slow_network = replace(recipe.model, fast=False).build(recipe.input)  # type: ignore[type-var]
        slow_network.load_state_dict(artifact.weights())
        assert isinstance(slow_network, Forecaster)
        module = slow_network
    return DenseNetwork(module=module.eval(), inputs=dense.inputs, outputs=dense.outputs, dynamic=dense.dynamic)


if __name__ == "__main__":
    main()
