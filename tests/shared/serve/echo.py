"""A minimal application for tests: it doubles the numbers in a CSV file."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from fastapi import APIRouter
from onnx import TensorProto, helper
from PIL import Image

from shared.app import App, Sample
from shared.deploy.artifact import NETWORK, Manifest, TensorSpec, describe_file, write_manifest
from shared.deploy.predictor import Decoded, DeferredFiles, Request, Response
from shared.errors import InvalidInputError
from shared.progress import report_stage
from shared.serve.service import Service


@dataclass(frozen=True)
class Numbers:
    """The numbers in the files of one request."""

    values: tuple[float, ...]
    poisoned: bool


@dataclass
class Echo:
    """The predictor and codec. ``batches`` are the batch sizes that ``predict`` was called with, ``units`` its options.

    ``made`` are the files generated on request, ``wrote_inputs`` how often the inputs were written.
    ``gate`` blocks ``predict`` while it is cleared.
    Only requests with an equal option ``unit`` form a batch.
    """

    batches: list[int] = field(default_factory=list)
    units: list[str | None] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batching: bool = True
    made: list[str] = field(default_factory=list)
    wrote_inputs: int = 0

    def decode(self, request: Request) -> Decoded[Numbers]:
        numbers = []
        for path in request.files:
            try:
                numbers += [float(cell) for cell in path.read_text().replace("\n", ",").split(",") if cell.strip()]
            except ValueError as error:
                raise InvalidInputError(f"{path.name} is not a CSV of numbers: {error}") from error
        poisoned = "poison" in request.options
        return Decoded(
            inputs=(Numbers(tuple(numbers), poisoned),),
            options=request.options.get("unit"),
            context=dict(request.options),
        )

    def predict(self, batch: Sequence[Numbers], options: str | None = None) -> list[list[float]]:
        self.entered.set()
        report_stage("doubling, part 1 of 2")
        assert self.gate.wait(timeout=60)
        self.batches.append(len(batch))
        self.units.append(options)
        if any(numbers.poisoned for numbers in batch):
            raise ArithmeticError("a secret of the inside")
        return [[2 * value for value in numbers.values] for numbers in batch]

    def encode(self, decoded: Decoded[Numbers], outputs: Sequence[list[float]]) -> Response:
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
        table = "\n".join(str(number) for number in outputs[0])
        if "later" in decoded.context:
            files = {"picture.png": ("numbers", "doubled.csv"), "sum.txt": ("numbers",)}
            sources = {"numbers": json.dumps(outputs[0]).encode()}
            return Response(
                result={"doubled": outputs[0]},
                files={"doubled.csv": table.encode()},
                later=DeferredFiles(
                    files=files, sources=sources, inputs={"given": lambda: self._given(decoded.inputs[0])}
                ),
            )
        return Response(
            result={"doubled": outputs[0], "options": decoded.context},
            picture=picture.getvalue(),
            files={"doubled.csv": table.encode(), "report.html": b"<script>alert(1)</script><p>two</p>"},
        )

    def _given(self, numbers: Numbers) -> bytes:
        self.wrote_inputs += 1
        return json.dumps(numbers.values).encode()

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        self.made.append(name)
        if name == "picture.png":
            return b"\x89PNG" + sources["numbers"] + sources["doubled.csv"]
        return str(sum(json.loads(sources["numbers"]))).encode()


def write_artifact(registry: Path, version: int, app: str = "echo", name: str = "echo") -> None:
    """An artifact of ``app``: y = 2 x + version for x (batch, 2), and z = table[index] of INT64 indices (batch)."""
    home = registry / name / str(version)
    home.mkdir(parents=True)
    float_, int_ = TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["twice"]),
            helper.make_node("Add", ["twice", "shift"], ["y"]),
            helper.make_node("Gather", ["table", "index"], ["z"]),
        ],
        "echo",
        [
            helper.make_tensor_value_info("x", float_, ["batch", 2]),
            helper.make_tensor_value_info("index", int_, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("y", float_, ["batch", 2]),
            helper.make_tensor_value_info("z", float_, ["batch"]),
        ],
        [
            helper.make_tensor("two", float_, [1], [2.0]),
            helper.make_tensor("shift", float_, [1], [float(version)]),
            helper.make_tensor("table", float_, [3], [10.0, 20.0, float("inf")]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, home / NETWORK)
    manifest = Manifest(
        name=name,
        version=version,
        app=app,
        inputs=(
            TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
            TensorSpec(name="index", datatype="INT64", shape=(-1,)),
        ),
        outputs=(
            TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),
            TensorSpec(name="z", datatype="FP32", shape=(-1,)),
        ),
        scores={},
        data={"description": "numbers made up for tests", "synthetic": True},
        files={NETWORK: describe_file(home / NETWORK)},
    )
    write_manifest(home, manifest)


def _unused(*_: object) -> Any:
    raise AssertionError("the server neither trains nor reproduces")


def make_app(root: Path, echo: Echo) -> App:
    """The application in ``root``, with two versions of its artifact."""
    for version in (1, 2):
        write_artifact(root / "weights", version)

    def three(folder: Path) -> list[Path]:
        (folder / "three.csv").write_text("1,2,3\n")
        return [folder / "three.csv"]

    def router(service: Service) -> APIRouter:
        extra = APIRouter()

        @extra.get("/count")
        def count() -> int:
            return len(service.store.recent("echo"))

        return extra

    return App(
        name="echo",
        title="Echo",
        summary="Doubles the numbers in a CSV file.",
        notice="For tests only.",
        root=root,
        models=("echo",),
        job_bytes=1000,
        recipes=_unused,
        dense=_unused,
        predictor=lambda artifacts, device: echo,
        codec=lambda predictor: echo,
        samples=lambda: [Sample(name="three", title="Three numbers", synthetic=True, source="made here", files=three)],
        reproduce=_unused,
        router=router,
    )


def csv(*numbers: float, name: str = "numbers.csv") -> tuple[str, tuple[str, bytes, str]]:
    """A part of a form: the field name and a CSV file."""
    return "files", (name, ",".join(map(str, numbers)).encode(), "text/csv")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until the condition is true; another thread makes it so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.002)
