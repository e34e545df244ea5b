"""Checkpoints: written aside, renamed when complete, verified when read. No pickles.

The tensors of model and optimizer are stored as safetensors, everything else as JSON. Every process holds the whole
state (DDP), so the leader writes it and all read it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from shared.atomic_files import publish
from shared.errors import InvalidInputError


@dataclass
class Progress:
    """All that a run knows about itself besides tensors.

    ``step`` is the number of steps done, ``samples`` the length of the training data, ``history`` one entry for each
    evaluation, ``best_step`` that of the best of them; ``device`` is where the last steps were computed.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    device: str = ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


class Checkpoints:
    """The checkpoints of a run: the last ``keep`` of them, and the best. One process writes them: ``Run.claimed``."""

    def __init__(self, path: Path, *, recipe_digest: str, keep: int = 2) -> None:
        self.path, self.recipe_digest, self.keep = path, recipe_digest, keep

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        extra: dict[str, Any],
        progress: Progress,
        also: Collection[int] = (),
    ) -> None:
        """Writes the state after ``progress.step`` steps. For the leader alone; ``model`` is not wrapped.

        Of the older checkpoints the last ones stay, and those of the steps in ``also``.
        """
        state = optimizer.state_dict()
        moments = {f"{key}.{slot}": value for key, slots in state["state"].items() for slot, value in slots.items()}
        for torn in self.path.glob(".step-*"):
            shutil.rmtree(torn)
        aside = self.path / f".step-{progress.step:08d}"
        aside.mkdir(parents=True)
        _store(model.state_dict(), aside / "model.safetensors")
        _store({name: torch.as_tensor(value) for name, value in moments.items()}, aside / "optimizer.safetensors")
        document = {
            "recipe_digest": self.recipe_digest,
            "progress": vars(progress),
            "groups": state["param_groups"],
            "extra": extra,
            "sha256": {name: _digest(aside / name) for name in ("model.safetensors", "optimizer.safetensors")},
        }
        (aside / "state.json").write_text(json.dumps(document), encoding="utf-8")
        final = self._at(progress.step)
        # What stands at this step or a later one was torn, or the run would have gone on from there.
        for beyond in self._steps():
            if beyond >= final:
                shutil.rmtree(beyond)
        publish(aside, final)
        kept = {self._at(step) for step in also}
        for old in self._steps()[: -self.keep]:
            if old not in kept:
                shutil.rmtree(old)

    def _at(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))

    def best(self) -> Path | None:
        """The checkpoint with the best monitored score by what the newest one says, where there is a whole one."""
        latest = self.latest()
        path = None if latest is None else self._at(read_progress(latest).best_step)
        return path if path is not None and _complete(path) else None

    def latest(self) -> Path | None:
        """The newest complete checkpoint; a torn or altered one is passed over for the one before."""
        for path in reversed(self._steps()):
            if _complete(path):
                return path
        return None

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> tuple[Progress, dict[str, Any]]:
        """Restores model and optimizer in place; returns the progress and what ``save`` was given as ``extra``."""
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["recipe_digest"] != self.recipe_digest:
            raise InvalidInputError(
                f"{path} was written by another recipe; go on with the settings in recipe.yaml, or name a new run"
            )
        model.load_state_dict(load_file(path / "model.safetensors"))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(path / "optimizer.safetensors").items():
            key, slot = name.split(".", 1)
            slots.setdefault(int(key), {})[slot] = value
        groups = [
            {name: tuple(value) if name == "betas" else value for name, value in group.items()}
            for group in state["groups"]
        ]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
        return Progress(**state["progress"]), state["extra"]


def _complete(path: Path) -> bool:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return all(_digest(path / name) == digest for name, digest in state["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def read_progress(path: Path) -> Progress:
    """What the run knew about itself when it wrote the checkpoint."""
    return Progress(**json.loads((path / "state.json").read_text(encoding="utf-8"))["progress"])


def model_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name."""
    return dict(load_file(path / "model.safetensors"))
