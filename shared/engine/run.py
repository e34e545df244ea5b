"""A run: the directory with all files of one training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.atomic_files import file_lock, write_whole
from shared.errors import DISK_FULL, InvalidInputError
from shared.observe.events import without_nan

_LOCK = "run.lock"


@dataclass(frozen=True, slots=True)
class Run:
    """``recipe.yaml``, ``checkpoints/``, ``events.jsonl``, TensorBoard files and ``result.json`` in one directory."""

    path: Path
    app: str
    recipe_name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # callers may pass a string

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
        """Creates the directory and locks it, so that only one training uses it at a time.

        Raises ``InvalidInputError`` if the directory has files but is not a run, if it cannot be created or written to,
        or if another process trains in it.
        """
        with ExitStack() as stack:
            try:
                self._refuse_other_files()
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(self.lock_file, wait=False))
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"another process is training in {self.path}; wait until it ends, or name a new run{_srun_advice()}"
                ) from error
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidInputError(
                    f"no run can be created in {self.path}: a file is where a directory is needed; name another with "
                    "--out"
                ) from error
            except OSError as error:
                if error.errno in DISK_FULL:
                    raise
                raise InvalidInputError(
                    f"the run {self.path} cannot be written: {error.strerror} ({error.filename}); name a directory "
                    "in which you may write with --out"
                ) from error
            yield

    def _refuse_other_files(self) -> None:
        if not self.recipe_file.exists() and self.path.is_dir():
            other_files = {entry.name for entry in self.path.iterdir()} - {self.checkpoints.name, _LOCK}
            if any(not name.startswith(f".{self.recipe_file.name}") for name in other_files):
                raise InvalidInputError(f"{self.path} holds files but is not a run; name an empty or new directory")


def _srun_advice() -> str:
    """What to do where ``srun`` started this command several times without ``torchrun``; otherwise empty."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or "WORLD_SIZE" in os.environ:
        return ""
    return (
        f"; srun started this command {tasks} times, and each is a training by itself: for one training on all of them "
        "let srun start torchrun once on each node, as deploy/slurm/train.sbatch does"
    )


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. ``reason`` is ``epochs``, ``steps``, ``minutes`` or ``early``.

    ``scores`` are the scores of the best checkpoint; ``history`` has one entry for each evaluation.
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
