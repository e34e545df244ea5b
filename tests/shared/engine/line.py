"""The smallest application: a network that learns a line, with dropout and augmentation to make resuming hard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.data.dataset import Batch
from shared.data.order import Indices, Key
from shared.engine.loop import fit
from shared.engine.run import Result, Run
from shared.optimizers import AdamW, CosineRestarts
from shared.recipe import Limits, Recipe

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    width: int = 8
    dropout: float = 0.1
    name: str = "line"

    def build(self, input: Any = None) -> nn.Module:
        return nn.Sequential(nn.Linear(2, self.width), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(self.width, 1))


class Points:
    """Points on a plane, with random shifts in training. Records the indices of every requested batch."""

    def __init__(self, length: int) -> None:
        self.x = torch.from_numpy(np.random.default_rng(0).normal(size=(length, 2)).astype(np.float32))
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        if key is not None:
            self.asked.append(indices.tolist())
        x = self.x[torch.from_numpy(indices.copy())]
        y = x[:, :1] * 2 - x[:, 1:]
        if key is not None:
            noise = np.stack([key.generator(int(i)).normal(size=2) for i in indices]).astype(np.float32)
            x = x + 0.01 * torch.from_numpy(noise)
        return {"x": x, "y": y}


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    length: int = 40

    def train(self, input: Any = None) -> Points:
        return Points(self.length)

    def validation(self, input: Any = None) -> Points:
        return Points(13)

    def fingerprint(self) -> dict[str, Any]:
        return {"description": "points on a plane", "synthetic": True}


class Scores:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def merge(self, other: Scores) -> None:
        self.total += other.total
        self.count += other.count

    def summary(self) -> dict[str, float]:
        return {"loss": self.total / self.count, "samples": float(self.count)}


class Regression:
    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"square": (model(batch["x"]) - batch["y"]).square().mean(), "nothing": batch["x"].sum() * 0}

    def evaluate(self, model: nn.Module, batch: Batch, scores: Scores) -> None:
        scores.total += float((model(batch["x"]) - batch["y"]).square().sum())
        scores.count += len(batch["x"])

    def scores(self) -> Scores:
        return Scores()


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    def build(self) -> Any:
        return Regression()


def task_settings(task: Callable[[], Any]) -> Settings:
    """A task config that builds the result of ``task``."""
    kind: Any = type("Settings", (Settings,), {"build": lambda self: task(), "__slots__": ()})
    return kind()


@dataclass(frozen=True, kw_only=True, slots=True)
class LineRecipe(Recipe):
    model: Network = field(default_factory=Network)
    data: Data = field(default_factory=Data)
    task: Settings = field(default_factory=Settings)


def recipe(task: Any = Regression, **limits: Any) -> LineRecipe:
    """Three epochs of ten steps, a checkpoint every five. ``task`` is a callable that returns the task."""
    settings: dict[str, Any] = {"epochs": 3, "batch": 4, "checkpoint_every": 5, "log_every": 5, "keep": 3, **limits}
    return LineRecipe(
        optimizer=AdamW(learning_rate=0.02),
        schedule=CosineRestarts(warmup_steps=3, period=1),
        task=Settings() if task is Regression else task_settings(task),
        # fp32: some processors choose bf16, in which two orders of summation differ by more than a millionth.
        precision="fp32",
        limits=Limits(**settings),
    )


def train(path: Path, task: Any = Regression, **limits: Any) -> Result:
    """Trains the recipe in ``path`` on the CPU."""
    return run(recipe(task, **limits), path)


def run(recipe: Recipe, path: Path) -> Result:
    """Trains ``recipe`` in ``path``, on the CPU."""
    return fit(recipe, Run(path, "line", "line"), device="cpu", quiet=True)


def weights(path: Path, step: int) -> dict[str, Tensor]:
    """The model's weights in the checkpoint of a step."""
    return load_file(path / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both have the same names and exactly the same values."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    train(Path(sys.argv[1]), steps=int(sys.argv[2]))
