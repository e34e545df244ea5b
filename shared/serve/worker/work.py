"""What a worker is told to do, as JSON, and the handler that does it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from shared.app import GROUP, App
from shared.deploy.artifact import open_artifact
from shared.deploy.programs.choosing import asked_program
from shared.serve.worker.handler import Handler


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a worker computes: an application (``app`` is its entry point's value) or else a dense network.

    ``artifacts`` are directories; ``program`` is what its networks compute with, the fastest by default;
    ``number`` tells the workers of one model apart, which go to GPUs in turn where ``gpu`` does not say to which.
    ``memory_bytes`` bounds a process's data (setrlimit(2), RLIMIT_DATA); ``threads`` is how many it computes with, its
    share of the server's where a model has several workers. ``background`` is for what nobody waits for;
    ``keep_inputs`` has an application give its inputs out with its answers; ``log_json`` has it log in JSON.
    """

    artifacts: tuple[str, ...]
    device: str
    max_batch: int
    app: str | None = None
    program: str | None = None
    max_json_bytes: int = 0
    memory_bytes: int | None = None
    number: int = 0
    gpu: int | None = None
    threads: int | None = None
    background: bool = False
    keep_inputs: bool = False
    log_json: bool = False

    def as_json(self) -> dict[str, Any]:
        """JSON types, which ``Work(**...)`` takes back."""
        return asdict(self)


def make_handler(work: Work, app: App | None = None) -> Handler:
    """The handler for what is to be done; ``app`` where it is at hand. Raises ``InvalidInputError``."""
    artifacts = [open_artifact(Path(path)) for path in work.artifacts]
    if work.app is None and app is None:
        from shared.serve.worker.network import NetworkHandler, open_network

        network = open_network(artifacts[0], work.device, work.program)
        return NetworkHandler(network, artifacts[0].manifest, work.max_batch, work.max_json_bytes)
    from shared.serve.worker.application import ApplicationHandler

    found: App = app or EntryPoint(name="app", value=str(work.app), group=GROUP).load()
    with asked_program(work.program):
        return ApplicationHandler(found, artifacts, work.device, work.max_batch, work.keep_inputs)
