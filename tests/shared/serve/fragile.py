"""An installed application whose predictor crashes its process in the way that an option names."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.app import App
from shared.deploy.predictor import Decoded, DeferredFiles, Request, Response


class Fragile:
    """The option ``how`` names the failure; without it the answer is the process id."""

    def decode(self, request: Request) -> Decoded[str]:
        return Decoded(inputs=(request.options.get("how", ""),), options=None, context=request.options)

    def predict(self, batch: Sequence[str], options: Any = None) -> list[int]:
        for how in batch:
            if how == "abort":
                os.abort()
            if how.startswith("leave "):
                # Like a worker that is killed after it has unpacked an upload. Also writes the folder's name to a file.
                folder = Path(tempfile.mkdtemp())
                (folder / "upload").write_text("a patient's")
                Path(how.removeprefix("leave ")).write_text(str(folder))
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "memory":
                bytes(1 << 40)
            while how == "hang":
                time.sleep(0.01)
            while how == "burn":
                pass
        return [os.getpid() for _ in batch]

    def encode(self, decoded: Decoded[str], outputs: Sequence[int]) -> Response:
        large = bytes(int(decoded.context.get("bytes", 0)))
        deferred = DeferredFiles(files={}, inputs={"given": lambda: bytes(len(large))})
        return Response(result={"process": outputs[0]}, picture=b"\x89PNG", files={"large": large}, later=deferred)


def _load(*_: object) -> Fragile:
    if "FRAGILE_KILLED_WHILE_LOADING" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does if the machine is out of memory
    return Fragile()


def _unused(*_: object) -> Any:
    raise AssertionError("the server neither trains nor reproduces")


app = App(
    name="fragile",
    title="Fragile",
    summary="Crashes on request.",
    notice="For tests only.",
    root=Path(__file__).parent / "fragile",
    models=("echo",),
    recipes=_unused,
    dense=_unused,
    predictor=_load,
    codec=lambda predictor: predictor,
)
steady = replace(app, name="steady", title="Steady", models=("steady",))
