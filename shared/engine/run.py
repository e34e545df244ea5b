"""A run: the directory that holds everything about one training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.atomic_files import file_lock, write_whole
from shared.errors import InvalidInputError
from shared.observe.events import without_nan

_LOCK = "run.lock"


@dataclass(frozen=True, slots=True)
class Run:
    """``recipe.yaml``, ``checkpoints/``, ``events.jsonl``, TensorBoard files and ``result.json`` in one directory."""

    path: Path
    app: str
    recipe_name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # Python's users name it by a string, too

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def lock_file(self) -> Path:
        return self.path / _LOCK

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the directory and holds it, for one training at a time. Refuses one that holds other files."""
        if not self.recipe_file.exists() and self.path.is_dir():
            foreign = {entry.name for entry in self.path.iterdir()} - {self.checkpoints.name, _LOCK}
            if any(not name.startswith(f".{self.recipe_file.name}") for name in foreign):
                raise InvalidInputError(f"{self.path} holds files and is not a run; name an empty or new directory")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidInputError(
                f"{self.path} is in the way of a run's directory; name another with --out"
            ) from error
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.lock_file, wait=False))
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"another process trains {self.path}; wait for its end, or name a new run"
                ) from error
            yield


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. ``reason`` is ``epochs``, ``steps``, ``minutes`` or ``early``.

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
        write_whole(path, json.dumps(without_nan(document), indent=2, allow_nan=False) + "\n")
