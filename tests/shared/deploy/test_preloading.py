"""Models are loaded while the input is read. A refused request does not wait for them; errors come from the call."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared.deploy.predictor import Decoded, Request, Response, answer
from shared.deploy.preloading import is_preloading
from shared.deploy.programs.program import ArrayCompute, Program, ProgramError
from shared.errors import InvalidInputError

TIMEOUT_S = 20


def doubling(name: str = "doubling") -> Program:
    return Program(name=name, compute=ArrayCompute(lambda inputs: {"y": 2 * inputs["x"]}))


def lazy_program(opener: Callable[[], Program], reader: Callable[[], Program]) -> Program:
    return Program(name="", compute=ArrayCompute(lambda _: {}), opener=opener, reader=reader)


class Line:
    """A predictor and codec: doubles numbers with the first of its programs; ``read`` returns the input."""

    def __init__(self, programs: dict[str, Program], read: Callable[[], float]) -> None:
        self.programs, self.read = programs, read

    def predict(self, batch: Sequence[float], options: Any = None) -> list[float]:
        program = next(iter(self.programs.values()))
        return [float(program.arrays({"x": np.array([number])})["y"][0]) for number in batch]

    def decode(self, request: Request) -> Decoded[float]:
        return Decoded(inputs=(self.read(),), options=None)

    def encode(self, decoded: Decoded[float], outputs: Sequence[float]) -> Response:
        return Response(result={"value": outputs[0]})

    def answer(self) -> dict[str, Any]:
        result = answer(self, Request(files=()), self).result
        return {name: value for name, value in result.items() if name != "program_reasons"}


def fail_if_called() -> Program:
    raise AssertionError("it was read already")


def test_the_model_is_loaded_while_the_input_is_read() -> None:
    read = Event()

    def reader() -> Program:
        read.set()
        return doubling()

    line = Line({"line": lazy_program(fail_if_called, reader)}, read=lambda: 3.0 if read.wait(TIMEOUT_S) else 0.0)
    assert line.answer() == {"value": 6.0, "programs": {"line": "doubling"}}
    assert line.answer()["value"] == 6.0


def test_an_input_that_is_refused_does_not_wait_for_the_model() -> None:
    is_refused = Event()

    def reader() -> Program:
        assert is_refused.wait(TIMEOUT_S)
        return doubling()

    def read() -> float:
        raise InvalidInputError("this is no number")

    began = time.monotonic()
    with pytest.raises(InvalidInputError, match="this is no number"):
        Line({"line": lazy_program(fail_if_called, reader)}, read=read).answer()
    assert is_preloading() and time.monotonic() - began < TIMEOUT_S / 2
    is_refused.set()


def test_a_command_that_refuses_its_input_exits_while_a_model_is_loading(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from shared.cli import main\n"
        "from shared.deploy.programs.program import Program\n"
        f"Program.preload = lambda self: time.sleep({10 * TIMEOUT_S})\n"
        "raise SystemExit(main())\n"
    )
    file = tmp_path / "table.csv"
    file.write_text("neither,times\nnor,values\n")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        code,
        "predict",
        "finance",
        str(file),
        "--out",
        str(tmp_path / "o"),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=9 * TIMEOUT_S)
    assert completed.returncode == 2 and completed.stderr.startswith("trivium: table.csv"), completed.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_after_a_failed_preload_the_call_loads_the_program_or_raises() -> None:
    def broken() -> Program:
        raise ProgramError("this file is torn")

    line = Line({"line": lazy_program(doubling, broken)}, read=lambda: 1.0)
    assert line.answer() == {"value": 2.0, "programs": {"line": "doubling"}}
    with pytest.raises(ProgramError, match="this file is torn"):
        Line({"line": lazy_program(broken, broken)}, read=lambda: 1.0).answer()


def test_likely_models_are_preloaded_and_only_used_models_are_named() -> None:
    read: list[str] = []
    all_read = Event()

    def ahead(name: str) -> Program:
        def reader() -> Program:
            read.append(name)
            if name == "second":
                all_read.set()
            return doubling(name)

        return lazy_program(lambda: doubling(name), reader)

    programs = {name: ahead(name) for name in ("first", "second", "third")}
    line = Line(programs, read=lambda: 1.0 if all_read.wait(TIMEOUT_S) else 0.0)
    codec = SimpleNamespace(decode=line.decode, encode=line.encode, likely_models=lambda _: ["second", "unknown"])
    result = answer(line, Request(files=()), codec).result
    assert read == ["second"] and result["value"] == 2.0 and result["programs"] == {"first": "first"}
