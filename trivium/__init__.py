"""Trivium from Python: load a model and predict, train, export and serve.

Importing this imports no torch: what a name needs is imported when it is used. ``docs/python.md`` has an example of
each name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

TYPE_CHECKING = False  # typing's own takes a fifth of the time that importing this may take
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from shared.app import App
    from shared.data.dataset import Dataset
    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Codec, Predictor
    from shared.engine.initial_weights import read_weights
    from shared.engine.loop import fit
    from shared.engine.run import Run
    from shared.engine.task import Task, WeightedLoss
    from shared.errors import InvalidInputError
    from shared.recipe import Recipe

__all__ = [
    "App",
    "Dataset",
    "InvalidInputError",
    "LoadedModel",
    "Predictor",
    "Recipe",
    "Run",
    "Task",
    "WeightedLoss",
    "export",
    "fit",
    "load",
    "read_weights",
    "serve",
]

_HOMES = {
    "App": "shared.app",
    "Dataset": "shared.data.dataset",
    "InvalidInputError": "shared.errors",
    "Predictor": "shared.deploy.predictor",
    "Recipe": "shared.recipe",
    "Run": "shared.engine.run",
    "Task": "shared.engine.task",
    "WeightedLoss": "shared.engine.task",
    "fit": "shared.engine.loop",
    "read_weights": "shared.engine.initial_weights",
}


def _import_own_packages() -> None:
    """Imports ``shared`` and ``apps`` from beside this package, whatever the working directory calls so."""
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    try:
        for name in ("shared", "apps"):
            if root / name not in [Path(path).resolve() for path in import_module(name).__path__]:
                raise ImportError(
                    f"another package called {name} has been imported, and Trivium has one of that name; import "
                    "trivium first, or rename yours"
                )
    finally:
        sys.path.remove(str(root))


_import_own_packages()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trivium' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class LoadedModel:
    """A model of an application, ready to predict; ``load`` makes one.

    ``predictor`` takes the application's typed arrays and gives its typed findings; ``codec`` turns files and options
    into them, and findings into the field's formats. ``artifact`` says which model it is.
    """

    def __init__(self, *, app: App, artifact: str, predictor: Predictor[Any, Any], codec: Codec[Any, Any]) -> None:
        self.app, self.artifact, self.predictor, self.codec = app, artifact, predictor, codec

    def __repr__(self) -> str:
        return f"LoadedModel({self.app.name}: {self.artifact})"

    def predict(self, inputs: Any, **options: Any) -> Any:
        """The findings in one input (a ``CTVolume``, ``Frame``, ``Series``), or in each input of a list.

        ``options`` are fields of the application's ``Options``, which stands beside its predictor. Raises
        ``InvalidInputError`` for what is no such input: a path, an array.
        """
        chosen = _options(self.predictor, options)
        several = isinstance(inputs, list)
        batch = inputs if several else [inputs]
        _refuse_other_types(self.app.name, self.predictor, batch)
        outputs = list(self.predictor.predict(batch, chosen))
        return outputs if several else outputs[0]

    def predict_files(self, *paths: str | Path, **options: object) -> Any:
        """The findings in files: of one input, or a list where the files hold several.

        ``options`` are those of ``trivium predict --option``. Raises ``InvalidInputError`` for files that cannot be
        used.
        """
        from shared.deploy.predictor import Request

        request = Request(files=_existing(paths), options={name: str(value) for name, value in options.items()})
        decoded = self.codec.decode(request)
        outputs = list(self.predictor.predict(decoded.inputs, decoded.options))
        return outputs[0] if len(outputs) == 1 else outputs

    def monitor(self, begin: Any, **options: Any) -> Any:
        """Predicts on an input that grows, for an application that can: finance, with a ``Series`` of its history.

        ``begin`` is the input so far, or the file that a monitor's ``save`` wrote; ``options`` those of ``predict``.
        """
        from shared.errors import InvalidInputError

        if not hasattr(self.predictor, "monitor"):
            raise InvalidInputError(f"{self.app.name} has no monitor: its inputs do not grow; call predict for each")
        return self.predictor.monitor(begin, _options(self.predictor, options))

    def read(self, *paths: str | Path, **options: object) -> list[Any]:
        """The inputs in files, as ``predict`` takes them."""
        from shared.deploy.predictor import Request

        request = Request(files=_existing(paths), options={name: str(value) for name, value in options.items()})
        return list(self.codec.decode(request).inputs)


def _refuse_other_types(app: str, predictor: Predictor[Any, Any], batch: list[Any]) -> None:
    from dataclasses import MISSING, fields

    from shared.errors import InvalidInputError

    kind = getattr(predictor, "takes", None)
    other = None if kind is None else next((one for one in batch if not isinstance(one, kind)), None)
    if kind is None or other is None:
        return
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    raise InvalidInputError(
        f"predict takes {kind.__module__}.{kind.__name__}({', '.join(needed)}), of {app}, or a list of them, and not a "
        f"{type(other).__name__}; predict_files takes paths, and read makes such inputs of files"
    )


def load(
    app: str | App,
    artifact: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Loads a model of the application called ``app``: the shipped one by default.

    artifact    a directory that ``trivium export`` or ``trivium import`` wrote
    checkpoint  a run's directory: its best checkpoint, calibrated as an export is
    device      ``cpu`` or ``cuda``; the GPU by default where there is one
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

    ``app`` is the run's application; where it is None, the installed one of that name.
    """
    from shared.app import find
    from shared.deploy.export import export as export_run
    from shared.recipe_file import read_recipe_file

    owner = app if app is not None else find(str(read_recipe_file(Path(run) / "recipe.yaml")["app"]))
    return export_run(Path(run), owner, Path(registry))


def serve(**settings: Any) -> None:
    """Serves the applications until it is interrupted, as ``trivium serve`` does.

    ``settings`` are fields of ``shared.serve.settings.Settings`` (host, port, registry, store, device, ...). What is
    not given comes from the environment (``TRIVIUM_PORT``), or is the default.
    """
    from shared.serve.server import run
    from shared.serve.settings import read_settings

    run(read_settings(**settings))


def _existing(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    from shared.errors import InvalidInputError

    files = tuple(Path(path) for path in paths)
    for path in files:
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist; name a file or a folder to predict on")
    return files


def _options(predictor: Predictor[Any, Any], given: dict[str, Any]) -> Any:
    """The application's ``Options`` with what was given; None, its defaults, where nothing was."""
    if not given:
        return None
    from shared.errors import InvalidInputError

    kind = getattr(sys.modules[type(predictor).__module__], "Options", None)
    if kind is None:
        raise InvalidInputError(f"{type(predictor).__name__} takes no options")
    try:
        return kind(**given)
    except TypeError as error:
        known = ", ".join(getattr(kind, "__dataclass_fields__", {}))
        raise InvalidInputError(f"the options {', '.join(given)} cannot be used; there are {known}") from error
