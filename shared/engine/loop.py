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
from shared.engine.interruption import InterruptHandler, StopCheck, exit_by_signal
from shared.engine.losses import count_factors, total, weighted_terms
from shared.engine.noise import noise_seed, seed_generators
from shared.engine.out_of_memory import retry_on_out_of_memory
from shared.engine.run import Result, Run
from shared.engine.setup import Training, set_up
from shared.observe.events import OnEvent
from shared.precision import autocast
from shared.recipe import Recipe
from shared.strategy import join_group


def fit(
    recipe: Recipe, run: Run, *, device: str | None = None, quiet: bool = False, on_event: OnEvent | None = None
) -> Result:
    """Trains ``recipe`` in ``run``, starting from the newest checkpoint of the run, and returns the result.

    Under ``torchrun`` the processes share every global batch. A run that is killed and started again, on any number of
    processes, sees the same batches and augmentations as a run without interruption.

    ``on_event`` is called in the first process with each event of ``events.jsonl``, in JSON types: ``train`` every
    ``limits.log_every`` steps, ``validation``, ``communication``, ``begin`` and ``end``, each with its ``step``. An
    error in it ends the run.

    Raises ``InvalidInputError`` before the first step for input that would fail later, ``DivergenceError`` if a loss or
    a gradient is not finite, and torch's ``OutOfMemoryError`` if halving the micro-batch does not help or there are
    several processes. On SIGTERM, SIGUSR1 and Ctrl-C it saves a checkpoint and then raises ``SystemExit(143)``,
    ``SystemExit(138)`` and ``KeyboardInterrupt`` respectively.
    """
    with join_group(recipe.strategy, device) as group, ExitStack() as stack:
        training = set_up(recipe, run, group, stack, quiet=quiet, on_event=on_event)
        with InterruptHandler() as interrupt_handler:
            outcome = _train(training, StopCheck(recipe.limits, group, interrupt_handler))
        group.barrier()
    return exit_by_signal(outcome) if isinstance(outcome, int) else outcome


def _train(training: Training, stop_check: StopCheck) -> Result | int:
    """Runs the remaining steps. Returns the result, or the number of the signal that interrupted the run."""
    progress, limits, group = training.progress, training.recipe.limits, training.group
    validate_every, total_steps = training.validate_every, training.total_steps
    start_time = time.monotonic() - progress.seconds
    out_of_time, signal = limits.minutes is not None and progress.seconds > 60 * limits.minutes, 0
    if progress.step < total_steps and not out_of_time:
        progress.history = scheduled_entries(progress.history, progress.validate_every)
        progress.validate_every = validate_every
    reason = stop_reason(progress.history, limits, out_of_time=out_of_time)
    first_step = progress.step + 1
    check_every_step = group.world == 1 and group.device.type == "cpu"

    training.wrapped_model.train()
    for step in training.loader.steps(progress.step, progress.step if reason else total_steps):
        group.log.position = f"at step {step.number + 1}"
        with training.timer.step(step.number):
            loss, norm = train_step(training, step)
        progress.step = step.number + 1
        if progress.step == first_step:
            shorten_timeouts(group)
        progress.seconds = time.monotonic() - start_time

        logging = progress.step % limits.log_every == 0 or progress.step == total_steps
        out_of_time, signal = stop_check.poll(progress.step, progress.seconds, logging=logging)
        evaluating = progress.step % validate_every == 0 or progress.step == total_steps or out_of_time
        saving = evaluating or bool(signal) or progress.step % limits.checkpoint_every == 0
        if check_every_step or logging or saving:
            refuse_divergence(training)
        if logging:
            log_step(training, loss, norm)
        if evaluating:
            reason = validate(training, out_of_time=out_of_time)
        if saving:
            save(training)
        if reason or signal:
            break
    if signal and not reason and progress.step < total_steps:
        training.log.info(f"stopped and saved at step {progress.step}; start the same command again to resume")
        training.events.write("end", progress.step, reason="interrupted", seconds=progress.seconds)
        return signal
    return finish(training, reason or ("steps" if total_steps == limits.steps else "epochs"))


def train_step(training: Training, step: Step) -> tuple[Tensor, Tensor]:
    """Runs one optimizer step over all micro-batches. Returns the loss and the gradient norm as tensors on the device.

    The mean of the loss over the processes is the loss of the global batch.
    """
    optimizer, scaler = training.optimizer, training.scaler
    loss_terms = retry_on_out_of_memory(training, step, accumulate)
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
    norm = training.strategy.clip(training.model, training.recipe.limits.clip_norm)
    if scaler.is_enabled():
        # With fp16 a gradient may overflow: the scaler then skips the step and reduces the scale.
        training.guard.record(step.number, norm, loss_terms, check_norm=False)
        scaler.step(optimizer)
        scaler.update()
    else:
        training.guard.step(optimizer, step.number, norm, loss_terms)
    if training.guard.all_finite:
        training.schedule.step()
        if training.ema is not None:
            training.ema.update()
    return total(loss_terms), norm


def accumulate(training: Training, step: Step) -> dict[str, Tensor]:
    """Adds up the gradients of all micro-batches in the parameters. Returns the terms of the loss by name."""
    group, parts, counting_task = training.group, step.parts, training.counting_task
    seed_generators(noise_seed(training.recipe.seed, step.number, group), group.device)
    factors = [None] * len(parts) if counting_task is None else count_factors(counting_task.count, parts, group)
    # Clear all parameters of the model, not only the optimizer's: clipping includes the gradients of all of them.
    for parameter in training.parameters:
        parameter.grad = None
    loss_terms: dict[str, Tensor] = {}
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else training.strategy.accumulating():
            with autocast(training.dtype, group.device):
                loss = training.task.loss(training.wrapped_model, part.batch)
            terms = weighted_terms(loss, part.weight, group, factors[number - 1], parts=len(parts))
            training.scaler.scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        for name, term in terms.items():
            loss_terms[name] = term.detach() if name not in loss_terms else loss_terms[name] + term.detach()
    return loss_terms


def log_step(training: Training, loss: Tensor, norm: Tensor) -> None:
    """Reads the loss and the gradient norm from the device and writes them to the log and the events."""
    progress = training.progress
    # With mixed precision the type of the loss may differ between processes, such as on one without positives.
    mean_loss, learning_rate = training.group.mean(loss.float()).item(), float(training.schedule.get_last_lr()[0])
    speed = training.log.steps_per_second(progress.step, progress.seconds)
    training.events.write("train", progress.step, loss=mean_loss, norm=norm.item(), lr=learning_rate, steps_per_s=speed)
    training.log.step(progress.step, mean_loss, learning_rate, speed)
    if communication := training.timer.report(training.run.path if training.group.leader else None):
        training.events.write("communication", progress.step, **communication)


def validate(training: Training, *, out_of_time: bool) -> str | None:
    """Scores the model, with its averaged weights if there are any. Returns the reason to stop, or None to continue."""
    group, progress, ema = training.group, training.progress, training.ema
    group.copy_from_leader(training.model.buffers())
    batch = training.evaluation_batch
    with nullcontext() if ema is None else ema.applied(group), training.strategy.whole():
        scores = evaluate(training.model, training.task, training.validation, batch, group, training.dtype)
    progress.history.append({"step": progress.step, **scores})
    training.events.write("validation", progress.step, **scores)
    training.log.info(", ".join([f"step {progress.step} validated", *(f"{n} {v:.4g}" for n, v in scores.items())]))
    training.wrapped_model.train()
    return stop_reason(progress.history, training.recipe.limits, out_of_time=out_of_time)


def save(training: Training) -> None:
    """Saves a checkpoint and keeps the best one."""
    progress, limits = training.progress, training.recipe.limits
    progress.best_step = early_stopping_state(progress.history, limits).best_step
    # A run that is resumed after a stop between two scheduled evaluations drops the extra one from its history. Keep
    # the best of the scheduled ones as well.
    resumed = early_stopping_state(scheduled_entries(progress.history, training.validate_every), limits)
    best_steps = {progress.best_step, resumed.best_step}
    training.checkpoints.save(training.state, progress, keep_steps=best_steps, process_state=training.process_state)


def finish(training: Training, reason: str) -> Result:
    """Writes the result of the run and returns it."""
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
    training.log.info(f"ended after step {progress.step}: {explain_stop(reason, training.recipe.limits)}")
    return result
