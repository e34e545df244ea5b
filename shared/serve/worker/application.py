"""Runs an application's predictor and codec in a worker: from files and options to the bytes of an answer."""

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
    DeferredFiles,
    Predictor,
    Request,
    Response,
    add_programs,
    describe_programs,
)
from shared.errors import InvalidInputError
from shared.progress import progress_listener
from shared.serve.worker.handler import Stage, failure_reply
from shared.serve.worker.messages import Blob, Message

log = logging.getLogger("trivium.serve")


@dataclass(slots=True)
class _RequestState:
    """The state of a request in progress, with the seconds that its steps took."""

    paths: list[str]
    decoded: Decoded[Any] | None = None
    outputs: list[Any] | None = None
    input_s: float = 0.0
    infer_s: float = 0.0
    executions: int = 0
    reply: Message | None = None


class ApplicationHandler:
    """Decodes, predicts and encodes. If the predictor supports batches, requests with equal options form a batch.

    A batch has at most ``max_batch`` inputs; a request with more is computed alone. With ``keep_inputs`` the replies
    also contain the inputs, as the codec's ``DeferredFiles.inputs`` returns them.
    """

    def __init__(
        self, app: App, artifacts: Sequence[Artifact], device: str, max_batch: int, keep_inputs: bool = False
    ) -> None:
        from shared.device import choose_device

        self._app = app
        self._predictor: Predictor[Any, Any] = app.predictor(artifacts, choose_device(device))
        self._codec: Codec[Any, Any] = app.codec(self._predictor)
        self.programs = describe_programs(self._predictor)
        self._max_batch = max_batch
        self._keep_inputs = keep_inputs
        self.max_requests = max_batch if getattr(self._predictor, "batching", False) else 1

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """Replies whose blobs are the result as JSON, the picture, then the files, sources and inputs by name."""
        stage("reading")
        states = [
            self._generate_file(request) if "make" in request.head else self._decode(request) for request in requests
        ]
        stage("computing")
        with progress_listener(stage):
            for batch in self._batches([state for state in states if state.reply is None]):
                self._predict(batch)
        stage("writing")
        return [state.reply or self._encode(state) for state in states]

    def _generate_file(self, request: Message) -> _RequestState:
        """Generates a file that the answer did not include, from files of the case or from the request's blobs."""
        head, state = request.head, _RequestState(paths=[])
        try:
            try:
                sources = {name: Path(path).read_bytes() for name, path in head["paths"].items()}
            except FileNotFoundError:
                reason = "the case was deleted, or another request has just generated the file: request it again"
                raise InvalidInputError(reason, status=404) from None
            sources |= {name: bytes(blob) for name, blob in zip(head["inline"], request.blobs, strict=True)}
            state.reply = Message({}, [self._codec.make(head["make"], sources)])  # type: ignore[attr-defined]
        except Exception as error:
            state.reply = self._failure_reply(error)
        return state

    def _decode(self, request: Message) -> _RequestState:
        began, head = time.monotonic(), request.head
        state = _RequestState(paths=list(head["files"]))
        try:
            if head["sample"] is not None:
                state.paths = self._sample_files(head["sample"], Path(head["folder"]))
            files = tuple(Path(path) for path in state.paths)
            state.decoded = self._codec.decode(Request(files=files, options=head["options"], seconds=head["seconds"]))
        except Exception as error:
            # A cancelled request loses its files while they are read, which is no fault; nobody gets the reply.
            is_cancelled = head["folder"] is not None and not Path(head["folder"]).exists()
            state.reply = self._failure_reply(InvalidInputError("the request was cancelled") if is_cancelled else error)
        state.input_s = time.monotonic() - began
        return state

    def _sample_files(self, name: str, folder: Path) -> list[str]:
        samples = {sample.name: sample for sample in self._app.samples()}
        if name not in samples:
            names = ", ".join(samples) or "none"
            raise InvalidInputError(f"{self._app.name} has no sample {name!r}; available: {names}")
        sample_folder = folder / "sample"
        sample_folder.mkdir(exist_ok=True)  # a worker that was replaced meanwhile may have created it
        return [str(path) for path in samples[name].files(sample_folder)]

    def _batches(self, states: Sequence[_RequestState]) -> list[list[_RequestState]]:
        """The requests in batches of equal options, with at most ``max_batch`` inputs each."""
        batches_by_options: dict[Hashable, list[list[_RequestState]]] = {}
        for state in states:
            assert state.decoded is not None
            open_batches = batches_by_options.setdefault(state.decoded.options, [[]])
            input_count = sum(len(member.decoded.inputs) for member in open_batches[-1] if member.decoded is not None)
            if open_batches[-1] and input_count + len(state.decoded.inputs) > self._max_batch:
                open_batches.append([])
            open_batches[-1].append(state)
        return [batch for batches in batches_by_options.values() for batch in batches]

    def _predict(self, batch: Sequence[_RequestState]) -> None:
        began = time.monotonic()
        decoded = [state.decoded for state in batch if state.decoded is not None]
        inputs = [item for request in decoded for item in request.inputs]
        try:
            outputs = list(self._predictor.predict(inputs, decoded[0].options))
            if len(outputs) != len(inputs):
                raise RuntimeError(f"the predictor returned {len(outputs)} outputs for {len(inputs)} inputs")
        except Exception as error:
            if len(batch) == 1:
                batch[0].reply = self._failure_reply(error)
                return
            for state in batch:  # retried one by one, so that a bad request fails alone
                self._predict([state])
            return
        remaining = iter(outputs)
        batch[0].executions = 1
        for state, request in zip(batch, decoded, strict=True):
            state.outputs = [next(remaining) for _ in request.inputs]
            state.infer_s = time.monotonic() - began

    def _encode(self, state: _RequestState) -> Message:
        began = time.monotonic()
        assert state.decoded is not None and state.outputs is not None
        try:
            response = add_programs(self._codec.encode(state.decoded, state.outputs), self._predictor)
            later = response.later or DeferredFiles(files={})
            blobs: list[Blob] = [result_json(response), response.picture, *response.files.values()]
            blobs += later.sources.values()
        except Exception as error:
            return self._failure_reply(error)
        inputs = self._inputs_to_keep(later)
        blobs += inputs.values()
        return Message(
            {
                "paths": state.paths,
                "model": response.model,
                "files": list(response.files),
                "sources": list(later.sources),
                "lasting": list(later.lasting),
                "inputs": list(inputs),
                "later": {name: list(sources) for name, sources in later.files.items()},
                "inferences": len(state.decoded.inputs),
                "executions": state.executions,
                "input_s": state.input_s,
                "infer_s": state.infer_s,
                "output_s": time.monotonic() - began,
            },
            blobs,
        )

    def _inputs_to_keep(self, later: DeferredFiles) -> dict[str, bytes]:
        """The inputs to keep; none if they cannot be created, such as for lack of memory. The answer is still sent."""
        if not self._keep_inputs:
            return {}
        try:
            return {name: make() for name, make in later.inputs.items()}
        except Exception as error:
            # The error's text is not logged: it may name a person.
            log.error("%s: the analysed input is not kept: %s", self._app.title, type(error).__name__)
            return {}

    def _failure_reply(self, error: Exception) -> Message:
        return failure_reply(error, self._app.title, withhold=self._app.kinds is not None)


def result_json(response: Response) -> bytes:
    """``result.json``: one line per key, with the values in compact JSON because they may be large."""
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}"
        for key, value in response.result.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
