"""One worker process, as the server sees it: started, given work, stopped. Used from the event loop alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.serve.runtime.worker import Listener
from shared.serve.worker.messages import MAX_HANDED_OVER, BrokenMessage, Message, bundle, pair, receive, send, unbundle
from shared.serve.worker.work import Work

log = logging.getLogger("trivium.serve")


class WorkerProcess:
    """A process of its own for what ``work`` says, which can be killed without harm to the server."""

    def __init__(self, work: Work) -> None:
        self.most, self.load_s = 1, 0.0
        self.programs: dict[str, str] = {}
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self._connection: socket.socket | None = None
        self._listener: Listener | None = None
        self._refusal: str | None = None
        self._ending: asyncio.Task[None] | None = None

    def start(self, listener: Listener) -> None:
        """Starts the process; what it prints goes where the server prints."""
        self._listener, self._refusal = listener, None
        self._connection, theirs = pair()
        self._connection.setblocking(False)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if self._work.threads is not None:
            environment |= dict.fromkeys(("TRIVIUM_THREADS", "OMP_NUM_THREADS"), str(self._work.threads))
        if self._work.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = only_gpu(self._work.gpu, environment.get("CUDA_VISIBLE_DEVICES"))
        # What it unpacks goes with it, also where it is killed: an upload may be a patient's.
        self._scratch = Path(tempfile.mkdtemp(prefix="trivium-worker-"))
        environment["TMPDIR"] = str(self._scratch)
        # Not the working directory first (-P): a folder of the user's may be called like one of our packages.
        command = [sys.executable, "-P", *_interpreter_options(), "-m", "shared.serve.worker"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid()), json.dumps(self._work.as_json())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl+C is the server's to answer
            )
        asyncio.get_running_loop().add_reader(self._connection, self._read)

    def begin(self, batch: Sequence[Message]) -> bool:
        """Sends the requests."""
        if self._connection is None:
            return False
        try:
            send(self._connection, bundle(batch))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def stop(self) -> bool:
        """Kills it; the listener is told when it is gone."""
        if self._process is not None:
            self._process.kill()
        return True

    def close(self) -> None:
        """Kills it and waits for its end."""
        self._listener = None
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._remove_scratch()
        if self._ending is not None:
            self._ending.cancel()

    def describe(self) -> dict[str, int | None]:
        """Its process id, and the memory that it holds (its resident set)."""
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
            log.error("a worker is ended: %s", error)
            self.stop()
            message = None
        if message is None:
            self._disconnect()
            self._ending = asyncio.ensure_future(self._end())
        elif "event" not in message.head:
            self._listener.has_replied(self, replies)
        elif message.head["event"] == "ready":
            self.most, self.load_s = min(int(message.head["most"]), MAX_HANDED_OVER), float(message.head["load_s"])
            self.programs = {str(name): str(why) for name, why in message.head["programs"].items()}
            self._listener.is_ready(self)
        elif message.head["event"] == "stage":
            self._listener.has_stage(self, str(message.head["stage"]))
        else:
            self._refusal = str(message.head["sentence"])

    async def _end(self) -> None:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self._remove_scratch)
        why = self._refusal or (signal.Signals(-code).name if code < 0 else f"status {code}")
        if self._listener is not None:
            self._listener.has_ended(self, why, refused=self._refusal is not None)

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _disconnect(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection)
            self._connection.close()
            self._connection = None


def only_gpu(number: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is for a process that may use one alone of the GPUs that are visible here.

    Where there are not as many, the process sees none and says so when it loads.
    """
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return names[number] if number < len(names) else ""


def _interpreter_options() -> list[str]:
    return [option for warning in sys.warnoptions for option in ("-W", warning)]
