"""A worker process: ``python -m shared.serve.worker DESCRIPTOR WORK``. It ends with the server that started it."""

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
from shared.serve.log_lines import JsonLines
from shared.serve.worker.handler import Handler, is_out_of_memory
from shared.serve.worker.messages import Message, bundle, receive, send, unbundle
from shared.serve.worker.work import Work, make_handler

log = logging.getLogger("trivium.serve")
_PR_SET_PDEATHSIG = 1
_BACKGROUND_NICE = 5
"""A third of the weight that other processes have on a core (sched(7)): with a tenth, a busy machine starves it."""


def main(descriptor: int, work: Work) -> int:
    """Loads, says so, and computes what comes until the server is gone."""
    connection = socket.socket(fileno=descriptor)
    began = time.monotonic()
    gc.disable()  # loading makes a million objects that stay: looking for cycles among them takes a tenth of its time
    try:
        handler = make_handler(work)
    except InvalidInputError as refusal:
        send(connection, Message({"event": "refused", "sentence": str(refusal)}))
        return 0
    except Exception as error:
        log.exception("a worker cannot load what it is to compute")
        words = "it needs more memory than a worker may have" if is_out_of_memory(error) else type(error).__name__
        send(connection, Message({"event": "failed", "sentence": words}))
        return 1
    gc.collect()
    if work.background:
        os.nice(_BACKGROUND_NICE)
    gc.freeze()  # what is there now stays, so the collector need not go through it again while a request waits
    gc.enable()
    ready = {"event": "ready", "most": handler.max_requests, "load_s": time.monotonic() - began}
    send(connection, Message({**ready, "programs": getattr(handler, "programs", {})}))
    with suppress(BrokenPipeError, ConnectionResetError):
        _compute_all(connection, handler)
    return 0


def _compute_all(connection: socket.socket, handler: Handler) -> None:
    def stage(name: str) -> None:
        send(connection, Message({"event": "stage", "stage": name}))

    while (message := receive(connection)) is not None:
        replies = handler.handle(unbundle(message), stage)
        send(connection, bundle(replies))
        del message
        if any(reply.head.get("ending") for reply in replies):
            return  # what ran out of memory may hold some still
        del replies


def _bind_to(server: int) -> None:
    """Has this process end when the server does, also where that is killed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(0)
    # Where the machine runs out of memory, a worker is replaced and the server is not.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _use_gpu(number: int, device: str) -> None:
    """Has the workers of one model take the machine's GPUs in turn."""
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
    given = Work(**json.loads(sys.argv[3]))
    if given.log_json:
        logging.getLogger().handlers[0].setFormatter(JsonLines(worker=os.getpid()))
    _bind_to(int(sys.argv[2]))
    if given.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (given.memory_bytes, given.memory_bytes))
    _use_gpu(given.number, given.device)
    sys.exit(main(int(sys.argv[1]), given))
