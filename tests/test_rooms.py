"""The three applications have the same rooms, and each thing stands in the room where CONTRIBUTING.md says it does."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from shared.app import find

ROOT = Path(__file__).parents[1]
APPS = ("medical", "driving", "finance")
LIBRARIES = {
    "medical": {"monai"},
    "driving": {"mmdet3d", "mmdet", "mmcv", "mmengine"},
    "finance": {"pytorch_forecasting", "lightning", "pytorch_lightning"},
}
ROOMS = {
    "README.md",
    "__init__.py",
    "adapters",
    "app.py",
    "datasets",
    "inference",
    "metrics",
    "models",
    "outputs",
    "pages",
    "predictor.py",
    "recipes.py",
    "reproduce.py",
    "samples.py",
    "schemas.py",
    "service.py",
    "task.py",
    "types.py",
    "weights",
}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file imports when it runs, wherever in it."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typing_only = {id(node) for guard in guarded for part in guard.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("app", APPS)
def test_an_application_has_exactly_these_rooms(app):
    found = {entry.name for entry in (ROOT / "apps" / app).iterdir() if entry.name != "__pycache__"}
    assert found == ROOMS


@pytest.mark.parametrize("app", APPS)
def test_what_an_application_imports_on_use_is_there(app):
    fields = [getattr(find(app), field.name) for field in dataclasses.fields(find(app))]
    places = [one.args[0] for one in (*fields, *find(app).partners.values()) if isinstance(one, partial)]
    assert len(places) > 10 and all(place.startswith(f"apps.{app}.") for place in places)
    for place in places:
        resolve_name(place)


@pytest.mark.parametrize("app", APPS)
def test_nothing_imports_the_app_object(app):
    wrong = [path for path in sources(ROOT / "apps") if f"apps.{app}.app" in imported(path)]
    assert wrong == []


@pytest.mark.parametrize("app", APPS)
def test_the_domain_library_is_imported_where_it_belongs(app):
    rooms = {"models"} if app == "finance" else {"models", "datasets"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(ROOT / "apps" / app)
        for name in imported(path)
        if name.split(".")[0] in LIBRARIES[app] and path.relative_to(ROOT / "apps" / app).parts[0] not in rooms
    ]
    assert wrong == []


@pytest.mark.parametrize("app", APPS)
def test_an_application_offers_what_the_commands_ask_for(app):
    made = find(app)
    for name in ("codec", "data_sets", "importers", "evaluate", "calibrate", "result_table"):
        assert getattr(made, name) is not None, name
    assert made.name == app and made.root == ROOT / "apps" / app
    for name, kind in made.data_sets().items():
        assert dataclasses.is_dataclass(kind), name
        assert all(callable(getattr(kind, method)) for method in ("train", "validation", "fingerprint")), name
    assert any("synth" in name for name in made.data_sets()) and len(made.data_sets()) > 1
    for importer in made.importers().values():
        assert importer.summary and importer.arguments


@pytest.mark.parametrize("app", APPS)
def test_predictor_and_codec_are_built_and_called_alike(app):
    predictor_module, service = import_module(f"apps.{app}.predictor"), import_module(f"apps.{app}.service")
    options = predictor_module.Options
    assert options.__dataclass_params__.frozen and options() == options() and hash(options()) == hash(options())
    (predictor,) = own_classes(predictor_module, "Predictor")
    (codec,) = own_classes(service, "Codec")
    assert parameters(predictor.load) == ["artifacts", "device"]
    keyword_only = inspect.signature(predictor).parameters.values()
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in keyword_only)
    assert "device" in inspect.signature(predictor).parameters
    assert parameters(predictor.predict) == ["self", "batch", "options"]
    assert inspect.signature(predictor.predict).parameters["options"].default is None
    assert parameters(codec) == ["predictor"]
    assert parameters(codec.decode) == ["self", "request"] and parameters(codec.encode) == [
        "self",
        "decoded",
        "outputs",
    ]


def own_classes(module: Any, ending: str) -> list[type]:
    return [
        one
        for name, one in vars(module).items()
        if inspect.isclass(one) and one.__module__ == module.__name__ and name.endswith(ending)
    ]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("room", ["shared", "apps", "trivium", "examples", "benchmarks"])
def test_a_file_fits_in_the_head(room):
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(ROOT / room)}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def known(name: str, words: set[str]) -> bool:
    """Whether a name of the glossary is a word of the sources: an ending (``_zyx``), or the mean of what is one."""
    if name[0] in "._":
        return any(word.endswith(name.strip(".")) for word in words)
    last = name.split(".")[-1]
    return last in words or (last[0] == "m" and last[1:] in words)


def test_the_glossary_names_what_exists():
    text = "\n".join(path.read_text() for room in ("shared", "apps", "trivium") for path in sources(ROOT / room))
    words = set(re.findall(r"\w+", text))
    rows = [line.split("|") for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if "|" in line]
    names = {name for row in rows if len(row) > 3 for name in re.findall(r"`([A-Za-z_.]+)[`(]", row[2])}
    wrong = {name for name in names if not name.endswith(".py") and not known(name, words)}
    assert len(names) > 50 and wrong == set()


def test_the_places_that_contributing_names_exist():
    places = re.findall(r"`((?:apps|shared|examples|docs|tests)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(places) > 10 and [place for place in places if not (ROOT / place).exists()] == []
