"""A test application over ``tests.shared.engine.line`` with data sets, an importer, a protocol and result files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from shared.app import App, DenseNetwork, Imported, Importer, Table
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.predictor import Decoded, Request, Response
from shared.errors import InvalidInputError
from shared.recipe import DataConfig, Recipe
from shared.recipe_file import from_mapping
from tests.shared.engine import line


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A data set of points with a required setting, its folder."""

    root: Path
    count: int = 12

    def train(self, input: Any = None) -> line.Points:
        return line.Points(self.count)

    def validation(self, input: Any = None) -> line.Points:
        return line.Points(5)

    def fingerprint(self) -> dict[str, Any]:
        return {"description": f"points in {self.root.name}", "synthetic": False}

    def facts(self, input: Any = None) -> dict[str, Any]:
        return {"points": self.count, "folder": self.root.name}


@dataclass(frozen=True, kw_only=True, slots=True)
class LineRecipe(Recipe):
    model: line.Network = field(default_factory=line.Network)
    data: DataConfig = field(default_factory=line.Data)
    task: line.Settings = field(default_factory=line.Settings)


def tiny() -> LineRecipe:
    """A few steps."""
    base = line.recipe(steps=4, checkpoint_every=2)
    return LineRecipe(optimizer=base.optimizer, schedule=base.schedule, limits=base.limits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    times: float = 1.0


class LinePredictor:
    """Returns the network's value for each point, multiplied by ``times``."""

    def __init__(self, model: nn.Module, *, device: str, threshold: float) -> None:
        self.model, self.device, self.threshold = model, device, threshold

    @classmethod
    def load(cls, artifacts: Sequence[Artifact], device: str) -> LinePredictor:
        settings = artifacts[0].recipe()["recipe"]["model"]
        model = load_weights(from_mapping(line.Network, settings).build(), artifacts[0], device)
        return cls(model, device=device, threshold=float(artifacts[0].manifest.calibration["threshold"]))

    def predict(self, batch: Sequence[tuple[float, float]], options: Options | None = None) -> list[float]:
        times = (options or Options()).times
        with torch.no_grad():
            return [times * float(self.model(torch.tensor([point]))) for point in batch]


class LineCodec:
    """Reads text files with one point per line."""

    def __init__(self, predictor: LinePredictor) -> None:
        self.predictor = predictor

    def decode(self, request: Request) -> Decoded[tuple[float, float]]:
        lines = [text for path in request.files for text in path.read_text().splitlines()]
        points = tuple((float(a), float(b)) for a, b in (text.split(",") for text in lines))
        return Decoded(inputs=points, options=Options(times=float(request.options.get("times", 1.0))))

    def encode(self, decoded: Decoded[tuple[float, float]], outputs: Sequence[float]) -> Response:
        picture = io.BytesIO()
        Image.new("RGB", (4, 4)).save(picture, "PNG")
        return Response(result={"values": [round(value, 4) for value in outputs]}, picture=picture.getvalue())


def load_line(arguments: Sequence[str], data: DataConfig | None) -> Imported:
    """Reads the network's weights from a safetensors file."""
    model = line.Network().build()
    model.load_state_dict(load_file(arguments[0]))
    source = {"file": Path(arguments[0]).name, "data": None if data is None else data.fingerprint()["description"]}
    return Imported(recipe=tiny(), network=model, source=source, calibration={"threshold": 0.5})


def dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    return DenseNetwork(module=model, inputs={"x": torch.randn(2, 2)}, outputs=("y",), traceable=True)


def calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    return {"threshold": len(recipe.data.validation(recipe.input)) / 10}


def evaluate(predictor: Any, data: DataConfig, limit: int | None) -> Table:
    count = min(len(data.validation(None)), limit or 1000)
    return Table(title="Protocol", columns=("cases", "threshold"), rows=[(str(count), str(predictor.threshold))])


def score_files(paths: Mapping[str, Path]) -> Table:
    if paths.keys() != {"results", "truth"}:
        raise InvalidInputError(f"name --results and --truth, not {', '.join(paths)}")
    return Table(title="Files", columns=("file",), rows=[(path.name,) for path in paths.values()])


def install(folder: Path) -> Path:
    """Installs the application in ``folder``, for processes that have it on their path; returns the folder.

    Such a process starts in half the time of one that imports a domain library.
    """
    metadata = folder / "line-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: line\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[trivium.apps]\nline = installed_line:app\n")
    module = (
        "from pathlib import Path\nfrom tests.shared.line_app import make_app\napp = make_app(Path(__file__).parent)\n"
    )
    (folder / "installed_line.py").write_text(module)
    return folder


def make_app(root: Path, **changes: Callable[..., Any] | None) -> App:
    """The application, with ``changes`` to its functions. Shipped weights are looked for below ``root``."""
    functions: dict[str, Any] = {
        "codec": LineCodec,
        "data_sets": lambda: {"points": line.Data, "folder": Folder},
        "importers": lambda: {
            "file": Importer(summary="Reads a safetensors file.", arguments=("FILE",), load=load_line)
        },
        "evaluate": evaluate,
        "score_files": score_files,
        "calibrate": calibrate,
        "dense": dense,
        "recipes": lambda: {"tiny": tiny},
    }
    return App(
        name="line",
        title="A line",
        summary="",
        notice="",
        root=root,
        models=("line",),
        predictor=LinePredictor.load,
        samples=lambda: (),
        reproduce=lambda quick: Table(title="", columns=(), rows=()),
        **{**functions, **changes},
    )
