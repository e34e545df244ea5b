"""``trivium train``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.app import find
from shared.cli.arguments import Train
from shared.cli.printing import print_line, print_scores
from shared.cli.settings import parse_recipe
from shared.optimizers import OPTIMIZERS, SCHEDULES
from shared.recipe import Recipe, resolve
from shared.recipes import choose_recipe, named_data_set, with_initial_network
from shared.strategy import STRATEGIES


def run(command: Train, settings: Sequence[str]) -> int:
    """Trains and prints the best scores. An existing run of the same recipe resumes where it stopped."""
    app = find(command.app)
    name, base = choose_recipe(app, command.recipe)
    data = None if command.data is None else named_data_set(app, command.data, base)
    options = f"--recipe {command.recipe}" + ("" if command.data is None else f" --data {command.data}")
    prog = f"trivium train {app.name} {options} --"
    recipe = with_initial_network(app, parse_recipe(base, data, settings, prog, named_components(command)), base)
    from torch import OutOfMemoryError

    from shared.comms.watch import LostProcessError
    from shared.engine.loop import fit
    from shared.engine.run import Run

    is_leader = int(os.environ.get("RANK", "0")) == 0
    if is_leader:
        print_facts(recipe)
    training_run = Run(command.out or Path("runs") / f"{app.name}-{name}", app.name, name)
    try:
        result = fit(recipe, training_run, device=command.device)
    except (FloatingPointError, LostProcessError) as error:
        print(f"trivium: {error}", file=sys.stderr)
        return 1
    except OutOfMemoryError as error:
        share = -(-recipe.limits.batch // int(os.environ.get("WORLD_SIZE", "1")))
        micro_batch = min(recipe.limits.micro_batch or share, share)
        advice = " ".join(getattr(error, "__notes__", ())) or (
            f"Use a smaller micro-batch with --limits.micro-batch N (it was at most {micro_batch}), or a smaller "
            "--limits.evaluation-batch N if it was validating; the run then resumes from its newest checkpoint with "
            "the same batches"
        )
        reason = str(error).split(". ")[0]
        print(f"trivium: the GPU's memory is too small for this training: {reason}. {advice}", file=sys.stderr)
        return 1
    if is_leader:
        title = f"{training_run.path}: {result.steps} steps, ended by {result.reason}, best at {result.best_step}"
        print_scores(title, result.scores)
    return 0


def named_components(command: Train) -> dict[str, type]:
    """The component classes that the command line names, by recipe field."""
    choices: dict[str, tuple[str | None, Mapping[str, type]]] = {
        "optimizer": (command.optimizer, OPTIMIZERS),
        "schedule": (command.schedule, SCHEDULES),
        "strategy": (command.strategy, STRATEGIES),
    }
    return {component: classes[word] for component, (word, classes) in choices.items() if word is not None}


def print_facts(recipe: Recipe) -> None:
    """Prints the facts that the data set states, if any: counts, ranges, classes, doubtful splits."""
    facts = getattr(recipe.data, "facts", None)
    if facts is None:
        return
    known_facts: Mapping[str, Any] = facts(resolve(recipe).input)
    for name, value in known_facts.items():
        print_line(f"{name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
