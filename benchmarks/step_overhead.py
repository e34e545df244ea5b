"""The overhead of a training loop per step: the engine against a bare loop and against its peers.

All loops train the same tiny network with the same optimizer (AdamW as the recipes build it), schedule, gradient
clipping at norm 1, fp32 and batches, on one thread of one process, in turns. Each loop makes its batches itself from
the same tensors. A step is timed from one call of the loss to the next. The figure of a loop is the lower quartile of
its fastest turn, which other load on the machine disturbs least. ``bare`` has neither clipping nor schedule. A peer
that is not installed is left out, and the note says so (``.venv/bin/pip install 'trivium[bench]'``).

The bar: at most 150 µs above the bare loop with clipping and schedule, and below Lightning, Fabric and accelerate.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import report
from shared.data.order import Indices, Key, Permutation
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.optimizers import AdamW, CosineRestarts
from shared.recipe import Limits, Recipe

SAMPLES, BATCH, STEPS, TURNS = 3200, 8, 250, 12
MAX_OVERHEAD_US = 150.0
OPTIMIZER, SCHEDULE = AdamW(), CosineRestarts()


@dataclass(frozen=True, kw_only=True, slots=True)
class Perceptron:
    """The settings of a perceptron with two hidden layers of 32 units."""

    def build(self, input: Any = None) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


class Points:
    """Random points and their targets."""

    def __init__(self, length: int) -> None:
        self.x = torch.randn(length, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Indices, key: Key | None) -> dict[str, Tensor]:
        x = self.x[torch.from_numpy(indices.copy())]
        return {"x": x, "y": x.sum(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointsData:
    """The settings of the data set of points."""

    def train(self, input: Any = None) -> Points:
        return Points(SAMPLES)

    def validation(self, input: Any = None) -> Points:
        return Points(BATCH)

    def fingerprint(self) -> dict[str, Any]:
        return {"description": "random points", "synthetic": True}


class Regression:
    """A task with the mean squared error, which records the time of each call of the loss."""

    def __init__(self) -> None:
        self.loss_times: list[float] = []
        self.losses: list[Tensor] = []

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.loss_times.append(time.perf_counter())
        loss = nn.functional.mse_loss(model(batch["x"]), batch["y"])
        self.losses.append(loss.detach())
        return loss

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor], scores: Any) -> None:
        pass

    def scores(self) -> Any:
        return NoScores()

    def step_us(self) -> float:
        """The lower quartile of the microseconds between losses, without the first tenth of the steps."""
        times = self.loss_times[len(self.loss_times) // 10 :]
        return 1e6 * statistics.quantiles((end - start for start, end in pairwise(times)), n=4)[0]


class NoScores:
    """Empty scores."""

    def merge(self, other: Any) -> None:
        pass

    def summary(self) -> dict[str, float]:
        return {"loss": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrebuiltTask:
    """The settings of a task that is already built."""

    task: list[Regression] = field(default_factory=list)

    def build(self) -> Regression:
        return self.task[0]


def batches() -> Iterator[dict[str, Tensor]]:
    """Yields the batches in the engine's order."""
    points, order = Points(SAMPLES), Permutation(seed=0, length=SAMPLES, batch=BATCH)
    for step in range(STEPS):
        yield points.batch(order.indices(step), None)


def _build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = Perceptron().build().train()
    optimizer = OPTIMIZER.build(model)
    return model, optimizer, SCHEDULE.build(optimizer, SAMPLES // BATCH)


def bare(task: Regression) -> None:
    """Forward, backward, step."""
    model, optimizer, _ = _build()
    for batch in batches():
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def bare_with_clip_and_schedule(task: Regression) -> None:
    """The bare loop with clipping and the schedule, as in all loops below."""
    model, optimizer, schedule = _build()
    for batch in batches():
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def engine(task: Regression) -> None:
    """``fit``, which logs once at the end."""
    recipe = Recipe(
        model=Perceptron(),
        data=PointsData(),
        task=PrebuiltTask(task=[task]),
        optimizer=OPTIMIZER,
        schedule=SCHEDULE,
        precision="fp32",
        limits=Limits(epochs=1, steps=STEPS, batch=BATCH, log_every=STEPS, checkpoint_every=STEPS),
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(recipe, Run(Path(folder) / "run", "benchmark", "step"), device="cpu", quiet=True)


def ignite(task: Regression) -> None:
    """PyTorch-Ignite's engine around the bare step."""
    from ignite.engine import Engine

    model, optimizer, schedule = _build()

    def step(_: Any, batch: dict[str, Tensor]) -> None:
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    Engine(step).run(batches(), max_epochs=1, epoch_length=STEPS)


def fabric(task: Regression) -> None:
    """Lightning Fabric."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    plain_model, plain_optimizer, schedule = _build()
    model, optimizer = fabric.setup(plain_model, plain_optimizer)
    for batch in batches():
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        schedule.step()


def accelerate(task: Regression) -> None:
    """Hugging Face accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = accelerator.prepare(*_build())
    for batch in batches():
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def lightning(task: Regression) -> None:
    """Lightning's Trainer without logger, bar, checkpoints and summary."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self._optimizer, self._schedule = _build()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return task.loss(self.model, batch)

        def configure_optimizers(self) -> Any:
            return [self._optimizer], [{"scheduler": self._schedule, "interval": "step"}]

    class Batches(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return batches()

    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(Batches(), batch_size=None))


LOOPS: dict[str, Callable[[Regression], None]] = {
    "bare": bare,
    "bare + clip + schedule": bare_with_clip_and_schedule,
    "engine": engine,
    "ignite": ignite,
    "Fabric": fabric,
    "accelerate": accelerate,
    "Lightning": lightning,
}


def main() -> None:
    """Times every loop in turns and reports."""
    torch.set_num_threads(1)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.ERROR)
    step_us_by_loop: dict[str, list[float]] = {}
    final_losses: dict[str, float] = {}
    missing = set()
    for _ in range(TURNS):
        for name, loop in LOOPS.items():
            task = Regression()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    loop(task)
            except ModuleNotFoundError:
                missing.add(name)
                continue
            step_us_by_loop.setdefault(name, []).append(task.step_us())
            final_losses[name] = float(torch.stack(task.losses[-20:]).mean())
    best_us = {name: min(times) for name, times in step_us_by_loop.items()}
    # All loops except the bare one without clipping must reach the same loss.
    target = final_losses["bare + clip + schedule"]
    same_losses = all(abs(final_losses[name] / target - 1) < 1e-3 for name in final_losses if name != "bare")
    overhead_us = best_us["engine"] - best_us["bare + clip + schedule"]
    peers = [best_us[name] for name in ("Fabric", "accelerate", "Lightning") if name in best_us]
    note = (
        f"{overhead_us:.0f} µs above the bare loop with clipping and schedule; the maximum is {MAX_OVERHEAD_US:.0f} µs."
    )
    if missing:
        note += f" Not installed and left out: {', '.join(sorted(missing))}."
    report(
        "step_overhead",
        {f"{name}, µs a step": value for name, value in best_us.items()},
        ratio=best_us["Lightning"] / best_us["engine"] if "Lightning" in best_us else 0.0,
        ok=same_losses and overhead_us <= MAX_OVERHEAD_US and all(best_us["engine"] < peer for peer in peers),
        note=note,
    )


if __name__ == "__main__":
    main()
