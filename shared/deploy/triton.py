"""Writes an artifact's programs as models of a Triton model repository.

The format of ``config.pbtxt`` is defined by ``model_config.proto`` in Triton's repository "common". A test parses the
configurations with the protobuf classes that the package tritonclient has generated from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.deploy.artifact import NETWORK, Artifact, Manifest, TensorSpec
from shared.deploy.programs.artifact_network import onnx_file
from shared.deploy.programs.openvino import open_core
from shared.deploy.programs.store import stored_programs
from shared.deploy.programs.table import find_program
from shared.errors import InvalidInputError

BACKENDS = {
    "onnx": ("onnxruntime", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
    "openvino-bf16": ("openvino", "model.xml"),
    "openvino-int8": ("openvino", "model.xml"),
    "torchscript": ("pytorch", "torchscript.pt"),
    "python": ("python", "model.py"),
}
"""Triton's backend for each program, and the file that it reads in a version's folder; ``python`` is ``PYTHON_MODEL``.

Artifacts already contain ``model.onnx`` and ``torchscript.pt``; ``write_openvino_model`` writes the files for the
OpenVINO backend, ``model.xml`` and its weights in ``model.bin``.
"""
_OPENVINO_PARAMETERS = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
"""Settings of the OpenVINO backend: one stream with all threads, since rows are batched together."""
MAX_ROWS, MAX_QUEUE_DELAY_US = 8, 2000


def triton_config(manifest: Manifest, program: str = "onnx") -> str:
    """The model's ``config.pbtxt``: dynamic batching, one instance, the newest version, warm-up before serving.

    Raises ``InvalidInputError`` for a program without a Triton backend.
    """
    if program not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InvalidInputError(f"Triton has no backend for the program {program}; it has backends for {known}")
    backend, file = BACKENDS[program]
    num_batch_axes = 1 if manifest.batched else 0
    parts = [
        f'name: "{manifest.name}"',
        f'backend: "{backend}"',
        f'default_model_filename: "{file}"',
        f"max_batch_size: {MAX_ROWS if manifest.batched else 0}",
        _tensor_section("input", manifest.inputs, num_batch_axes),
        _tensor_section("output", manifest.outputs, num_batch_axes),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if backend == 'openvino' else 'KIND_AUTO'} }} ]",
    ]
    if backend == "openvino":
        settings = _OPENVINO_PARAMETERS | ({"HINT_BF16": "YES"} if program == "openvino-bf16" else {})
        parts += [
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in settings.items()
        ]
    if manifest.batched:
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}")
    if all(-1 not in spec.shape[num_batch_axes:] for spec in manifest.inputs):
        parts.append(_warm_up(manifest.inputs, num_batch_axes))
    return "\n".join(parts) + "\n"


def _tensor_section(section: str, specs: tuple[TensorSpec, ...], num_batch_axes: int) -> str:
    items = []
    for spec in specs:
        # Triton needs at least one dimension besides the batch.
        dims = ", ".join(map(str, spec.shape[num_batch_axes:])) or "1"
        reshape = "" if spec.shape[num_batch_axes:] else " reshape: { shape: [ ] }"
        items.append(f'  {{ name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: [ {dims} ]{reshape} }}')
    return f"{section} [\n" + ",\n".join(items) + "\n]"


def _warm_up(inputs: tuple[TensorSpec, ...], num_batch_axes: int) -> str:
    """A warm-up request of zeros, so that everything is loaded before the first real request."""
    lines = [
        f'    inputs {{ key: "{spec.name}" value: {{ data_type: TYPE_{spec.datatype} '
        f"dims: [ {', '.join(map(str, spec.shape[num_batch_axes:])) or '1'} ] zero_data: true }} }}"
        for spec in inputs
    ]
    return 'model_warmup [ {\n    name: "zeros"\n    batch_size: 1\n' + "\n".join(lines) + "\n} ]"


PYTHON_MODEL = '''"""A network for Triton's Python backend, computed by ONNX Runtime; needs numpy<2 in the server."""

import json
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """One model instance."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.inputs = {tensor["name"]: "reshape" in tensor for tensor in config["input"]}
        self.outputs = {tensor["name"]: "reshape" in tensor for tensor in config["output"]}

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        feeds = {}
        for name, reshaped in self.inputs.items():
            array = utils.get_input_tensor_by_name(request, name).as_numpy()
            feeds[name] = array.reshape(len(array)) if reshaped else array
        names = list(self.outputs)
        results = self.session.run(names, feeds)
        tensors = [
            utils.Tensor(name, np.ascontiguousarray(value.reshape(-1, 1) if self.outputs[name] else value))
            for name, value in zip(names, results)
        ]
        return utils.InferenceResponse(output_tensors=tensors)
'''
"""The content of ``model.py``, next to ``model.onnx``, for a Triton without the ONNX Runtime backend."""


def write_python_model(artifact: Artifact, repository: Path) -> Path:
    """Writes an artifact's network into a Triton model repository, as a model of the Python backend.

    The ONNX Runtime backend can serve the same version. Returns the model's folder. Raises ``InvalidInputError`` for an
    artifact without a network.
    """
    network = onnx_file(artifact)
    version = _create_version_folder(artifact, repository)
    shutil.copy(network, version / NETWORK)
    (version / BACKENDS["python"][1]).write_text(PYTHON_MODEL, encoding="utf-8")
    return _write_config(artifact, version, "python")


def write_openvino_model(artifact: Artifact, repository: Path, program: str = "openvino") -> Path:
    """Writes an OpenVINO program into a Triton model repository: ``model.xml`` and ``model.bin``.

    The program comes from the artifact or the cache; otherwise fp32 and bf16 programs are converted from the ONNX file,
    which needs openvino. Returns the model's folder. Raises ``InvalidInputError`` for an artifact without the program
    or without a network.
    """
    runtime, format = find_program(program)
    if runtime.name != "openvino":
        choices = [name for name, (backend, _) in BACKENDS.items() if backend == "openvino"]
        raise InvalidInputError(f"{program} is not an OpenVINO program; choose one of {', '.join(choices)}")
    stored = stored_programs(artifact)[0].get("openvino" if format == "bf16" else program)
    if stored is None and format == "int8":
        raise InvalidInputError(
            f"{artifact.path} has no program {program}; `trivium quantize {artifact.path}` makes it"
        )
    if stored is None and (reason := runtime.why_not("fp32", "cpu")) is not None:
        raise InvalidInputError(f"{program} cannot be made: {reason}")
    network = onnx_file(artifact) if stored is None else stored.path
    version = _create_version_folder(artifact, repository)
    model = version / BACKENDS[program][1]
    if stored is None:
        import openvino

        openvino.save_model(open_core().read_model(network), model, compress_to_fp16=False)
    else:
        for file in (network, network.with_suffix(".bin")):
            shutil.copy(file, model.with_suffix(file.suffix))
    return _write_config(artifact, version, program)


def _create_version_folder(artifact: Artifact, repository: Path) -> Path:
    version = repository / artifact.manifest.name / str(artifact.manifest.version)
    version.mkdir(parents=True, exist_ok=True)
    return version


def _write_config(artifact: Artifact, version: Path, program: str) -> Path:
    (version.parent / "config.pbtxt").write_text(triton_config(artifact.manifest, program), encoding="utf-8")
    return version.parent
