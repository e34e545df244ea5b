"""Programs that run an artifact's ``model.onnx`` on raw tensors, without its application."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.deploy.artifact import Artifact
from shared.deploy.programs.artifact_network import onnx_file
from shared.deploy.programs.program import ArrayCompute, Arrays, Placement, ProgramError, Source
from shared.deploy.programs.store import cache_folder
from shared.deploy.programs.table import find_program

log = logging.getLogger("trivium.programs")


@dataclass(frozen=True, slots=True)
class OnnxProgram:
    """A computation on NumPy arrays, and why it was chosen.

    ``at_once`` is the batch size of a call; None allows any. OpenVINO prepares the network again for each new batch
    size, which takes longer than computing it.
    """

    name: str
    compute: Callable[[Arrays], dict[str, Any]]
    at_once: int | None = None
    reason: str = ""


def requested_onnx_program(artifact: Artifact, name: str, threads: int) -> OnnxProgram | None:
    """The program ``name`` if it is an OpenVINO program that reads ``model.onnx`` and can be used here; else None.

    A program other than ONNX Runtime's is used only on request: clients that send tensors expect the network's own
    outputs.
    """
    runtime, format = find_program(name)
    if runtime.name != "openvino" or format == "int8":
        return None
    place = Placement("cpu", threads)
    if (reason := runtime.why_not(format, place.device)) is None:
        source = Source(onnx_file(artifact), _no_network, compiled=cache_folder(artifact) / "compiled")
        try:
            compute = runtime.load(source, format, place)
        except ProgramError as error:
            reason = str(error)
        else:
            assert isinstance(compute, ArrayCompute)
            return OnnxProgram(name, compute.arrays, at_once=1, reason="it was requested")
    log.warning("the requested program %s cannot be used for %s: %s", name, artifact.manifest.name, reason)
    return None


def _no_network() -> Any:
    raise ProgramError("only the ONNX file is available, not the torch network")
