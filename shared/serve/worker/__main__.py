"""A worker process: ``python -m shared.serve.worker DESCRIPTOR SERVER_PID SPEC``. It ends when its server does."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from shared.errors import InvalidInputError
from shared.progress import progress_listener
from shared.serve.log_lines import JsonLines
from shared.serve.worker.handler import Handler, Stage, is_out_of_memory
from shared.serve.worker.messages import Message, bundle, receive, send, unbundle
from shared.serve.worker.worker_spec import WorkerSpec, make_handler

log = logging.getLogger("trivium.serve")
_PR_SET_PDEATHSIG = 1
_BACKGROUND_NICE = 5
"""The niceness of background workers: a third of the CPU weight of other processes (sched(7)).

With a tenth, a busy machine starves them.
"""


def main(descriptor: int, spec: WorkerSpec) -> int:
    """Loads the handler, reports that, and computes requests until the server closes the connection.

    Returns the exit status: 0, or 1 if loading failed with an unexpected error.
    """
    connection = socket.socket(fileno=descriptor)
    began = time.monotonic()

    def stage(name: str) -> None:
        send(connection, Message({"event": "stage", "stage": name}))

    gc.disable()  # loading creates a million objects that stay; garbage collection would take a tenth of that time
    try:
        with progress_listener(stage):
            handler = make_handler(spec)
    except InvalidInputError as refusal:
        send(connection, Message({"event": "refused", "sentence": str(refusal)}))
        return 0
    except Exception as error:
        log.exception("a worker cannot load its model")
        reason = "it needs more memory than a worker may have" if is_out_of_memory(error) else type(error).__name__
        send(connection, Message({"event": "failed", "sentence": reason}))
        return 1
    gc.collect()
    if spec.background:
        os.nice(_BACKGROUND_NICE)
    gc.freeze()  # exempts the loaded objects from garbage collection, which would delay requests
    gc.enable()
    ready = {"event": "ready", "max_requests": handler.max_requests, "load_s": time.monotonic() - began}
    send(connection, Message({**ready, "programs": getattr(handler, "programs", {})}))
    with suppress(BrokenPipeError, ConnectionResetError):
        _serve_requests(connection, handler, stage)
    return 0


def _serve_requests(connection: socket.socket, handler: Handler, stage: Stage) -> None:
    while (message := receive(connection)) is not None:
        replies = handler.handle(unbundle(message), stage)
        send(connection, bundle(replies))
        del message
        if any(reply.head.get("ending") for reply in replies):
            return  # a process that ran out of memory may still hold some of it, so it is replaced
        del replies


def _exit_with_server(server: int) -> None:
    """Makes this process end when the server does, even if the server is killed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(0)
    # If the machine runs out of memory, the kernel should kill a worker, which can be replaced, not the server.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _choose_gpu(number: int, device: str) -> None:
    """Distributes the workers of one model over the machine's GPUs by their number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device != "cpu" and number and visible is None:
        import torch

        if (count := torch.cuda.device_count()) > 1:
            torch.cuda.set_device(number % count)


if __name__ == "__main__":
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s:     worker %(process)d: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    spec = WorkerSpec(**json.loads(sys.argv[3]))
    if spec.log_json:
        logging.getLogger().handlers[0].setFormatter(JsonLines(worker=os.getpid()))
    _exit_with_server(int(sys.argv[2]))
    if spec.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (spec.memory_bytes, spec.memory_bytes))
    _choose_gpu(spec.number, spec.device)
    sys.exit(main(int(sys.argv[1]), spec))
