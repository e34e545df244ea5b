"""``trivium runs``."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.app import Table
from shared.cli.arguments import Runs
from shared.cli.printing import print_line, print_table
from shared.engine.run_summary import RunSummary, compare, find_runs, summarise
from shared.observe.events import without_nan

_COLUMNS = ("run", "application", "recipe", "steps", "best score", "at step", "last loss", "state")
_MAX_VALUE_LENGTH = 60


def run(command: Runs) -> int:
    """Prints a table of the runs, and the settings in which runs with the same network differ."""
    runs = [summarise(path) for path in find_runs(command.folders)]
    comparisons = compare(runs)
    if command.json:
        document = {
            "runs": [asdict(summary) for summary in runs],
            "comparisons": [asdict(each) for each in comparisons],
        }
        print(json.dumps(without_nan(document), indent=2, allow_nan=False, default=str))
        return 0
    print_table(Table(title="", columns=_COLUMNS, rows=[_row(summary) for summary in runs]))
    for comparison in comparisons:
        title = (
            f"settings that differ between the {len(comparison.runs)} runs of {comparison.app} with {comparison.model}:"
        )
        print_line(title if comparison.settings else f"{title} none")
        for name, values in comparison.settings.items():
            if not _is_implied(name, values, comparison.settings):
                print_line(f"  {name} {_runs_by_value(comparison.runs, values)}")
    return 0


def _is_implied(name: str, values: Sequence[Any], differing: Container[str]) -> bool:
    """Whether the runs that have a setting agree on it, and the others lack it because a component is of another class.

    The component's class is printed; its settings would say no more.
    """
    has_other_class = any(name[:end] in differing for end, character in enumerate(name) if character == ".")
    own = [value for value in values if value is not None]
    return has_other_class and all(value == own[0] for value in own)


def _row(summary: RunSummary) -> Sequence[str]:
    best = "" if summary.best is None else f"{summary.monitor} {summary.best:.4g}"
    loss = "" if summary.loss is None else f"{summary.loss:.4g}"
    state = f"{summary.state}: {summary.why}" if summary.why else summary.state
    steps, best_step = ("" if number is None else str(number) for number in (summary.steps, summary.best_step))
    return str(summary.run), summary.app, summary.recipe, steps, best, best_step, loss, state


def _runs_by_value(runs: Sequence[Path], values: Sequence[Any]) -> str:
    """Lists each value once with the runs that have it; the majority's value comes last, as "else"."""
    names_by_value: dict[str, list[str]] = {}
    for path, value in zip(runs, values, strict=True):
        names_by_value.setdefault(_format_value(value), []).append(str(path))
    majority = [value for value, names in names_by_value.items() if len(names) > len(runs) / 2]
    parts = [f"{value} ({', '.join(names)})" for value, names in names_by_value.items() if value not in majority]
    return ", ".join(parts + [f"else {value}" for value in majority])


def _format_value(value: Any) -> str:
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
