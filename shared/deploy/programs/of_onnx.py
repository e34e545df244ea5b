"""What computes an artifact's ``model.onnx`` where nothing of its application is at hand, only its tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.deploy.artifact import Artifact
from shared.deploy.programs.of_artifact import onnx_file
from shared.deploy.programs.program import ArrayCompute, Arrays, Placement, ProgramError, Source
from shared.deploy.programs.store import folder_of
from shared.deploy.programs.table import find_program

log = logging.getLogger("trivium.programs")


@dataclass(frozen=True, slots=True)
class OnnxProgram:
    """A computation on arrays, and why it was chosen; ``at_once`` is how many rows a call has, any number where None.

    OpenVINO prepares a network anew for another number of rows, which takes longer than to compute it.
    """

    name: str
    compute: Callable[[Arrays], dict[str, Any]]
    at_once: int | None = None
    reason: str = ""


def asked_onnx_program(artifact: Artifact, name: str, threads: int) -> OnnxProgram | None:
    """The program called ``name``, where that is one of OpenVINO's that read ``model.onnx``; else None.

    Nothing but ONNX Runtime is taken without being asked for: who sends tensors expects the network's own outputs.
    """
    runtime, format = find_program(name)
    if runtime.name != "openvino" or format == "int8":
        return None
    place = Placement("cpu", threads)
    if (why_not := runtime.why_not(format, place.device)) is None:
        source = Source(onnx_file(artifact), _no_modules, compiled=folder_of(artifact) / "compiled")
        try:
            compute = runtime.load(source, format, place)
        except ProgramError as error:
            why_not = str(error)
        else:
            assert isinstance(compute, ArrayCompute)
            return OnnxProgram(name, compute.arrays, at_once=1, reason="it was asked for")
    log.warning("%s, which was asked for, cannot be used for %s: %s", name, artifact.manifest.name, why_not)
    return None


def _no_modules() -> Any:
    raise ProgramError("there is a file alone")
