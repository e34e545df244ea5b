"""Selects the checkpoint that a run resumes from, and refuses a recipe that is not the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.engine.checkpoint import Checkpoints
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe import Recipe
from shared.recipe_file import (
    EXECUTION_SETTINGS,
    class_name,
    comparable_settings,
    component_classes,
    differences,
    read_recipe_file,
)


def checkpoint_to_resume(checkpoints: Checkpoints, run: Run, recipe: Recipe, notes: list[str]) -> Path | None:
    """The checkpoint to resume from, or None for a new run.

    Raises ``InvalidInputError`` if all checkpoints are damaged, instead of starting over, or if the recipe is not the
    recipe of the run.
    """
    latest, damaged = checkpoints.latest_and_damaged()
    names = ", ".join(path.name for path in damaged)
    if latest is None:
        if damaged:
            raise InvalidInputError(
                f"all checkpoints of {run.path} are damaged ({names}), and the run does not start over: restore one of "
                "them from a copy, or name a new run"
            )
        if run.events_file.exists():
            notes.append(f"{run.path} has no checkpoint: it starts again at its first step")
        return None
    document = read_recipe_file(run.recipe_file)
    settings = comparable_settings(recipe, document["recipe"])
    classes = {path: name for path, name in component_classes(recipe).items() if _has_path(settings, path)}
    changes = [
        *differences(settings, document["recipe"]),
        *differences(_class_names(classes), _class_names(document.get("classes", {}))),
    ]
    changes = [change for change in changes if not change.startswith(EXECUTION_SETTINGS)]
    if not changes:
        # Use the digest under which the run was started: it does not include settings that were introduced later.
        checkpoints.recipe_digest = document.get("digest", checkpoints.recipe_digest)
    elif document.get("digest") != checkpoints.recipe_digest:
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise InvalidInputError(
            f"{run.path} was started with a different recipe: {'; '.join(changes[:5])}{more}; continue with the run's "
            f"own settings (--recipe {run.recipe_file}), or name a new run, which --init {run.path} starts from its "
            "weights"
        )
    if damaged:
        notes.append(f"skipped {names}: incomplete or altered")
    return latest


def _has_path(settings: Any, path: str) -> bool:
    for name in filter(None, path.split(".")):
        if not isinstance(settings, Mapping) or name not in settings:
            return False
        settings = settings[name]
    return True


def _class_names(classes: Mapping[str, str]) -> dict[str, str]:
    return {path or "recipe": class_name(name) for path, name in classes.items()}
