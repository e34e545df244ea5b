"""Configurations for Triton: an artifact's programs as models of a model repository.

``model_config.proto`` of Triton's repository "common" says what a ``config.pbtxt`` may hold; a test parses each with
the messages that the package tritonclient has generated from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.deploy.artifact import NETWORK, Artifact, Manifest, TensorSpec
from shared.deploy.programs.of_artifact import onnx_file
from shared.deploy.programs.openvino import open_core
from shared.deploy.programs.store import found_programs
from shared.deploy.programs.table import find_program
from shared.errors import InvalidInputError

_TRITON = {"FP32": "TYPE_FP32", "FP16": "TYPE_FP16", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "BOOL": "TYPE_BOOL"}
BACKENDS = {
    "onnx": ("onnxruntime", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
    "openvino-bf16": ("openvino", "model.xml"),
    "openvino-int8": ("openvino", "model.xml"),
    "torchscript": ("pytorch", "torchscript.pt"),
    "python": ("python", "model.py"),
}
"""Triton's backend of a program, and the file of a version's folder that it reads; ``python`` is ``PYTHON_MODEL``.

``model.onnx`` and ``torchscript.pt`` lie there as artifacts have them; ``write_openvino_model`` writes what OpenVINO's
backend reads, ``model.xml`` with its weights in ``model.bin``.
"""
_OPENVINO = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
"""Settings of the OpenVINO backend: rows come together in one batch, which one stream has all threads for."""
MAX_ROWS, DELAY_US = 8, 2000


def triton_config(manifest: Manifest, program: str = "onnx") -> str:
    """The model's ``config.pbtxt``: batched dynamically, one instance, the newest version, warmed up before it serves.

    Refuses a program that no backend of Triton runs.
    """
    if program not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InvalidInputError(f"Triton has no backend for the program {program}; it has them for {known}")
    backend, file = BACKENDS[program]
    specs = (*manifest.inputs, *manifest.outputs)
    batched = all(spec.shape[:1] == (-1,) for spec in specs)
    drop = 1 if batched else 0
    parts = [
        f'name: "{manifest.name}"',
        f'backend: "{backend}"',
        f'default_model_filename: "{file}"',
        f"max_batch_size: {MAX_ROWS if batched else 0}",
        _tensors("input", manifest.inputs, drop),
        _tensors("output", manifest.outputs, drop),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if backend == 'openvino' else 'KIND_AUTO'} }} ]",
    ]
    if backend == "openvino":
        settings = _OPENVINO | ({"HINT_BF16": "YES"} if program == "openvino-bf16" else {})
        parts += [
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in settings.items()
        ]
    if batched:
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}")
    if all(-1 not in spec.shape[drop:] for spec in manifest.inputs):
        parts.append(_warm_up(manifest.inputs, drop))
    return "\n".join(parts) + "\n"


def _tensors(kind: str, specs: tuple[TensorSpec, ...], drop: int) -> str:
    items = []
    for spec in specs:
        # Triton wants at least one dimension besides the batch.
        dims = ", ".join(map(str, spec.shape[drop:])) or "1"
        reshape = "" if spec.shape[drop:] else " reshape: { shape: [ ] }"
        items.append(f'  {{ name: "{spec.name}" data_type: {_TRITON[spec.datatype]} dims: [ {dims} ]{reshape} }}')
    return f"{kind} [\n" + ",\n".join(items) + "\n]"


def _warm_up(inputs: tuple[TensorSpec, ...], drop: int) -> str:
    """One request of zeros, so that the first that somebody waits for finds everything loaded."""
    lines = [
        f'    inputs {{ key: "{spec.name}" value: {{ data_type: {_TRITON[spec.datatype]} '
        f"dims: [ {', '.join(map(str, spec.shape[drop:])) or '1'} ] zero_data: true }} }}"
        for spec in inputs
    ]
    return 'model_warmup [ {\n    name: "zeros"\n    batch_size: 1\n' + "\n".join(lines) + "\n} ]"


PYTHON_MODEL = '''"""A network for Triton's Python backend, computed by ONNX Runtime; needs numpy<2 in the server."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """One instance."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.inputs = {one["name"]: "reshape" in one for one in config["input"]}
        self.outputs = {one["name"]: "reshape" in one for one in config["output"]}

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        feeds = {}
        for name, reshaped in self.inputs.items():
            array = utils.get_input_tensor_by_name(request, name).as_numpy()
            feeds[name] = array.reshape(len(array)) if reshaped else array
        names = list(self.outputs)
        found = self.session.run(names, feeds)
        tensors = [
            utils.Tensor(name, np.ascontiguousarray(value.reshape(-1, 1) if self.outputs[name] else value))
            for name, value in zip(names, found)
        ]
        return utils.InferenceResponse(output_tensors=tensors)
'''
"""``model.py`` beside ``model.onnx``: for a Triton without the ONNX Runtime backend."""


def write_python_model(artifact: Artifact, repository: Path) -> Path:
    """Writes an artifact's network into a model repository of Triton as a model of its Python backend.

    The version is served as it is by the ONNX Runtime backend too. Returns the model's folder; refuses an artifact
    without a network.
    """
    network = onnx_file(artifact)
    version = _version_folder(artifact, repository)
    shutil.copy(network, version / NETWORK)
    (version / BACKENDS["python"][1]).write_text(PYTHON_MODEL, encoding="utf-8")
    return _with_config(artifact, version, "python")


def write_openvino_model(artifact: Artifact, repository: Path, program: str = "openvino") -> Path:
    """Writes a program of OpenVINO's into a model repository of Triton: ``model.xml`` and ``model.bin``.

    It is the artifact's own or one kept in the cache; in fp32 or bf16 it is made of the ONNX where there is none, which
    needs openvino. Returns the model's folder; refuses an artifact without the program, or without a network.
    """
    runtime, format = find_program(program)
    if runtime.name != "openvino":
        raise InvalidInputError(f"{program} is no program of OpenVINO's; there are {', '.join(_of_openvino())}")
    found = found_programs(artifact)[0].get("openvino" if format == "bf16" else program)
    if found is None and format == "int8":
        raise InvalidInputError(
            f"{artifact.path} has no program {program}; `trivium quantize {artifact.path}` makes it"
        )
    if found is None and (reason := runtime.why_not("fp32", "cpu")) is not None:
        raise InvalidInputError(f"{program} cannot be made: {reason}")
    network = onnx_file(artifact) if found is None else found.path
    version = _version_folder(artifact, repository)
    model = version / BACKENDS[program][1]
    if found is None:
        import openvino

        openvino.save_model(open_core().read_model(network), model, compress_to_fp16=False)
    else:
        for file in (network, network.with_suffix(".bin")):
            shutil.copy(file, model.with_suffix(file.suffix))
    return _with_config(artifact, version, program)


def _of_openvino() -> list[str]:
    return [program for program, (backend, _) in BACKENDS.items() if backend == "openvino"]


def _version_folder(artifact: Artifact, repository: Path) -> Path:
    version = repository / artifact.manifest.name / str(artifact.manifest.version)
    version.mkdir(parents=True, exist_ok=True)
    return version


def _with_config(artifact: Artifact, version: Path, program: str) -> Path:
    (version.parent / "config.pbtxt").write_text(triton_config(artifact.manifest, program), encoding="utf-8")
    return version.parent
