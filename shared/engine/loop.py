"""The training loop, read from top to bottom."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn

from shared.comms.group import Group, join
from shared.data.dataset import Dataset, to_device
from shared.data.loader import Loader
from shared.data.order import Order
from shared.engine.checkpoint import Checkpoints, Progress
from shared.engine.early_stopping import early_stopping_state, ended, epoch_end_entries
from shared.engine.losses import combine
from shared.engine.run import Result, Run
from shared.engine.task import Task
from shared.errors import InvalidInputError
from shared.observe.events import Events
from shared.precision import autocast, autocast_dtype
from shared.recipe import Recipe
from shared.recipe_file import digest, save_recipe


def fit(recipe: Recipe, task: Task, run: Run, *, device: str | None = None, quiet: bool = False) -> Result:
    """Trains ``recipe`` in ``run``, from where the run's newest checkpoint left it, and returns how it ended.

    Under ``torchrun`` the processes share every global batch. A run that was killed and started again, on any
    number of processes, sees the batches and the augmentations that it would have seen.
    """
    with join(device) as group:
        return _fit(recipe, task, run, group, quiet=quiet)


def _fit(recipe: Recipe, task: Task, run: Run, group: Group, *, quiet: bool) -> Result:
    with ExitStack() as stack:
        if group.leader:
            stack.enter_context(run.claimed())
            if not run.recipe_file.exists():
                save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        group.barrier()
        limits = recipe.limits
        torch.manual_seed(recipe.seed)
        model = recipe.model.build(recipe.input).to(group.device)
        trained = group.wrap(model)
        train, validation = recipe.data.train(recipe.input), recipe.data.validation(recipe.input)
        order = Order(seed=recipe.seed, length=len(train), batch=limits.batch)
        epoch = order.steps_per_epoch
        optimizer = recipe.optimizer.build(model)
        schedule = recipe.schedule.build(optimizer, epoch)
        dtype = autocast_dtype(recipe.precision, group.device)
        scaler = torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16)
        checkpoints = Checkpoints(run.checkpoints, recipe_digest=digest(recipe), keep=limits.keep)
        progress = Progress(samples=len(train))
        if (latest := checkpoints.latest()) is not None:
            progress, extra = checkpoints.load(latest, model, optimizer)
            schedule.load_state_dict(extra["schedule"])
            scaler.load_state_dict(extra["scaler"])
        if progress.samples != len(train):
            raise InvalidInputError(
                f"{run.path} began with {progress.samples} samples and there are {len(train)}; name a new run"
            )
        progress.device = group.name
        if group.leader:
            save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        total = limits.epochs * epoch
        total = total if limits.steps is None else min(total, limits.steps)
        events = stack.enter_context(Events(run.path if group.leader else None, progress.step))
        bar = stack.enter_context(_bar(enabled=group.leader and not quiet))
        line = bar.add_task(f"{run.app} {run.recipe_name}", total=total, completed=progress.step, loss="")
        began = time.monotonic() - progress.seconds
        events.write("begin", progress.step, world=group.world, device=group.name, samples=len(train))

        late = limits.minutes is not None and progress.seconds > 60 * limits.minutes
        if progress.step < total and not late:
            progress.history = epoch_end_entries(progress.history, epoch)
        reason = ended(progress.history, limits, late=late)
        loader = Loader(
            train,
            order,
            device=group.device,
            rank=group.rank,
            world=group.world,
            threads=limits.loader_threads,
        )
        trained.train()
        for step in loader.steps(progress.step, progress.step if reason else total):
            torch.manual_seed(_noise_seed(recipe.seed, step.number, group))
            with autocast(dtype, group.device):
                losses = task.loss(trained, step.batch)
            loss = combine(losses, step.weight, group)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), limits.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            progress.step = step.number + 1
            progress.seconds = time.monotonic() - began
            bar.advance(line)

            logging = progress.step % limits.log_every == 0 or progress.step == total
            if logging:
                value, learning_rate = group.mean(loss.detach()).item(), schedule.get_last_lr()[0]
                rate = progress.step / max(progress.seconds, 1e-9)
                events.write("train", progress.step, loss=value, norm=norm.item(), lr=learning_rate, steps_per_s=rate)
                bar.update(line, loss=f"loss {value:.4f}")
            # One answer on every process, whatever their clocks say.
            late = limits.minutes is not None and logging and group.agree(progress.seconds > 60 * limits.minutes)
            judging = progress.step % epoch == 0 or progress.step == total or late
            if not judging and progress.step % limits.checkpoint_every:
                continue
            # With fp16 a gradient may overflow: the scaler leaves such a step out.
            sound = torch.isfinite(loss) if scaler.is_enabled() else torch.isfinite(loss) & torch.isfinite(norm)
            if group.agree(not bool(sound)):
                raise FloatingPointError(
                    f"at step {progress.step} the loss is {loss.item()} and the gradient's norm {norm.item()}; "
                    "lower the learning rate or train in fp32"
                )
            if judging:
                group.copy_from_leader(model.buffers())
                scores = evaluate(model, task, validation, limits.evaluation_batch or limits.batch, group, dtype)
                progress.history.append({"step": progress.step, **scores})
                events.write("validation", progress.step, **scores)
                trained.train()
                reason = ended(progress.history, limits, late=late)
            progress.best_step = early_stopping_state(progress.history, limits).best_step
            if group.leader:
                extra = {"schedule": schedule.state_dict(), "scaler": scaler.state_dict()}
                # Should the run go on after a stop within an epoch, its best is the one at the end of an epoch.
                resumed = early_stopping_state(epoch_end_entries(progress.history, epoch), limits)
                checkpoints.save(model, optimizer, extra, progress, also={progress.best_step, resumed.best_step})
            if reason:
                break
        group.barrier()
        best = next((entry for entry in progress.history if entry["step"] == progress.best_step), {})
        result = Result(
            steps=progress.step,
            epochs=progress.step / epoch,
            seconds=progress.seconds,
            reason=reason or ("steps" if total == limits.steps else "epochs"),
            best_step=progress.best_step,
            scores={name: value for name, value in best.items() if name != "step"},
            history=progress.history,
        )
        if group.leader:
            result.save(run.result_file)
        events.write("end", progress.step, reason=result.reason, seconds=progress.seconds)
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


def _noise_seed(seed: int, step: int, group: Group) -> int:
    """The seed of the noise inside the model (dropout) for one step on one process, so that a resume repeats it."""
    return int(np.random.SeedSequence((seed, step, group.rank, group.world)).generate_state(1, np.uint64)[0] >> 1)


def _bar(*, enabled: bool) -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.fields[loss]}"), disable=not enabled)
