"""Creates the workers of a model: processes if the settings and the system allow it, else a thread of the server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from shared.app import GROUP, App
from shared.machine_memory import machine_memory_bytes
from shared.serve.runtime.worker import Worker
from shared.serve.runtime.worker_process import WorkerProcess
from shared.serve.runtime.worker_thread import WorkerThread
from shared.serve.settings import Settings
from shared.serve.worker.messages import SUPPORTED
from shared.serve.worker.worker_spec import WorkerSpec, make_handler
from shared.threads import compute_threads

log = logging.getLogger("trivium.serve")


def application_workers(
    app: App, artifacts: Sequence[Path], settings: Settings, *, background: bool = False
) -> list[Worker]:
    """Workers for an application.

    If the application is not an installed package, other processes cannot import it, and the worker is a thread.
    ``background`` processes run at a lower CPU priority.
    """
    spec = replace(_worker_spec(artifacts, settings), background=background)
    entry_point_value = entry_point(app)
    if entry_point_value is None or not uses_worker_processes(settings):
        if uses_worker_processes(settings):
            log.warning("%s is not an installed application, so it runs in the server's own process", app.name)
        return [WorkerThread(lambda: make_handler(spec, app), app.title)]
    return _processes(replace(spec, app=entry_point_value), settings)


def network_workers(artifact: Path, settings: Settings) -> list[Worker]:
    """Workers for the dense network of an artifact."""
    spec = _worker_spec([artifact], settings)
    if uses_worker_processes(settings):
        return _processes(spec, settings)
    return [WorkerThread(lambda: make_handler(spec), artifact.parent.name)]


def uses_worker_processes(settings: Settings) -> bool:
    """Whether models compute in worker processes."""
    return bool(settings.worker_devices) and SUPPORTED


def entry_point(app: App) -> str | None:
    """The entry-point value by which another process can import the application, or None."""
    for candidate in entry_points(group=GROUP, name=app.name):
        if candidate.load() is app:
            return candidate.value
    return None


def _worker_spec(artifacts: Sequence[Path], settings: Settings) -> WorkerSpec:
    return WorkerSpec(
        artifacts=tuple(str(path.resolve()) for path in artifacts),
        device=settings.device,
        program=settings.program,
        max_batch=settings.max_batch,
        max_json_bytes=settings.max_json_bytes,
        keep_inputs=settings.keep_inputs,
        memory_bytes=settings.worker_memory_bytes or half_of_memory(),
        log_json=settings.log_json,
    )


def _processes(spec: WorkerSpec, settings: Settings) -> list[Worker]:
    threads = compute_threads(len(settings.worker_devices))
    return [
        WorkerProcess(replace(spec, number=number, threads=threads, device=device, gpu=gpu))
        for number, (device, gpu) in enumerate(settings.worker_devices)
    ]


def half_of_memory() -> int | None:
    """Half of the memory of this machine or its control group, in bytes; None if it cannot be determined."""
    total = machine_memory_bytes()
    return None if total is None else total // 2
