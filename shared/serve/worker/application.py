"""An application's predictor and codec in a worker: from files and options to the bytes of an answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.app import App
from shared.deploy.artifact import Artifact
from shared.deploy.predictor import (
    Codec,
    Decoded,
    Later,
    Predictor,
    Request,
    Response,
    described_programs,
    with_programs,
)
from shared.errors import InvalidInputError
from shared.progress import listening
from shared.serve.worker.handler import Stage, fault
from shared.serve.worker.messages import Blob, Message

log = logging.getLogger("trivium.serve")


@dataclass(slots=True)
class _Work:
    """A request on its way: what is known of it, and the seconds that its steps took."""

    paths: list[str]
    decoded: Decoded[Any] | None = None
    outputs: list[Any] | None = None
    input_s: float = 0.0
    infer_s: float = 0.0
    executions: int = 0
    reply: Message | None = None


class ApplicationHandler:
    """Decodes, predicts and encodes. Requests with equal options are predicted together where the predictor batches.

    Inputs that are predicted together number at most ``max_batch``; a request with more goes alone. With
    ``keep_inputs`` replies hold the inputs as well, as the codec's ``Later.inputs`` makes them.
    """

    def __init__(
        self, app: App, artifacts: Sequence[Artifact], device: str, max_batch: int, keep_inputs: bool = False
    ) -> None:
        from shared.device import choose_device

        self._app = app
        self._predictor: Predictor[Any, Any] = app.predictor(artifacts, choose_device(device))
        self._codec: Codec[Any, Any] = app.codec(self._predictor)
        self.programs = described_programs(self._predictor)
        self._max_batch = max_batch
        self._keep_inputs = keep_inputs
        self.max_requests = max_batch if getattr(self._predictor, "batching", False) else 1

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """Replies whose blobs are the result as JSON, the picture, then files, sources and inputs by their names."""
        stage("reading")
        works = [self._make(request) if "make" in request.head else self._decode(request) for request in requests]
        stage("computing")
        with listening(stage):
            for group in self._groups([work for work in works if work.reply is None]):
                self._predict(group)
        stage("writing")
        return [work.reply or self._encode(work) for work in works]

    def _make(self, request: Message) -> _Work:
        """Makes a file that an answer left for later: from files of the case, or from what comes with the request."""
        head, work = request.head, _Work(paths=[])
        try:
            sources = {name: Path(path).read_bytes() for name, path in head["paths"].items()}
            sources |= {name: bytes(blob) for name, blob in zip(head["inline"], request.blobs, strict=True)}
            work.reply = Message({}, [self._codec.make(head["make"], sources)])  # type: ignore[attr-defined]
        except Exception as error:
            work.reply = self._fault(error)
        return work

    def _decode(self, request: Message) -> _Work:
        began, head = time.monotonic(), request.head
        work = _Work(paths=list(head["files"]))
        try:
            if head["sample"] is not None:
                work.paths = self._sample(head["sample"], Path(head["folder"]))
            files = tuple(Path(path) for path in work.paths)
            work.decoded = self._codec.decode(Request(files=files, options=head["options"], seconds=head["seconds"]))
        except Exception as error:
            work.reply = self._fault(error)
        work.input_s = time.monotonic() - began
        return work

    def _sample(self, name: str, folder: Path) -> list[str]:
        samples = {sample.name: sample for sample in self._app.samples()}
        if name not in samples:
            names = ", ".join(samples) or "none at hand"
            raise InvalidInputError(f"{self._app.name} has no sample {name!r}; it has {names}")
        made = folder / "sample"
        made.mkdir(exist_ok=True)  # a worker that was replaced may have made it
        return [str(path) for path in samples[name].files(made)]

    def _groups(self, works: Sequence[_Work]) -> list[list[_Work]]:
        """The works that are predicted together: of equal options, their inputs at most ``max_batch``."""
        groups: dict[Hashable, list[list[_Work]]] = {}
        for work in works:
            assert work.decoded is not None
            open_groups = groups.setdefault(work.decoded.options, [[]])
            held = sum(len(other.decoded.inputs) for other in open_groups[-1] if other.decoded is not None)
            if open_groups[-1] and held + len(work.decoded.inputs) > self._max_batch:
                open_groups.append([])
            open_groups[-1].append(work)
        return [group for several in groups.values() for group in several]

    def _predict(self, group: Sequence[_Work]) -> None:
        began = time.monotonic()
        decoded = [work.decoded for work in group if work.decoded is not None]
        inputs = [item for one in decoded for item in one.inputs]
        try:
            outputs = list(self._predictor.predict(inputs, decoded[0].options))
            if len(outputs) != len(inputs):
                raise RuntimeError(f"the predictor gave {len(outputs)} outputs to {len(inputs)} inputs")
        except Exception as error:
            if len(group) == 1:
                group[0].reply = self._fault(error)
                return
            for work in group:  # a bad one spoils only its own
                self._predict([work])
            return
        remaining = iter(outputs)
        group[0].executions = 1
        for work, one in zip(group, decoded, strict=True):
            work.outputs = [next(remaining) for _ in one.inputs]
            work.infer_s = time.monotonic() - began

    def _encode(self, work: _Work) -> Message:
        began = time.monotonic()
        assert work.decoded is not None and work.outputs is not None
        try:
            response = with_programs(self._codec.encode(work.decoded, work.outputs), self._predictor)
            later = response.later or Later(files={})
            blobs: list[Blob] = [document(response), response.picture, *response.files.values()]
            blobs += later.sources.values()
        except Exception as error:
            return self._fault(error)
        inputs = self._inputs(later)
        blobs += inputs.values()
        return Message(
            {
                "paths": work.paths,
                "model": response.model,
                "files": list(response.files),
                "sources": list(later.sources),
                "lasting": list(later.lasting),
                "inputs": list(inputs),
                "later": {name: list(sources) for name, sources in later.files.items()},
                "inferences": len(work.decoded.inputs),
                "executions": work.executions,
                "input_s": work.input_s,
                "infer_s": work.infer_s,
                "output_s": time.monotonic() - began,
            },
            blobs,
        )

    def _inputs(self, later: Later) -> dict[str, bytes]:
        """What was analysed, where it is to be kept. That it cannot be made, for want of memory, costs no answer."""
        if not self._keep_inputs:
            return {}
        try:
            return {name: make() for name, make in later.inputs.items()}
        except Exception as error:
            # Its words may name a person.
            log.error("%s: what was analysed is not kept: %s", self._app.title, type(error).__name__)
            return {}

    def _fault(self, error: Exception) -> Message:
        return fault(error, self._app.title, withhold=self._app.kinds is not None)


def document(response: Response) -> bytes:
    """``result.json``: each of its keys on a line, what they hold without spaces, for it may be large."""
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}"
        for key, value in response.result.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
