"""The server's side of one worker process: starts it, sends it requests, and stops it. For the event loop only."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from shared.serve.runtime.worker import WorkerListener
from shared.serve.runtime.worker_folder import WorkerFolder
from shared.serve.worker.messages import (
    MAX_SHARED_BODIES,
    BrokenMessage,
    Message,
    bundle,
    receive,
    send,
    socket_pair,
    unbundle,
)
from shared.serve.worker.worker_spec import WorkerSpec

log = logging.getLogger("trivium.serve")


class WorkerProcess:
    """A worker in a separate process, which can be killed without harm to the server.

    ``spec`` says what it computes.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.max_requests, self.load_s = 1, 0.0
        self.programs: dict[str, str] = {}
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary_folder: WorkerFolder | None = None
        self._connection: socket.socket | None = None
        self._listener: WorkerListener | None = None
        self._failure: str | None = None
        self._end_task: asyncio.Task[None] | None = None

    def start(self, listener: WorkerListener) -> None:
        """Starts the process, which inherits the server's standard output and error."""
        self._listener, self._failure = listener, None
        self._connection, child_end = socket_pair()
        self._connection.setblocking(False)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if self._spec.threads is not None:
            environment |= dict.fromkeys(("TRIVIUM_THREADS", "OMP_NUM_THREADS"), str(self._spec.threads))
        if self._spec.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = only_gpu(self._spec.gpu, environment.get("CUDA_VISIBLE_DEVICES"))
        # The server removes this folder when the worker ends, even if killed.
        self._temporary_folder = WorkerFolder()
        environment["TMPDIR"] = str(self._temporary_folder.path)
        # -P keeps the working directory off the import path: a user's folder may have the name of one of our packages.
        command = [sys.executable, "-P", *_interpreter_options(), "-m", "shared.serve.worker"]
        with child_end:
            self._process = subprocess.Popen(
                [*command, str(child_end.fileno()), str(os.getpid()), json.dumps(asdict(self._spec))],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl+C must reach the server only, which then ends its workers
            )
        asyncio.get_running_loop().add_reader(self._connection, self._read)

    def begin(self, batch: Sequence[Message]) -> bool:
        if self._connection is None:
            return False
        try:
            send(self._connection, bundle(batch))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def stop(self) -> bool:
        """Kills the process; the listener is notified when it has ended."""
        if self._process is not None:
            self._process.kill()
        return True

    def close(self) -> None:
        """Kills the process and waits for its end."""
        self._listener = None
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._remove_temporary_folder()
        if self._end_task is not None:
            self._end_task.cancel()

    def describe(self) -> dict[str, int | None]:
        """The process id, and the resident set size in bytes."""
        if self._process is None or self._process.returncode is not None:
            return {"pid": None, "memory_bytes": None}
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return {"pid": self._process.pid, "memory_bytes": None}
        return {"pid": self._process.pid, "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE")}

    def _read(self) -> None:
        assert self._connection is not None and self._listener is not None
        try:
            message = receive(self._connection)
            replies = unbundle(message) if message is not None and "event" not in message.head else ()
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = None
        except BrokenMessage as error:
            log.error("ending a worker that sent an invalid message: %s", error)
            self.stop()
            message = None
        if message is None:
            self._disconnect()
            self._end_task = asyncio.ensure_future(self._report_end())
        elif "event" not in message.head:
            self._listener.on_replies(self, replies)
        elif message.head["event"] == "ready":
            self.max_requests = min(int(message.head["max_requests"]), MAX_SHARED_BODIES)
            self.load_s = float(message.head["load_s"])
            self.programs = {str(name): str(reason) for name, reason in message.head["programs"].items()}
            self._listener.on_ready(self)
        elif message.head["event"] == "stage":
            self._listener.on_stage(self, str(message.head["stage"]))
        else:
            self._failure = str(message.head["sentence"])

    async def _report_end(self) -> None:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self._remove_temporary_folder)
        reason = self._failure or (signal.Signals(-code).name if code < 0 else f"status {code}")
        if self._listener is not None:
            self._listener.on_end(self, reason, refused=self._failure is not None)

    def _remove_temporary_folder(self) -> None:
        if self._temporary_folder is not None:
            self._temporary_folder.remove()

    def _disconnect(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection)
            self._connection.close()
            self._connection = None


def only_gpu(number: int, visible: str | None) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a process that may use only one of the GPUs visible here.

    If there are fewer GPUs, the process sees none, and reports that when it loads.
    """
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return names[number] if number < len(names) else ""


def _interpreter_options() -> list[str]:
    return [option for warning in sys.warnoptions for option in ("-W", warning)]
