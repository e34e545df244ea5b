"""The public Python API of Trivium: load a model and predict, train, export and serve.

Importing this module does not import torch: each name imports its dependencies on first use. ``docs/python.md`` has an
example of each name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

TYPE_CHECKING = False  # importing typing would take a fifth of this module's import time budget
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from shared.app import App, DenseNetwork, DomainScore, on_use
    from shared.data.dataset import Dataset
    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Codec, Decoded, Predictor, Request, Response
    from shared.deploy.programs.artifact_network import open_network
    from shared.engine.initial_weights import read_weights
    from shared.engine.loop import fit
    from shared.engine.mean_scores import MeanScores
    from shared.engine.run import Run
    from shared.engine.task import Task, WeightedLoss
    from shared.errors import InvalidInputError
    from shared.optimizers import SGD, AdamW, Constant, CosineRestarts, Steps
    from shared.recipe import Limits, Recipe
    from shared.strategy import DDP, FSDP

__all__ = [
    "DDP",
    "FSDP",
    "SGD",
    "AdamW",
    "App",
    "Constant",
    "CosineRestarts",
    "Dataset",
    "Decoded",
    "DenseNetwork",
    "DomainScore",
    "InvalidInputError",
    "Limits",
    "LoadedModel",
    "MeanScores",
    "Predictor",
    "Recipe",
    "Request",
    "Response",
    "Run",
    "Steps",
    "Task",
    "WeightedLoss",
    "export",
    "fit",
    "load",
    "on_use",
    "open_network",
    "read_weights",
    "serve",
]

_MODULES = {
    "AdamW": "shared.optimizers",
    "App": "shared.app",
    "Constant": "shared.optimizers",
    "CosineRestarts": "shared.optimizers",
    "DDP": "shared.strategy",
    "Dataset": "shared.data.dataset",
    "Decoded": "shared.deploy.predictor",
    "DenseNetwork": "shared.app",
    "DomainScore": "shared.app",
    "FSDP": "shared.strategy",
    "InvalidInputError": "shared.errors",
    "Limits": "shared.recipe",
    "MeanScores": "shared.engine.mean_scores",
    "Predictor": "shared.deploy.predictor",
    "Recipe": "shared.recipe",
    "Request": "shared.deploy.predictor",
    "Response": "shared.deploy.predictor",
    "Run": "shared.engine.run",
    "SGD": "shared.optimizers",
    "Steps": "shared.optimizers",
    "Task": "shared.engine.task",
    "WeightedLoss": "shared.engine.task",
    "fit": "shared.engine.loop",
    "on_use": "shared.app",
    "open_network": "shared.deploy.programs.artifact_network",
    "read_weights": "shared.engine.initial_weights",
}


def _import_own_packages() -> None:
    """Imports the ``shared`` and ``apps`` next to this package, even if the working directory has packages so named.

    Raises ``ImportError`` if another package of one of these names was imported before.
    """
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    try:
        for name in ("shared", "apps"):
            if root / name not in [Path(path).resolve() for path in import_module(name).__path__]:
                raise ImportError(
                    f"another package called {name} is already imported, and Trivium has its own package of that "
                    "name; import trivium first, or rename yours"
                )
    finally:
        sys.path.remove(str(root))


_import_own_packages()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'trivium' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class LoadedModel:
    """A model of an application, ready to predict; returned by ``load``.

    ``predictor`` maps the application's typed arrays to its typed findings. ``codec`` decodes files and options into
    predictor inputs, and encodes findings in the field's formats. ``artifact`` is the name and version of the model.
    """

    def __init__(self, *, app: App, artifact: str, predictor: Predictor[Any, Any], codec: Codec[Any, Any]) -> None:
        self.app, self.artifact, self.predictor, self.codec = app, artifact, predictor, codec

    def __repr__(self) -> str:
        return f"LoadedModel({self.app.name}: {self.artifact})"

    def predict(self, inputs: Any, **options: Any) -> Any:
        """Returns the findings in one input (a ``CTVolume``, ``Frame`` or ``Series``), or a list of them for a list.

        ``options`` are fields of the application's ``Options``, defined next to its predictor. Raises
        ``InvalidInputError`` for an input of another type, such as a path or an array.
        """
        typed_options = _build_options(self.predictor, options)
        several = isinstance(inputs, list)
        batch = inputs if several else [inputs]
        _refuse_other_types(self.app.name, self.predictor, batch)
        outputs = list(self.predictor.predict(batch, typed_options))
        return outputs if several else outputs[0]

    def predict_files(self, *paths: str | Path, **options: object) -> Any:
        """Returns the findings in files: those of one input, or a list if the files hold several inputs.

        ``options`` are those of ``trivium predict --option``. Raises ``InvalidInputError`` for files that cannot be
        used.
        """
        from shared.deploy.predictor import Request

        request = Request(files=_existing_paths(paths), options={name: str(value) for name, value in options.items()})
        decoded = self.codec.decode(request)
        outputs = list(self.predictor.predict(decoded.inputs, decoded.options))
        return outputs[0] if len(outputs) == 1 else outputs

    def monitor(self, begin: Any, **options: Any) -> Any:
        """Returns a monitor that predicts on an input as it grows. Only finance has one, for a ``Series``.

        ``begin`` is the input so far, or a file written by a monitor's ``save``; ``options`` are those of ``predict``.
        Raises ``InvalidInputError`` if the application has no monitor.
        """
        from shared.errors import InvalidInputError

        if not hasattr(self.predictor, "monitor"):
            raise InvalidInputError(f"{self.app.name} has no monitor: its inputs do not grow; call predict for each")
        return self.predictor.monitor(begin, _build_options(self.predictor, options))

    def read(self, *paths: str | Path, **options: object) -> list[Any]:
        """Reads files into the inputs that ``predict`` takes."""
        from shared.deploy.predictor import Request

        request = Request(files=_existing_paths(paths), options={name: str(value) for name, value in options.items()})
        return list(self.codec.decode(request).inputs)


def _refuse_other_types(app: str, predictor: Predictor[Any, Any], batch: list[Any]) -> None:
    from dataclasses import MISSING, fields

    from shared.errors import InvalidInputError

    input_type = getattr(predictor, "takes", None)
    wrong = None if input_type is None else next((item for item in batch if not isinstance(item, input_type)), None)
    if input_type is None or wrong is None:
        return
    required = [
        field.name for field in fields(input_type) if field.default is MISSING and field.default_factory is MISSING
    ]
    raise InvalidInputError(
        f"predict of a {app} model takes an input of type {input_type.__module__}.{input_type.__name__}"
        f"({', '.join(required)}) or a list of them, not {type(wrong).__name__}; call predict_files with paths, or "
        "read to make such inputs from files"
    )


def load(
    app: str | App,
    artifact: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Loads a model of the application ``app``: by default the one that ships with it.

    artifact    a directory written by ``trivium export`` or ``trivium import``
    checkpoint  a run's directory; loads its best checkpoint, calibrated as for an export
    device      ``cpu`` or ``cuda``; by default the GPU if there is one
    """
    from shared.app import find
    from shared.deploy.opening import open_predictor

    found = find(app) if isinstance(app, str) else app
    opened = open_predictor(
        found,
        artifact=None if artifact is None else Path(artifact),
        run=None if checkpoint is None else Path(checkpoint),
        device=device,
    )
    return LoadedModel(app=found, artifact=opened.title, predictor=opened.predictor, codec=opened.codec)


def export(run: str | Path, registry: str | Path = "models", app: App | None = None) -> Artifact:
    """Exports a run's best checkpoint as the next version of its model in ``registry``, as ``trivium export`` does.

    ``app`` is the run's application; by default the installed application that the run's recipe names.
    """
    from shared.app import find
    from shared.deploy.export import export as export_run
    from shared.recipe_file import read_recipe_file

    owner = app if app is not None else find(str(read_recipe_file(Path(run) / "recipe.yaml")["app"]))
    return export_run(Path(run), owner, Path(registry))


def serve(**settings: Any) -> None:
    """Serves the installed applications until interrupted, as ``trivium serve`` does.

    ``settings`` are fields of ``shared.serve.settings.Settings`` (host, port, registry, store, device, ...). A setting
    that is not passed comes from the environment (such as ``TRIVIUM_PORT``) or has its default.
    """
    from shared.serve.server import run
    from shared.serve.settings import read_settings

    run(read_settings(**settings))


def _existing_paths(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    from shared.errors import InvalidInputError

    files = tuple(Path(path) for path in paths)
    for path in files:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name a file or a folder to predict on")
    return files


def _build_options(predictor: Predictor[Any, Any], values: dict[str, Any]) -> Any:
    """Builds the application's ``Options`` from ``values``; returns None, for the defaults, if there are none."""
    if not values:
        return None
    from shared.errors import InvalidInputError

    options_class = getattr(sys.modules[type(predictor).__module__], "Options", None)
    if options_class is None:
        raise InvalidInputError(f"{type(predictor).__name__} takes no options")
    try:
        return options_class(**values)
    except TypeError as error:
        known = ", ".join(getattr(options_class, "__dataclass_fields__", {}))
        raise InvalidInputError(f"the options {', '.join(values)} cannot be used; the options are {known}") from error
