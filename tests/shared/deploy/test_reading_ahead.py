"""Models are loaded while the input is read; who is refused waits for none, and errors are those of the call."""

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
from shared.deploy.programs.program import ArrayCompute, Program, ProgramError
from shared.deploy.reading_ahead import is_reading_ahead
from shared.errors import InvalidInputError

LONG_S = 20


def doubling(name: str = "doubling") -> Program:
    return Program(name=name, compute=ArrayCompute(lambda inputs: {"y": 2 * inputs["x"]}))


def on_use(opener: Callable[[], Program], reader: Callable[[], Program]) -> Program:
    return Program(name="", compute=ArrayCompute(lambda _: {}), opener=opener, reader=reader)


class Line:
    """Doubles numbers by the first of its programs; its codec reads as ``read`` does."""

    def __init__(self, programs: dict[str, Program], read: Callable[[], float]) -> None:
        self.programs, self.read = programs, read

    def predict(self, batch: Sequence[float], options: Any = None) -> list[float]:
        program = next(iter(self.programs.values()))
        return [float(program.arrays({"x": np.array([one])})["y"][0]) for one in batch]

    def decode(self, request: Request) -> Decoded[float]:
        return Decoded(inputs=(self.read(),), options=None)

    def encode(self, decoded: Decoded[float], outputs: Sequence[float]) -> Response:
        return Response(result={"value": outputs[0]})

    def answer(self) -> dict[str, Any]:
        result = answer(self, Request(files=()), self).result
        return {name: value for name, value in result.items() if name != "program_reasons"}


def never() -> Program:
    raise AssertionError("it was read already")


def test_the_model_is_loaded_while_the_input_is_read() -> None:
    read = Event()

    def reader() -> Program:
        read.set()
        return doubling()

    line = Line({"line": on_use(never, reader)}, read=lambda: 3.0 if read.wait(LONG_S) else 0.0)
    assert line.answer() == {"value": 6.0, "programs": {"line": "doubling"}}
    assert line.answer()["value"] == 6.0


def test_an_input_that_is_refused_does_not_wait_for_the_model() -> None:
    refused = Event()

    def reader() -> Program:
        assert refused.wait(LONG_S)
        return doubling()

    def read() -> float:
        raise InvalidInputError("this is no number")

    began = time.monotonic()
    with pytest.raises(InvalidInputError, match="this is no number"):
        Line({"line": on_use(never, reader)}, read=read).answer()
    assert is_reading_ahead() and time.monotonic() - began < LONG_S / 2
    refused.set()


def test_a_command_that_refuses_its_input_ends_although_a_model_is_being_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from shared.cli import main\n"
        "from shared.deploy.programs.program import Program\n"
        f"Program.read_ahead = lambda self: time.sleep({10 * LONG_S})\n"
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=9 * LONG_S)
    assert done.returncode == 2 and done.stderr.startswith("trivium: table.csv"), done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_ahead_is_opened_by_the_call_whose_error_is_told() -> None:
    def broken() -> Program:
        raise ProgramError("this file is torn")

    line = Line({"line": on_use(doubling, broken)}, read=lambda: 1.0)
    assert line.answer() == {"value": 2.0, "programs": {"line": "doubling"}}
    with pytest.raises(ProgramError, match="this file is torn"):
        Line({"line": on_use(broken, broken)}, read=lambda: 1.0).answer()


def test_of_several_models_the_likely_ones_are_loaded_and_the_used_ones_named() -> None:
    read: list[str] = []
    all_read = Event()

    def ahead(name: str) -> Program:
        def reader() -> Program:
            read.append(name)
            if name == "second":
                all_read.set()
            return doubling(name)

        return on_use(lambda: doubling(name), reader)

    programs = {name: ahead(name) for name in ("first", "second", "third")}
    line = Line(programs, read=lambda: 1.0 if all_read.wait(LONG_S) else 0.0)
    codec = SimpleNamespace(decode=line.decode, encode=line.encode, likely_models=lambda _: ["second", "unknown"])
    result = answer(line, Request(files=()), codec).result
    assert read == ["second"] and result["value"] == 2.0 and result["programs"] == {"first": "first"}
