"""What a run's directory says of the run: how far it came, its best score, and how it stands. Imports no torch."""

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
    """A run as its directory has it; None where that says nothing.

    ``best`` is the monitored score, called ``monitor``, of the best checkpoint, which is that of ``best_step``;
    ``loss`` that of the last logging step. ``settings`` are those of the recipe by their paths
    (``optimizer.learning_rate``), and the class of each component by the component's path.
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
    """The runs that ``folders`` are or hold at any depth, in the order of their names. Refuses where there is none."""
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInputError(f"there is no directory {folder}; name runs, or directories that hold runs")
        found.update(dict.fromkeys(_runs_below(folder)))
    if not found:
        places = ", ".join(map(str, folders))
        raise InvalidInputError(f"there is no run in {places}; trivium train APP --out DIR makes one, or name others")
    return list(found)


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
    """Reads what there is of the run at ``path``, which may be training. One that is damaged is unreadable."""
    run = Run(path, "", "")
    for file in (run.recipe_file, run.events_file, run.result_file, *run.checkpoints.glob("step-*/state.json")):
        if file.exists() and not file.is_file():  # a pipe would be waited for, and a device read for ever
            return _unreadable(path, f"its {file.name} is no regular file")
    try:
        return _summary(path)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return _unreadable(path, "a file of it is damaged; bring it back from a copy")


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
    """The value where it is a number. Raises ``TypeError`` for what a damaged file has in the place of one."""
    return None if value is None else value + 0.0


def _progress(run: Run) -> Mapping[str, Any]:
    """The progress in the newest checkpoint that can be read, or in ``result.json`` where the checkpoints are gone."""
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
    """How the run stands, and why in words."""
    if is_locked(run.lock_file):
        return "running", ""
    if not events:
        return ("unreadable", "its events.jsonl is gone") if steps else ("interrupted", "before its first step")
    if (last := events[-1])["event"] != "end":
        return "interrupted", "it wrote no end (killed, or training on another machine)"
    reason = str(last.get("reason"))
    if reason == "failed":
        return "failed", str(last.get("why"))
    return ("interrupted", "by a signal") if reason == "interrupted" else ("ended", reason)


def _settings(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((path, class_name(kind)) for path, kind in document.get("classes", {}).items() if path)
    yield from _flat(document["recipe"], "")


def _flat(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs of one application with one class of network, and the settings in which they differ.

    ``settings`` has the values by the settings' paths, in the order of the runs, None where a run has no such setting.
    """

    app: str
    model: str
    runs: Sequence[Path]
    settings: Mapping[str, Sequence[Any]]


def compare(runs: Iterable[RunSummary]) -> list[Comparison]:
    """What differs between those of the runs that can be compared; of others nearly everything would."""
    alike: dict[tuple[str, str], list[RunSummary]] = {}
    for one in runs:
        if one.settings:
            alike.setdefault((one.app, str(one.settings.get("model", ""))), []).append(one)
    return [
        Comparison(app, model, [one.run for one in each], _differing([one.settings for one in each]))
        for (app, model), each in alike.items()
        if len(each) > 1
    ]


def _differing(held: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    names = dict.fromkeys(name for settings in held for name in settings)
    values = {name: [settings.get(name) for settings in held] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each[1:])}
