"""The three applications have the same files and folders, used as CONTRIBUTING.md says."""

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
CONTENTS = {
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


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file imports at run time, at any place in it."""
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
def test_an_application_has_exactly_these_files_and_folders(app):
    found = {entry.name for entry in (ROOT / "apps" / app).iterdir() if entry.name != "__pycache__"}
    assert found == CONTENTS


@pytest.mark.parametrize("app", APPS)
def test_objects_that_an_application_imports_on_use_exist(app):
    fields = [getattr(find(app), field.name) for field in dataclasses.fields(find(app))]
    targets = [value.args[0] for value in (*fields, *find(app).partners.values()) if isinstance(value, partial)]
    assert len(targets) > 10 and all(target.startswith(f"apps.{app}.") for target in targets)
    for target in targets:
        resolve_name(target)


@pytest.mark.parametrize("app", APPS)
def test_nothing_imports_the_app_object(app):
    importing = [path for path in python_files(ROOT / "apps") if f"apps.{app}.app" in imported(path)]
    assert importing == []


@pytest.mark.parametrize("app", APPS)
def test_the_domain_library_is_imported_only_where_allowed(app):
    allowed = {"models"} if app == "finance" else {"models", "datasets"}
    misplaced = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files(ROOT / "apps" / app)
        for name in imported(path)
        if name.split(".")[0] in LIBRARIES[app] and path.relative_to(ROOT / "apps" / app).parts[0] not in allowed
    ]
    assert misplaced == []


@pytest.mark.parametrize("app", APPS)
def test_an_application_provides_what_the_commands_need(app):
    application = find(app)
    for name in ("codec", "data_sets", "importers", "evaluate", "calibrate", "result_table"):
        assert getattr(application, name) is not None, name
    assert application.name == app and application.root == ROOT / "apps" / app
    for name, config in application.data_sets().items():
        assert dataclasses.is_dataclass(config), name
        assert all(callable(getattr(config, method)) for method in ("train", "validation", "fingerprint")), name
    assert any("synth" in name for name in application.data_sets()) and len(application.data_sets()) > 1
    for importer in application.importers().values():
        assert importer.summary and importer.arguments


@pytest.mark.parametrize("app", APPS)
def test_predictors_and_codecs_have_the_same_signatures(app):
    predictor_module, service = import_module(f"apps.{app}.predictor"), import_module(f"apps.{app}.service")
    options = predictor_module.Options
    assert options.__dataclass_params__.frozen and options() == options() and hash(options()) == hash(options())
    (predictor,) = own_classes(predictor_module, "Predictor")
    (codec,) = own_classes(service, "Codec")
    assert parameters(predictor.load) == ["artifacts", "device"]
    arguments = inspect.signature(predictor).parameters.values()
    assert all(argument.kind is inspect.Parameter.KEYWORD_ONLY for argument in arguments)
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
    """The classes that the module itself defines and whose names end so."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name.endswith(ending)
    ]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("folder", ["shared", "apps", "trivium", "examples", "benchmarks"])
def test_no_file_has_more_than_400_lines(folder):
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(ROOT / folder)}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def occurs(name: str, words: set[str]) -> bool:
    """Whether a name of the glossary occurs in the sources.

    A name that starts with ``_`` or ``.`` must be the end of a word (``_zyx``). A name with the prefix ``m``, for mean,
    occurs if the name without it does.
    """
    if name[0] in "._":
        return any(word.endswith(name.strip(".")) for word in words)
    last = name.split(".")[-1]
    return last in words or (last[0] == "m" and last[1:] in words)


def test_names_in_the_glossary_exist():
    text = "\n".join(
        path.read_text() for folder in ("shared", "apps", "trivium") for path in python_files(ROOT / folder)
    )
    words = set(re.findall(r"\w+", text))
    rows = [line.split("|") for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if "|" in line]
    names = {name for row in rows if len(row) > 3 for name in re.findall(r"`([A-Za-z_.]+)[`(]", row[2])}
    missing = {name for name in names if not name.endswith(".py") and not occurs(name, words)}
    assert len(names) > 50 and missing == set()


def test_paths_in_contributing_exist():
    paths = re.findall(r"`((?:apps|shared|examples|docs|tests)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []
