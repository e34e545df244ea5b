"""What a training loop costs per step besides the model: the engine beside a bare loop and beside its peers.

One tiny network, one optimizer (AdamW as the recipes build it), one schedule, clipping at norm 1, fp32, the same
batches; all on one thread of one process, in turns. Each loop makes its batch itself from the same tensors. A step is
timed from one call of the loss to the next; the figure of a loop is the lower quartile of its quietest turn, which a
busy machine disturbs least. ``bare`` has
neither clipping nor schedule. A peer that is not installed is left out, and the note says so
(``pip install trivium[bench]``).

The bar: at most 150 µs over the bare loop with clipping and schedule, and below Lightning, Fabric and accelerate.
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
ALLOWED_US = 150.0
OPTIMIZER, SCHEDULE = AdamW(), CosineRestarts()


@dataclass(frozen=True, kw_only=True, slots=True)
class Perceptron:
    """Three layers of 32."""

    def build(self, input: Any = None) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


class Points:
    """Random points and what is to be learnt of them."""

    def __init__(self, length: int) -> None:
        self.x = torch.randn(length, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Indices, key: Key | None) -> dict[str, Tensor]:
        x = self.x[torch.from_numpy(indices.copy())]
        return {"x": x, "y": x.sum(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointsData:
    """The points."""

    def train(self, input: Any = None) -> Points:
        return Points(SAMPLES)

    def validation(self, input: Any = None) -> Points:
        return Points(BATCH)

    def fingerprint(self) -> dict[str, Any]:
        return {"description": "random points", "synthetic": True}


class Regression:
    """The mean square. Notes when it is asked for a loss."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.values: list[Tensor] = []

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.marks.append(time.perf_counter())
        loss = nn.functional.mse_loss(model(batch["x"]), batch["y"])
        self.values.append(loss.detach())
        return loss

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor], scores: Any) -> None:
        pass

    def scores(self) -> Any:
        return Nothing()

    def step_us(self) -> float:
        """The lower quartile of the microseconds between losses, without the first tenth."""
        marks = self.marks[len(self.marks) // 10 :]
        return 1e6 * statistics.quantiles((after - before for before, after in pairwise(marks)), n=4)[0]


class Nothing:
    """Scores of nothing."""

    def merge(self, other: Any) -> None:
        pass

    def summary(self) -> dict[str, float]:
        return {"loss": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A task that was built before."""

    task: list[Regression] = field(default_factory=list)

    def build(self) -> Regression:
        return self.task[0]


def batches() -> Iterator[dict[str, Tensor]]:
    """The batches that the engine's order gives."""
    points, order = Points(SAMPLES), Permutation(seed=0, length=SAMPLES, batch=BATCH)
    for step in range(STEPS):
        yield points.batch(order.indices(step), None)


def _built() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = Perceptron().build().train()
    optimizer = OPTIMIZER.build(model)
    return model, optimizer, SCHEDULE.build(optimizer, SAMPLES // BATCH)


def bare(task: Regression) -> None:
    """Forward, backward, step."""
    model, optimizer, _ = _built()
    for batch in batches():
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def bare_with_clip_and_schedule(task: Regression) -> None:
    """The same with clipping and the schedule, as everybody below has them."""
    model, optimizer, schedule = _built()
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
        task=Given(task=[task]),
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

    model, optimizer, schedule = _built()

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
    built, made, schedule = _built()
    model, optimizer = fabric.setup(built, made)
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
    model, optimizer, schedule = accelerator.prepare(*_built())
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
            self.model, self._optimizer, self._schedule = _built()

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
    turns: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
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
            turns.setdefault(name, []).append(task.step_us())
            losses[name] = float(torch.stack(task.values[-20:]).mean())
    best = {name: min(values) for name, values in turns.items()}
    # All but the bare loop without clipping learn the same.
    target = losses["bare + clip + schedule"]
    same = all(abs(losses[name] / target - 1) < 1e-3 for name in losses if name != "bare")
    over = best["engine"] - best["bare + clip + schedule"]
    peers = [best[name] for name in ("Fabric", "accelerate", "Lightning") if name in best]
    note = f"{over:.0f} µs over the bare loop with clipping and schedule, of {ALLOWED_US:.0f} allowed."
    if missing:
        note += f" Not installed and left out: {', '.join(sorted(missing))}."
    report(
        "step_overhead",
        {f"{name}, µs a step": value for name, value in best.items()},
        ratio=best["Lightning"] / best["engine"] if "Lightning" in best else 0.0,
        ok=same and over <= ALLOWED_US and all(best["engine"] < peer for peer in peers),
        note=note,
    )


if __name__ == "__main__":
    main()
