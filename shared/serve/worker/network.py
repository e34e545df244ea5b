"""Runs a dense network in a worker: from request bodies to answer bodies, computed in batches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.deploy.artifact import MANIFEST, Artifact, Manifest, TensorSpec
from shared.deploy.programs.artifact_network import onnx_file
from shared.deploy.programs.onnx_program import OnnxProgram, requested_onnx_program
from shared.errors import InvalidInputError
from shared.serve.worker.codec import DTYPES, Array, BadTensor, Inference, read_request, write_response
from shared.serve.worker.handler import Stage, failure_reply
from shared.serve.worker.messages import Message, write_to_room
from shared.threads import compute_threads

Arrays = Mapping[str, Array]
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "auto": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_LARGE_ROW = 1 << 20
"""On a CPU, requests with at least this many input bytes per row are computed one by one."""


class OnnxNetwork:
    """A network from an ONNX file. If axis 0 is a batch axis, it computes several requests together.

    ``session`` is an ONNX Runtime session, which knows the network's inputs. ``program``, if given, computes instead
    of the session.
    """

    def __init__(self, session: Any, program: OnnxProgram | None = None) -> None:
        self._program = program or _session_program(session)
        self._on_cpu = session.get_providers() == _PROVIDERS["cpu"]
        self._symbols: dict[str, list[str | int]] = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        tensors = [*session.get_inputs(), *session.get_outputs()]
        first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
        # Axis 0 of every input and output has the same symbolic size.
        self._batched = len(first) == 1 and isinstance(next(iter(first)), str)

    def check(self, inputs: Arrays) -> None:
        """Raises ``BadTensor`` if a symbolic size, such as ``batch``, has two values, or if a tensor is empty.

        Zero rows along the batch axis are allowed. ONNX Runtime's kernels do not support empty tensors: with one, an
        LSTM crashes the process.
        """
        seen: dict[str, tuple[str, int]] = {}
        for name, array in inputs.items():
            for axis, length in enumerate(array.shape):
                if length == 0 and not (self._batched and axis == 0):
                    raise BadTensor(f"the input {name!r} has size 0 in axis {axis}; it must have at least 1")
            for symbol, length in zip(self._symbols[name], array.shape, strict=True):
                if isinstance(symbol, str):
                    first_name, expected = seen.setdefault(symbol, (name, length))
                    if length != expected:
                        raise BadTensor(
                            f"the size {symbol!r} is {expected} in the input {first_name!r} and {length} in {name!r}"
                        )

    @property
    def program(self) -> str:
        """The name of the program that computes the network, and why it was chosen."""
        return f"{self._program.name}: {self._program.reason}"

    def batch_key(self, inputs: Arrays) -> object:
        """A key that is equal for inputs that may share a batch: those that differ only in their number of rows."""
        return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)) if self._batched else object()

    def rows(self, inputs: Arrays) -> int:
        """The number of rows of the inputs; 1 if there is no batch axis."""
        return int(next(iter(inputs.values())).shape[0]) if self._batched and inputs else 1

    def has_large_rows(self, inputs: Sequence[TensorSpec]) -> bool:
        """Whether requests are computed one by one because the rows are large and the network runs on a CPU.

        Concatenating and splitting such rows takes longer than the call that a batch saves, and the first answer would
        have to wait for the last.
        """
        sizes = [math.prod(max(n, 1) for n in spec.shape) * np.dtype(DTYPES[spec.datatype]).itemsize for spec in inputs]
        return self._on_cpu and sum(sizes) >= _LARGE_ROW

    def rows_per_call(self, max_rows: int) -> int:
        """The number of rows that one call computes, at most ``max_rows``."""
        return max_rows if self._program.at_once is None else min(max_rows, self._program.at_once)

    def compute(self, batch: Sequence[Arrays], max_rows: int) -> list[dict[str, Array]]:
        """All outputs for each element of the batch, computed with at most ``max_rows`` rows per call.

        The limit bounds memory, which grows with the number of rows.
        """
        max_rows = self.rows_per_call(max_rows)
        if max_rows == 1 and len(batch) > 1:
            return [self.compute([inputs], max_rows)[0] for inputs in batch]
        joined = batch[0] if len(batch) == 1 else {n: np.concatenate([inputs[n] for inputs in batch]) for n in batch[0]}
        rows = self.rows(joined)
        if rows <= max_rows:
            outputs = self._run(joined)
        else:
            parts = [self._run({n: a[i : i + max_rows] for n, a in joined.items()}) for i in range(0, rows, max_rows)]
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(batch) == 1:
            return [outputs]
        row_offsets = np.cumsum([self.rows(inputs) for inputs in batch])[:-1]
        split = {name: np.split(array, row_offsets) for name, array in outputs.items()}
        return [{name: parts[index] for name, parts in split.items()} for index in range(len(batch))]

    def _run(self, inputs: Arrays) -> dict[str, Array]:
        try:
            return self._program.compute(inputs)
        except Exception as error:
            if type(error).__name__ == "InvalidArgument":
                raise BadTensor(f"the network cannot compute these inputs: {error}") from error
            raise


def _session_program(session: Any) -> OnnxProgram:
    names = [output.name for output in session.get_outputs()]

    def compute(inputs: Arrays) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return OnnxProgram("onnx", compute, reason="its outputs are the file's own")


@dataclass(slots=True)
class _RequestState:
    """The state of a request in progress, with the seconds that its steps took."""

    inference: Inference | None = None
    outputs: Arrays | None = None
    input_s: float = 0.0
    infer_s: float = 0.0
    rows: int = 0
    executions: int = 0
    deadline: float = math.inf
    room: memoryview | None = None
    reply: Message | None = None

    def check_timeout(self, title: str) -> None:
        """Raises ``InvalidInputError`` (504) if the timeout that the client set has passed."""
        if time.monotonic() > self.deadline:
            raise InvalidInputError(f"{title} did not answer within the request's timeout", status=504)


class NetworkHandler:
    """Parses tensors, runs the network on at most ``max_batch`` rows at a time, and serializes its outputs."""

    def __init__(self, network: OnnxNetwork, manifest: Manifest, max_batch: int, max_json_bytes: int) -> None:
        self._network, self._manifest = network, manifest
        self._max_json_bytes = max_json_bytes
        self._max_batch = max_batch
        self.max_requests = 1 if network.has_large_rows(manifest.inputs) else max_batch
        self._title = f"the model {manifest.name}"
        self.programs = {manifest.name: network.program}

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """Replies whose blobs are the answer's body: the JSON part, then binary tensors if ``binary`` is set.

        Large tensors are written to the request's ``room`` instead, at the offsets and sizes in ``spans``.
        """
        states = [self._read(request) for request in requests]
        groups: dict[object, list[_RequestState]] = {}
        for state in states:
            if state.inference is not None:
                groups.setdefault(self._network.batch_key(state.inference.inputs), []).append(state)
        for group in groups.values():
            self._compute(group)
        return [state.reply or self._write(state) for state in states]

    def _read(self, request: Message) -> _RequestState:
        began, state, manifest = time.monotonic(), _RequestState(room=request.room), self._manifest
        try:
            inference = read_request(request.blobs[0], request.head["header_length"], manifest.inputs, manifest.outputs)
            self._network.check(inference.inputs)
            if inference.timeout_us is not None:
                state.deadline = request.head["arrived"] + inference.timeout_us / 1e6
            state.check_timeout(self._title)
            state.rows = self._network.rows(inference.inputs)
            if state.rows:
                state.inference = inference
            else:
                state.reply = self._body(inference, _empty_outputs(manifest.outputs), state)
        except Exception as error:
            state.reply = failure_reply(error, self._title, withhold=False)
        state.input_s = time.monotonic() - began
        return state

    def _compute(self, group: Sequence[_RequestState]) -> None:
        began = time.monotonic()
        try:
            batch = [state.inference.inputs for state in group if state.inference is not None]
            outputs = self._network.compute(batch, self._max_batch)
        except Exception as error:
            if len(group) == 1:
                group[0].reply = failure_reply(error, self._title, withhold=False)
                return
            for state in group:  # retried one by one, so that a bad request fails alone
                self._compute([state])
            return
        group[0].executions = -(-sum(state.rows for state in group) // self._network.rows_per_call(self._max_batch))
        for state, arrays in zip(group, outputs, strict=True):
            state.outputs, state.infer_s = arrays, time.monotonic() - began

    def _write(self, state: _RequestState) -> Message:
        assert state.inference is not None and state.outputs is not None
        try:
            state.check_timeout(self._title)
            return self._body(state.inference, state.outputs, state)
        except Exception as error:
            return failure_reply(error, self._title, withhold=False)

    def _body(self, inference: Inference, outputs: Arrays, state: _RequestState) -> Message:
        began, manifest = time.monotonic(), self._manifest
        as_json = sum(outputs[name].nbytes for name in inference.outputs if name not in inference.binary)
        if as_json > self._max_json_bytes:
            raise InvalidInputError(
                "the outputs are larger than this server returns as JSON; request binary_data, or fewer outputs"
            )
        body = write_response(inference, manifest.name, str(manifest.version), outputs, manifest.outputs)
        spans = write_to_room(body[1:], state.room)
        head = {
            "binary": bool(inference.binary),
            "inferences": state.rows,
            "executions": state.executions,
            "spans": spans or (),
            "input_s": state.input_s,
            "infer_s": state.infer_s,
            "output_s": time.monotonic() - began,
        }
        return Message(head, body if spans is None else body[:1])


def open_network(artifact: Artifact, device: str, program_name: str | None = None) -> OnnxNetwork:
    """The network of an artifact. Raises ``InvalidInputError`` if its inputs do not match the manifest.

    ``program_name`` is the name of the program to compute it with. ONNX Runtime is used if there is no name, if that
    program does not read ONNX, or if a GPU computes.
    """
    import onnxruntime as ort

    threads = compute_threads()
    options = ort.SessionOptions()
    # By default it uses as many threads as the machine has cores, even if this process may use fewer.
    options.intra_op_num_threads = threads
    wanted, available = _PROVIDERS[device], ort.get_available_providers()
    providers, file = [provider for provider in wanted if provider in available], onnx_file(artifact)
    session = ort.InferenceSession(str(file), options, providers=providers)
    file_shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    for spec in artifact.manifest.inputs:
        shape = tuple(size if isinstance(size, int) else -1 for size in file_shapes.get(spec.name, ()))
        if spec.name not in file_shapes or shape != spec.shape:
            raise InvalidInputError(
                f"{file}: the input {spec.name!r} has shape {list(shape)} there but "
                f"{list(spec.shape)} in {MANIFEST}; export the run again"
            )
    program = (
        requested_onnx_program(artifact, program_name, threads)
        if program_name and providers == _PROVIDERS["cpu"]
        else None
    )
    return OnnxNetwork(session, program)


def _empty_outputs(outputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The empty outputs for inputs with zero rows. Raises ``BadTensor`` if another axis than the first is variable."""
    for spec in outputs:
        if -1 in spec.shape[1:]:
            raise BadTensor(f"the inputs have no rows, but the shape of the output {spec.name!r} depends on them")
    return {spec.name: np.empty((0, *spec.shape[1:]), DTYPES[spec.datatype]) for spec in outputs}
