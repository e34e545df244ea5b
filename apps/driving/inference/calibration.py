"""The operating point: the least score of each class, chosen on labelled frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from shared.recipe import Recipe

MOST_SAMPLES = 48


def calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """The score of each class where F1 is highest on up to 48 validation samples of the recipe's data, evenly chosen.

    A class that does not occur there, or of which nothing is found, gets 0.3; the former are named.
    """
    task, dataset = recipe.task.build(), recipe.data.validation(recipe.input)
    scores: Any = task.scores()
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(MOST_SAMPLES, len(dataset))).round().astype(np.int64))
    model.eval()
    with torch.inference_mode():
        for number in chosen:
            task.evaluate(model, dataset.batch(np.array([number]), None), scores)
    absent = [name for label, (name, _) in enumerate(scores.classes) if scores.curve(label) is None]
    return {
        "least_scores": scores.thresholds(),
        "classes_without_objects": absent,
        "scenes": len(chosen),
        "synthetic": bool(recipe.data.fingerprint()["synthetic"]),
    }
