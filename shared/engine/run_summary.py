"""Summaries of runs, read from their directories: steps, best score, state. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.atomic_files import is_locked
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.observe.events import read_last_events
from shared.recipe_file import class_name, read_recipe_file

State = Literal["running", "ended", "interrupted", "failed", "unreadable"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as recorded in its directory; fields are None if the directory does not record them.

    ``best`` is the score named ``monitor`` of the best checkpoint, which was saved at ``best_step``; ``loss`` is the
    training loss of the last logging step. ``settings`` has the settings of the recipe by path
    (``optimizer.learning_rate``), and the class of each component by the path of the component.
    """

    run: Path
    app: str
    recipe: str
    steps: int | None
    monitor: str
    best: float | None
    best_step: int | None
    loss: float | None
    state: State
    why: str
    settings: Mapping[str, Any]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs in ``folders`` and their subdirectories, sorted by name within each; a folder may itself be a run.

    Raises ``InvalidInputError`` if a folder does not exist or there is no run.
    """
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInputError(f"there is no directory {folder}; name runs, or directories that contain runs")
        runs.update(dict.fromkeys(_runs_below(folder)))
    if not runs:
        places = ", ".join(map(str, folders))
        raise InvalidInputError(
            f"there is no run in {places}; trivium train APP --out DIR creates one, or name other directories"
        )
    return list(runs)


def _runs_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(name)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if "recipe.yaml" in files and ("checkpoints" in folders or "events.jsonl" in files):
            yield Path(name)
            folders.clear()
        folders.sort()


def summarise(path: Path) -> RunSummary:
    """The summary of the run at ``path``, which may be training. If its files are damaged, its state is unreadable."""
    run = Run(path, "", "")
    for file in (run.recipe_file, run.events_file, run.result_file, *run.checkpoints.glob("step-*/state.json")):
        if file.exists() and not file.is_file():  # reading a pipe would block, and a device may never end
            return _unreadable(path, f"its {file.name} is not a regular file")
    try:
        return _summary(path)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return _unreadable(path, "one of its files is damaged; restore it from a copy")


def _unreadable(path: Path, why: str) -> RunSummary:
    return RunSummary(path, "", "", None, "", None, None, None, "unreadable", why, {})


def _summary(path: Path) -> RunSummary:
    run = Run(path, "", "")
    try:
        document = read_recipe_file(run.recipe_file)
        monitor = str(document["recipe"]["limits"]["monitor"])
    except (InvalidInputError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, InvalidInputError) else "its recipe.yaml lacks limits.monitor"
        return _unreadable(path, why)
    events = read_last_events(run.events_file)
    progress = _progress(run)
    steps = max([progress.get("step", 0), *(event["step"] for event in events)])
    step = progress.get("best_step") or None
    best = next((entry.get(monitor) for entry in progress.get("history", ()) if entry.get("step") == step), None)
    state, why = _state(run, events, steps)
    return RunSummary(
        run=path,
        app=str(document["app"]),
        recipe=str(document["name"]),
        steps=steps,
        monitor=monitor,
        best=_number(best),
        best_step=step,
        loss=_number(next((event.get("loss") for event in reversed(events) if event["event"] == "train"), None)),
        state=state,
        why=why,
        settings=dict(_settings(document)),
    )


def _number(value: Any) -> float | None:
    """The value as a float. Raises ``TypeError`` if a damaged file has something else in its place."""
    return None if value is None else value + 0.0


def _progress(run: Run) -> Mapping[str, Any]:
    """The progress in the newest readable checkpoint, or in ``result.json`` if there are no checkpoints."""
    for path in sorted(run.checkpoints.glob("step-*/state.json"), reverse=True):
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["progress"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    try:
        result = json.loads(run.result_file.read_text(encoding="utf-8"))
        return {"step": result["steps"], "best_step": result["best_step"], "history": result["history"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _state(run: Run, events: Sequence[Mapping[str, Any]], steps: int) -> tuple[State, str]:
    """The state of the run, and the reason in words."""
    if is_locked(run.lock_file):
        return "running", ""
    if not events:
        return ("unreadable", "its events.jsonl is missing") if steps else ("interrupted", "before its first step")
    if (last := events[-1])["event"] != "end":
        return "interrupted", "no end was recorded (killed, or training on another machine)"
    reason = str(last.get("reason"))
    if reason == "failed":
        return "failed", str(last.get("why"))
    return ("interrupted", "by a signal") if reason == "interrupted" else ("ended", reason)


def _settings(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((path, class_name(kind)) for path, kind in document.get("classes", {}).items() if path)
    yield from _flatten(document["recipe"], "")


def _flatten(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs of the same application and network class, and the settings in which they differ.

    ``settings`` maps the path of each setting to its values in the order of the runs; None if a run lacks the setting.
    """

    app: str
    model: str
    runs: Sequence[Path]
    settings: Mapping[str, Sequence[Any]]


def compare(runs: Iterable[RunSummary]) -> list[Comparison]:
    """The differing settings of comparable runs; runs of other applications or networks differ in almost all."""
    comparable: dict[tuple[str, str], list[RunSummary]] = {}
    for summary in runs:
        if summary.settings:
            comparable.setdefault((summary.app, str(summary.settings.get("model", ""))), []).append(summary)
    return [
        Comparison(
            app,
            model,
            [summary.run for summary in summaries],
            _differing_settings([summary.settings for summary in summaries]),
        )
        for (app, model), summaries in comparable.items()
        if len(summaries) > 1
    ]


def _differing_settings(settings_of_runs: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    names = dict.fromkeys(name for settings in settings_of_runs for name in settings)
    values_by_name = {name: [settings.get(name) for settings in settings_of_runs] for name in names}
    return {name: values for name, values in values_by_name.items() if any(value != values[0] for value in values[1:])}
