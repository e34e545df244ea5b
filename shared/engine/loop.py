"""The training loop, read from top to bottom."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor, nn

from shared.comms.group import Group, join
from shared.data.dataset import Dataset, to_device
from shared.data.loader import Loader
from shared.data.order import Order
from shared.engine.checkpoint import Checkpoints, Progress
from shared.engine.precision import autocast, autocast_dtype
from shared.engine.recipe import Limits, Recipe, digest, save_recipe
from shared.engine.run import Result, Run
from shared.engine.task import Task
from shared.observe.events import Events
from shared.refusal import Refusal


def fit(recipe: Recipe, task: Task, run: Run, *, device: str | None = None, quiet: bool = False) -> Result:
    """Trains ``recipe`` in ``run``, from where the run's newest checkpoint left it, and returns how it ended.

    Under ``torchrun`` the processes share every global batch. A run that was killed and started again, on any
    number of processes, sees the batches and the augmentations that it would have seen.
    """
    with join(device) as group, ExitStack() as stack:
        if group.leader:
            run.create()
            if not run.recipe_file.exists():
                save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        group.barrier()
        limits = recipe.limits
        torch.manual_seed(recipe.seed)
        model = recipe.model.build().to(group.device)
        trained = group.wrap(model)
        train, validation = recipe.data.train(), recipe.data.validation()
        order = Order(seed=recipe.seed, length=len(train), batch=limits.batch)
        optimizer = recipe.optimizer.build(p for p in model.parameters() if p.requires_grad)
        schedule = recipe.schedule.build(optimizer, order.steps_per_epoch)
        dtype = autocast_dtype(recipe.precision, group.device)
        scaler = torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16)
        checkpoints = Checkpoints(run.checkpoints, recipe_digest=digest(recipe), keep=limits.keep)
        progress = Progress()
        if (latest := checkpoints.latest()) is not None:
            progress, extra = checkpoints.load(latest, model, optimizer)
            schedule.load_state_dict(extra["schedule"])
            scaler.load_state_dict(extra["scaler"])
        if group.leader:
            save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        events = stack.enter_context(Events(run.path if group.leader else None))
        total = limits.epochs * order.steps_per_epoch
        total = total if limits.steps is None else min(total, limits.steps)
        bar = stack.enter_context(_bar(enabled=group.leader and not quiet))
        line = bar.add_task(f"{run.app} {run.recipe_name}", total=total, completed=progress.step, loss="")
        began = time.monotonic() - progress.seconds
        events.write("begin", progress.step, world=group.world, device=group.name, samples=len(train))

        loader = Loader(
            train,
            order,
            device=group.device,
            rank=group.rank,
            world=group.world,
            threads=limits.loader_threads,
        )
        if progress.step < total and not _ended(progress, limits):
            _forget(progress, order.steps_per_epoch, limits)
        reason = _ended(progress, limits) or ("steps" if limits.steps and total == limits.steps else "epochs")
        trained.train()
        for step in loader.steps(progress.step, progress.step if _ended(progress, limits) else total):
            torch.manual_seed(_noise_seed(recipe.seed, step.number, group))
            with autocast(dtype, group.device):
                losses = task.loss(trained, step.batch)
            loss = losses if isinstance(losses, Tensor) else torch.stack([v.mean() for v in losses.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss * step.weight).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), limits.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            progress.step = step.number + 1
            progress.seconds = time.monotonic() - began
            bar.advance(line)

            if progress.step % limits.log_every == 0 or progress.step == total:
                value, learning_rate = loss.item(), schedule.get_last_lr()[0]
                rate = progress.step / max(progress.seconds, 1e-9)
                events.write("train", progress.step, loss=value, norm=norm.item(), lr=learning_rate, steps_per_s=rate)
                bar.update(line, loss=f"loss {value:.4f}")
            late = limits.minutes is not None and progress.seconds > 60 * limits.minutes
            late = group.agree(late) if limits.minutes is not None else False
            if progress.step % order.steps_per_epoch == 0 or progress.step == total or late:
                scores = evaluate(model, task, validation, limits.evaluation_batch or limits.batch, group, dtype)
                _judge(progress, {"step": progress.step, **scores}, limits)
                events.write("validation", progress.step, **scores)
                trained.train()
                reason = _ended(progress, limits) or reason
            elif progress.step % limits.checkpoint_every:
                continue
            if group.agree(not bool(torch.isfinite(loss))):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {progress.step}; lower the learning rate or train in fp32"
                )
            extra = {"schedule": schedule.state_dict(), "scaler": scaler.state_dict()}
            if group.leader:
                checkpoints.save(model, optimizer, extra, progress)
            if _ended(progress, limits):
                break
        group.barrier()
        best = next((entry for entry in progress.history if entry["step"] == progress.best_step), {})
        result = Result(
            steps=progress.step,
            epochs=progress.step / order.steps_per_epoch,
            seconds=progress.seconds,
            reason=reason,
            best_step=progress.best_step,
            scores={name: value for name, value in best.items() if name != "step"},
            history=progress.history,
        )
        if group.leader:
            result.save(run.result_file)
        events.write("end", progress.step, reason=reason, seconds=progress.seconds)
        return result


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    batch: int,
    group: Group,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Scores ``model`` on the whole of ``dataset``, shared by the processes; the same result on each of them."""
    model.eval()
    scores = task.scores()
    mine = np.arange(len(dataset), dtype=np.int64)[group.rank :: group.world]
    for start in range(0, len(mine), batch):
        samples = to_device(dataset.batch(mine[start : start + batch], None), group.device)
        with autocast(dtype, group.device):
            task.evaluate(model, samples, scores)
    merged, *others = group.gather(scores)
    for other in others:
        merged.merge(other)
    return merged.summary()


def _judge(progress: Progress, entry: dict[str, float], limits: Limits) -> None:
    """Notes an evaluation, and whether it is the best so far by more than ``min_delta``."""
    if limits.monitor not in entry:
        raise Refusal(f"limits.monitor is {limits.monitor!r}, and the task scores {', '.join(sorted(entry))}")
    value = entry[limits.monitor]
    progress.history.append(entry)
    sign = 1 if limits.mode == "min" else -1
    better = progress.best is None or sign * (progress.best - value) > limits.min_delta
    if better and np.isfinite(value):
        progress.best, progress.best_step, progress.stale = value, int(entry["step"]), 0
    else:
        progress.stale += 1


def _forget(progress: Progress, steps_per_epoch: int, limits: Limits) -> None:
    """Drops the evaluation that a run made because it was to stop within an epoch, and what followed from it."""
    kept = [entry for entry in progress.history if entry["step"] % steps_per_epoch == 0]
    progress.history, progress.best, progress.best_step, progress.stale = [], None, 0, 0
    for entry in kept:
        _judge(progress, entry, limits)


def _ended(progress: Progress, limits: Limits) -> str | None:
    """Why a run that has been evaluated goes no further, or None where it goes on."""
    if progress.stale >= limits.patience:
        return "early"
    late = limits.minutes is not None and progress.seconds > 60 * limits.minutes
    return "minutes" if late and progress.history else None


def _noise_seed(seed: int, step: int, group: Group) -> int:
    """The seed of the noise inside the model (dropout) for one step on one process, so that a resume repeats it."""
    return int(np.random.SeedSequence((seed, step, group.rank, group.world)).generate_state(1, np.uint64)[0] >> 1)


def _bar(*, enabled: bool) -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.fields[loss]}"), disable=not enabled)
