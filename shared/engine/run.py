"""A run: the directory that holds everything about one training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Run:
    """``recipe.yaml``, ``checkpoints/``, ``events.jsonl``, TensorBoard files and ``result.json`` in one directory."""

    path: Path
    app: str
    recipe_name: str

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    def create(self) -> None:
        """Makes the directory; refuses one that holds something other than a run."""
        if self.path.is_dir() and any(self.path.iterdir()) and not self.recipe_file.exists():
            raise Refusal(f"{self.path} holds files and is not a run; name an empty or new directory")
        self.checkpoints.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. ``reason`` is ``epochs``, ``steps``, ``minutes``, ``early`` or ``interrupted``.

    ``scores`` are those of the best checkpoint, ``history`` one entry for each evaluation.
    """

    steps: int
    epochs: float
    seconds: float
    reason: str
    best_step: int
    scores: dict[str, float]
    history: list[dict[str, float]]

    def save(self, path: Path) -> None:
        document: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
