"""``trivium runs``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.app import Table
from shared.cli.arguments import Runs
from shared.cli.printing import print_line, print_table
from shared.engine.run_summary import RunSummary, compare, find_runs, summarise
from shared.observe.events import without_nan

_COLUMNS = ("run", "application", "recipe", "steps", "best score", "at step", "last loss", "state")
_LONGEST = 60


def run(command: Runs) -> int:
    """Prints a table of the runs, and the settings in which those of one network differ."""
    runs = [summarise(path) for path in find_runs(command.folders)]
    comparisons = compare(runs)
    if command.json:
        document = {"runs": [asdict(one) for one in runs], "comparisons": [asdict(one) for one in comparisons]}
        print(json.dumps(without_nan(document), indent=2, allow_nan=False, default=str))
        return 0
    print_table(Table(title="", columns=_COLUMNS, rows=[_row(one) for one in runs]))
    for one in comparisons:
        title = f"settings that differ between the {len(one.runs)} runs of {one.app} with {one.model}:"
        print_line(title if one.settings else f"{title} none")
        for name, values in one.settings.items():
            print_line(f"  {name} {_by_value(one.runs, values)}")
    return 0


def _row(one: RunSummary) -> Sequence[str]:
    best = "" if one.best is None else f"{one.monitor} {one.best:.4g}"
    loss = "" if one.loss is None else f"{one.loss:.4g}"
    state = f"{one.state}: {one.why}" if one.why else one.state
    steps, at = ("" if number is None else str(number) for number in (one.steps, one.best_step))
    return str(one.run), one.app, one.recipe, steps, best, at, loss, state


def _by_value(runs: Sequence[Path], values: Sequence[Any]) -> str:
    """Each value once, with the runs that have it; last that of more than half of the runs, without them."""
    having: dict[str, list[str]] = {}
    for path, value in zip(runs, values, strict=True):
        having.setdefault(_short(value), []).append(str(path))
    usual = [value for value, names in having.items() if len(names) > len(runs) / 2]
    named = [f"{value} ({', '.join(names)})" for value, names in having.items() if value not in usual]
    return ", ".join(named + [f"else {value}" for value in usual])


def _short(value: Any) -> str:
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
