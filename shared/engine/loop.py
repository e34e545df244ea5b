"""The training loop, read from top to bottom."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext

from torch import Tensor

from shared.comms.joining import shorten_timeouts
from shared.data.loader import Step
from shared.engine.divergence import refuse_divergence
from shared.engine.early_stopping import early_stopping_state, explain_stop, scheduled_entries, stop_reason
from shared.engine.evaluate import evaluate
from shared.engine.interruption import Interruption, StopWatch, exit_by_signal
from shared.engine.losses import count_factors, total, weighted_terms
from shared.engine.noise import noise_seed, seed_generators
from shared.engine.out_of_memory import within_memory
from shared.engine.run import Result, Run
from shared.engine.setup import Training, set_up
from shared.precision import autocast
from shared.recipe import Recipe
from shared.strategy import join_group


def fit(recipe: Recipe, run: Run, *, device: str | None = None, quiet: bool = False) -> Result:
    """Trains ``recipe`` in ``run``, from where the run's newest checkpoint left it, and returns how it ended.

    Under ``torchrun`` the processes share every global batch. A run that was killed and started again, on any
    number of processes, sees the batches and the augmentations that it would have seen.

    Refuses what would go wrong later (``InvalidInputError``); raises ``DivergenceError`` where a loss or a gradient is
    not finite, and torch's ``OutOfMemoryError`` where halving the micro-batch does not help, or there are several
    processes. SIGTERM, SIGUSR1 and Ctrl-C leave a checkpoint, then end as ``SystemExit(143)``, ``SystemExit(138)`` and
    ``KeyboardInterrupt``.
    """
    with join_group(recipe.strategy, device) as group, ExitStack() as stack:
        training = set_up(recipe, run, group, stack, quiet=quiet)
        with Interruption() as interruption:
            outcome = _train(training, StopWatch(recipe.limits, group, interruption))
        group.barrier()
    return exit_by_signal(outcome) if isinstance(outcome, int) else outcome


def _train(training: Training, watch: StopWatch) -> Result | int:
    """The steps that are left. Returns the result, or the signal by which the run was interrupted."""
    progress, limits, group = training.progress, training.recipe.limits, training.group
    every, end = training.validate_every, training.total
    began = time.monotonic() - progress.seconds
    late, signal = limits.minutes is not None and progress.seconds > 60 * limits.minutes, 0
    if progress.step < end and not late:
        progress.history = scheduled_entries(progress.history, progress.validate_every)
        progress.validate_every = every
    reason = stop_reason(progress.history, limits, late=late)
    first = progress.step + 1
    read_every_step = group.world == 1 and group.device.type == "cpu"

    training.trained.train()
    for step in training.loader.steps(progress.step, progress.step if reason else end):
        group.log.position = f"step {step.number + 1}"
        with training.timer.step(step.number):
            loss, norm = train_step(training, step)
        progress.step = step.number + 1
        if progress.step == first:
            shorten_timeouts(group)
        progress.seconds = time.monotonic() - began

        logging = progress.step % limits.log_every == 0 or progress.step == end
        late, signal = watch.look(progress.step, progress.seconds, logging=logging)
        evaluating = progress.step % every == 0 or progress.step == end or late
        saving = evaluating or bool(signal) or progress.step % limits.checkpoint_every == 0
        if read_every_step or logging or saving:
            refuse_divergence(training)
        if logging:
            log_step(training, loss, norm)
        if evaluating:
            reason = validate(training, late=late)
        if saving:
            save(training)
        if reason or signal:
            break
    if signal and not reason and progress.step < end:
        training.log.say(f"stopped at step {progress.step}, which is saved; resume with the same command")
        training.events.write("end", progress.step, reason="interrupted", seconds=progress.seconds)
        return signal
    return finish(training, reason or ("steps" if end == limits.steps else "epochs"))


def train_step(training: Training, step: Step) -> tuple[Tensor, Tensor]:
    """One step of the optimizer, from all parts of the batch. Returns the loss and the gradients' norm, on the device.

    Averaged over the processes the loss is that of the whole batch.
    """
    optimizer, scaler = training.optimizer, training.scaler
    sums = within_memory(training, step, accumulate)
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
    norm = training.strategy.clip(training.model, training.recipe.limits.clip_norm)
    if scaler.is_enabled():
        # With fp16 a gradient may overflow: the scaler leaves such a step out, and takes a smaller scale.
        training.guard.note(step.number, norm, sums, judge_norm=False)
        scaler.step(optimizer)
        scaler.update()
    else:
        training.guard.step(optimizer, step.number, norm, sums)
    if training.guard.sound:
        training.schedule.step()
        if training.ema is not None:
            training.ema.update()
    return total(sums), norm


def accumulate(training: Training, step: Step) -> dict[str, Tensor]:
    """The gradients of all parts of the batch, left in the parameters. Returns the terms of the loss by name."""
    group, parts, counted = training.group, step.parts, training.counted
    seed_generators(noise_seed(training.recipe.seed, step.number, group), group.device)
    factors = [None] * len(parts) if counted is None else count_factors(counted.count, parts, group)
    # All of the model's, not the optimizer's alone: clipping counts the gradients of those that it does not hold.
    for parameter in training.parameters:
        parameter.grad = None
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else training.strategy.accumulating():
            with autocast(training.dtype, group.device):
                found = training.task.loss(training.trained, part.batch)
            terms = weighted_terms(found, part.weight, group, factors[number - 1], parts=len(parts))
            training.scaler.scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        for name, term in terms.items():
            sums[name] = term.detach() if name not in sums else sums[name] + term.detach()
    return sums


def log_step(training: Training, loss: Tensor, norm: Tensor) -> None:
    """Reads the loss and the norm from the device, and notes them."""
    progress = training.progress
    value, learning_rate = training.group.mean(loss).item(), float(training.schedule.get_last_lr()[0])
    rate = training.log.pace(progress.step, progress.seconds)
    training.events.write("train", progress.step, loss=value, norm=norm.item(), lr=learning_rate, steps_per_s=rate)
    training.log.step(progress.step, value, learning_rate, rate)
    if communication := training.timer.report(training.run.path if training.group.leader else None):
        training.events.write("communication", progress.step, **communication)


def validate(training: Training, *, late: bool) -> str | None:
    """Scores the model (its averaged weights, if any), and returns why the run goes no further, or None."""
    group, progress, ema = training.group, training.progress, training.ema
    group.copy_from_leader(training.model.buffers())
    batch = training.evaluation_batch
    with nullcontext() if ema is None else ema.applied(group), training.strategy.whole():
        scores = evaluate(training.model, training.task, training.validation, batch, group, training.dtype)
    progress.history.append({"step": progress.step, **scores})
    training.events.write("validation", progress.step, **scores)
    training.log.say(", ".join([f"step {progress.step} validated", *(f"{n} {v:.4g}" for n, v in scores.items())]))
    training.trained.train()
    return stop_reason(progress.history, training.recipe.limits, late=late)


def save(training: Training) -> None:
    """Saves a checkpoint; the best one stays."""
    progress, limits = training.progress, training.recipe.limits
    progress.best_step = early_stopping_state(progress.history, limits).best_step
    # Should the run go on after a stop between two evaluations, its best is one of those that it makes anyway.
    resumed = early_stopping_state(scheduled_entries(progress.history, training.validate_every), limits)
    kept = {progress.best_step, resumed.best_step}
    training.checkpoints.save(training.state, progress, also=kept, own=training.own_state)


def finish(training: Training, reason: str) -> Result:
    """Writes down how the run ended."""
    progress = training.progress
    best = next((entry for entry in progress.history if entry["step"] == progress.best_step), {})
    result = Result(
        steps=progress.step,
        epochs=progress.step / training.order.steps_per_epoch,
        seconds=progress.seconds,
        reason=reason,
        best_step=progress.best_step,
        scores={name: value for name, value in best.items() if name != "step"},
        history=progress.history,
    )
    if training.group.leader:
        result.save(training.run.result_file)
    training.events.write("end", progress.step, reason=result.reason, seconds=progress.seconds)
    training.log.say(f"ended after step {progress.step}: {explain_stop(reason, training.recipe.limits)}")
    return result
