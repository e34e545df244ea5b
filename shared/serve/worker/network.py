"""A dense network in a worker: from the bodies of requests to the bodies of answers, computed together."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.deploy.artifact import MANIFEST, Artifact, Manifest, TensorSpec
from shared.deploy.programs.of_artifact import onnx_file
from shared.deploy.programs.of_onnx import OnnxProgram, asked_onnx_program
from shared.errors import InvalidInputError
from shared.serve.worker.codec import DTYPES, Array, BadTensor, Inference, read_request, write_response
from shared.serve.worker.handler import Stage, fault
from shared.serve.worker.messages import Message, write_to_room
from shared.threads import compute_threads

Arrays = Mapping[str, Array]
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "auto": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_LARGE_ROW = 1 << 20


class OnnxNetwork:
    """A network from an ONNX file, which computes requests of any number of rows together where axis 0 is a batch.

    ``session`` is ONNX Runtime's, which says what the network takes; ``program`` computes instead where there is one.
    """

    def __init__(self, session: Any, program: OnnxProgram | None = None) -> None:
        self._program = program or _session_program(session)
        self._on_cpu = session.get_providers() == _PROVIDERS["cpu"]
        self._symbols: dict[str, list[str | int]] = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        tensors = [*session.get_inputs(), *session.get_outputs()]
        first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
        # Axis 0 of every input and output is one and the same named size.
        self._batched = len(first) == 1 and isinstance(next(iter(first)), str)

    def check(self, inputs: Arrays) -> None:
        """Refuses inputs in which one named size (as ``batch``) has two values, and empty ones but for zero rows.

        ONNX Runtime's kernels are not made for empty tensors: an LSTM on one ends the process.
        """
        seen: dict[str, tuple[str, int]] = {}
        for name, array in inputs.items():
            for axis, length in enumerate(array.shape):
                if length == 0 and not (self._batched and axis == 0):
                    raise BadTensor(f"the input {name!r} has size 0 in axis {axis}; it must have at least 1")
            for symbol, length in zip(self._symbols[name], array.shape, strict=True):
                if isinstance(symbol, str):
                    other, expected = seen.setdefault(symbol, (name, length))
                    if length != expected:
                        raise BadTensor(
                            f"the size {symbol!r} is {expected} in the input {other!r} and {length} in {name!r}"
                        )

    @property
    def program(self) -> str:
        """The name of what computes it, and why that does."""
        return f"{self._program.name}: {self._program.reason}"

    def kind(self, inputs: Arrays) -> object:
        """What may be computed together: inputs that differ only in their number of rows."""
        return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs)) if self._batched else object()

    def rows(self, inputs: Arrays) -> int:
        """How many rows the inputs have; 1 where there is no batch axis."""
        return int(next(iter(inputs.values())).shape[0]) if self._batched and inputs else 1

    def large_rows(self, inputs: Sequence[TensorSpec]) -> bool:
        """Whether requests are computed one by one: on a CPU, where a row is large.

        To copy such rows together and apart again takes longer than the call that is saved, and the first answer would
        wait for the last.
        """
        sizes = [math.prod(max(n, 1) for n in one.shape) * np.dtype(DTYPES[one.datatype]).itemsize for one in inputs]
        return self._on_cpu and sum(sizes) >= _LARGE_ROW

    def at_once(self, most: int) -> int:
        """How many rows are computed together, of at most ``max_requests``."""
        return most if self._program.at_once is None else min(most, self._program.at_once)

    def compute(self, batch: Sequence[Arrays], most: int) -> list[dict[str, Array]]:
        """All outputs for each of the inputs, computed together in parts of at most ``max_requests`` rows.

        What a network needs while it computes grows with its rows.
        """
        most = self.at_once(most)
        if most == 1 and len(batch) > 1:
            return [self.compute([one], most)[0] for one in batch]
        together = batch[0] if len(batch) == 1 else {n: np.concatenate([one[n] for one in batch]) for n in batch[0]}
        rows = self.rows(together)
        if rows <= most:
            whole = self._run(together)
        else:
            parts = [self._run({n: a[i : i + most] for n, a in together.items()}) for i in range(0, rows, most)]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(batch) == 1:
            return [whole]
        ends = np.cumsum([self.rows(one) for one in batch])[:-1]
        split = {name: np.split(array, ends) for name, array in whole.items()}
        return [{name: parts[number] for name, parts in split.items()} for number in range(len(batch))]

    def _run(self, inputs: Arrays) -> dict[str, Array]:
        try:
            return self._program.compute(inputs)
        except Exception as error:
            if type(error).__name__ == "InvalidArgument":
                raise BadTensor(f"the network cannot be run on these values: {error}") from error
            raise


def _session_program(session: Any) -> OnnxProgram:
    names = [output.name for output in session.get_outputs()]

    def compute(inputs: Arrays) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return OnnxProgram("onnx", compute, reason="its outputs are the file's own")


@dataclass(slots=True)
class _Work:
    """A request on its way."""

    inference: Inference | None = None
    outputs: Arrays | None = None
    input_s: float = 0.0
    infer_s: float = 0.0
    rows: int = 0
    executions: int = 0
    ends: float = math.inf
    room: memoryview | None = None
    reply: Message | None = None

    def check_time(self, what: str) -> None:
        """Refuses (504) a request whose own timeout has passed."""
        if time.monotonic() > self.ends:
            raise InvalidInputError(f"{what} did not answer within the request's timeout", status=504)


class NetworkHandler:
    """Reads tensors, runs the network on at most ``max_batch`` rows at a time, and writes tensors."""

    def __init__(self, network: OnnxNetwork, manifest: Manifest, max_batch: int, max_json_bytes: int) -> None:
        self._network, self._manifest = network, manifest
        self._max_json_bytes = max_json_bytes
        self._max_batch = max_batch
        self.max_requests = 1 if network.large_rows(manifest.inputs) else max_batch
        self._what = f"the model {manifest.name}"
        self.programs = {manifest.name: network.program}

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """Replies whose blobs are the answer's body: its JSON part, then tensors where ``binary`` says so.

        Large ones lie in the request's room, at ``spans``.
        """
        works = [self._read(request) for request in requests]
        groups: dict[object, list[_Work]] = {}
        for work in works:
            if work.inference is not None:
                groups.setdefault(self._network.kind(work.inference.inputs), []).append(work)
        for group in groups.values():
            self._compute(group)
        return [work.reply or self._write(work) for work in works]

    def _read(self, request: Message) -> _Work:
        began, work, manifest = time.monotonic(), _Work(room=request.room), self._manifest
        try:
            inference = read_request(request.blobs[0], request.head["header_length"], manifest.inputs, manifest.outputs)
            self._network.check(inference.inputs)
            if inference.timeout_us is not None:
                work.ends = request.head["arrived"] + inference.timeout_us / 1e6
            work.check_time(self._what)
            work.rows = self._network.rows(inference.inputs)
            if work.rows:
                work.inference = inference
            else:
                work.reply = self._body(inference, _without_rows(manifest.outputs), work)
        except Exception as error:
            work.reply = fault(error, self._what, withhold=False)
        work.input_s = time.monotonic() - began
        return work

    def _compute(self, group: Sequence[_Work]) -> None:
        began = time.monotonic()
        try:
            batch = [work.inference.inputs for work in group if work.inference is not None]
            outputs = self._network.compute(batch, self._max_batch)
        except Exception as error:
            if len(group) == 1:
                group[0].reply = fault(error, self._what, withhold=False)
                return
            for work in group:  # a bad one spoils only its own
                self._compute([work])
            return
        group[0].executions = -(-sum(work.rows for work in group) // self._network.at_once(self._max_batch))
        for work, arrays in zip(group, outputs, strict=True):
            work.outputs, work.infer_s = arrays, time.monotonic() - began

    def _write(self, work: _Work) -> Message:
        assert work.inference is not None and work.outputs is not None
        try:
            work.check_time(self._what)
            return self._body(work.inference, work.outputs, work)
        except Exception as error:
            return fault(error, self._what, withhold=False)

    def _body(self, inference: Inference, outputs: Arrays, work: _Work) -> Message:
        began, manifest = time.monotonic(), self._manifest
        as_json = sum(outputs[name].nbytes for name in inference.outputs if name not in inference.binary)
        if as_json > self._max_json_bytes:
            raise InvalidInputError(
                "the outputs are more than this server writes as JSON; ask for binary_data, or for fewer"
            )
        body = write_response(inference, manifest.name, str(manifest.version), outputs, manifest.outputs)
        spans = write_to_room(body[1:], work.room)
        head = {
            "binary": bool(inference.binary),
            "inferences": work.rows,
            "executions": work.executions,
            "spans": spans or (),
            "input_s": work.input_s,
            "infer_s": work.infer_s,
            "output_s": time.monotonic() - began,
        }
        return Message(head, body if spans is None else body[:1])


def open_network(artifact: Artifact, device: str, asked: str | None = None) -> OnnxNetwork:
    """The network of an artifact; refuses one that is not what its manifest says.

    ``asked`` names the program that computes it; one that reads no ONNX is of no use here, and ONNX Runtime is taken.
    """
    import onnxruntime as ort

    threads = compute_threads()
    options = ort.SessionOptions()
    # Left to itself it takes as many as the machine has cores, however few of them this process may use.
    options.intra_op_num_threads = threads
    wanted, present = _PROVIDERS[device], ort.get_available_providers()
    providers, file = [one for one in wanted if one in present], onnx_file(artifact)
    session = ort.InferenceSession(str(file), options, providers=providers)
    given = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    for spec in artifact.manifest.inputs:
        shape = tuple(size if isinstance(size, int) else -1 for size in given.get(spec.name, ()))
        if spec.name not in given or shape != spec.shape:
            raise InvalidInputError(
                f"{file}: the input {spec.name!r} has shape {list(shape)} there and "
                f"{list(spec.shape)} in {MANIFEST}; export the run again"
            )
    other = asked_onnx_program(artifact, asked, threads) if asked and providers == _PROVIDERS["cpu"] else None
    return OnnxNetwork(session, other)


def _without_rows(outputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The outputs for inputs of zero rows; refuses where another axis than the first has no fixed size."""
    for spec in outputs:
        if -1 in spec.shape[1:]:
            raise BadTensor(f"the inputs have no rows, and the shape of the output {spec.name!r} depends on them")
    return {spec.name: np.empty((0, *spec.shape[1:]), DTYPES[spec.datatype]) for spec in outputs}
