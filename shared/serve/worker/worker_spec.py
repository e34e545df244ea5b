"""The specification of a worker, in JSON types, and the handler that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from shared.app import GROUP, App
from shared.deploy.artifact import open_artifact
from shared.deploy.programs.choosing import use_program
from shared.serve.worker.handler import Handler


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """What a worker computes, and how: an application (``app`` is its entry-point value), or else a dense network.

    ``artifacts`` are directories. ``program`` computes the networks; the fastest by default. ``number`` distinguishes
    the workers of one model, and distributes them over the GPUs unless ``gpu`` names one. ``memory_bytes`` limits the
    data of a process (setrlimit(2), RLIMIT_DATA). ``threads`` is how many threads it computes with: its share of the
    server's if a model has several workers. ``background`` lowers its CPU priority. With ``keep_inputs`` an application
    returns its inputs with its answers. ``log_json`` makes it log in JSON.
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


def make_handler(spec: WorkerSpec, app: App | None = None) -> Handler:
    """The handler that ``spec`` describes; ``app`` saves importing the application. Raises ``InvalidInputError``."""
    artifacts = [open_artifact(Path(path)) for path in spec.artifacts]
    if spec.app is None and app is None:
        from shared.serve.worker.network import NetworkHandler, open_network

        network = open_network(artifacts[0], spec.device, spec.program)
        return NetworkHandler(network, artifacts[0].manifest, spec.max_batch, spec.max_json_bytes)
    from shared.serve.worker.application import ApplicationHandler

    application: App = app or EntryPoint(name="app", value=str(spec.app), group=GROUP).load()
    with use_program(spec.program):
        return ApplicationHandler(application, artifacts, spec.device, spec.max_batch, spec.keep_inputs)
