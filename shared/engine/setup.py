"""Prepares a run for its first step: builds its components, restores the checkpoint and checks the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from shared.comms.group import Group
from shared.comms.timing import CommunicationTimer
from shared.data.dataset import Dataset
from shared.data.loader import Loader
from shared.data.order import Order, Permutation
from shared.engine.checkpoint import Checkpoints, Progress, Stateful, read_progress
from shared.engine.checks import (
    refuse_different_data,
    refuse_different_processes,
    refuse_impure_batches,
    refuse_late_parameters,
    refuse_other_type,
    refuse_unusable_data_set,
    refuse_unusable_network,
)
from shared.engine.compilation import compile_in_place
from shared.engine.divergence import FiniteGuard
from shared.engine.ema import ExponentialMovingAverage
from shared.engine.evaluate import refuse_unknown_monitor
from shared.engine.host_memory import keep_freed_memory
from shared.engine.initial_weights import load_initial_weights, new_classes, shared_classes
from shared.engine.network_size import build_within_memory
from shared.engine.out_of_memory import BufferSnapshot, resume_micro_batch
from shared.engine.resuming import checkpoint_to_resume
from shared.engine.run import Run
from shared.engine.task import Counted, Prepared, Task
from shared.engine.training_log import TrainingLog
from shared.errors import InvalidInputError
from shared.observe.events import Events, OnEvent
from shared.precision import ChosenPrecision, choose_precision, refuse_unsupported, widen_small_convolutions
from shared.recipe import Recipe, resolve
from shared.recipe_file import differences, digest, save_recipe
from shared.strategy import PerProcessState, Strategy
from shared.threads import limit_torch_threads

_MAX_WARM_UP_FRACTION = 0.3
"""Longer warm-ups, as a fraction of the run, are logged. The default ``pct_start`` of torch's ``OneCycleLR``."""


@dataclass(slots=True)
class Training:
    """The state of a run during training.

    ``counting_task`` is the task if it must compute the weights of its losses before the forward pass, which is needed
    only with micro-batches; ``wrapped_model`` is ``model`` as wrapped by the strategy.
    """

    recipe: Recipe
    run: Run
    group: Group
    task: Task
    counting_task: Counted | None
    model: nn.Module
    wrapped_model: nn.Module
    parameters: Sequence[nn.Parameter]
    buffers: BufferSnapshot
    strategy: Strategy
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    dtype: torch.dtype | None
    order: Order
    loader: Loader
    validation: Dataset
    checkpoints: Checkpoints
    progress: Progress
    guard: FiniteGuard
    total_steps: int
    log: TrainingLog
    events: Events
    timer: CommunicationTimer

    @property
    def evaluation_batch(self) -> int:
        limits = self.recipe.limits
        return limits.evaluation_batch or self.loader.micro_batch or limits.batch

    @property
    def validate_every(self) -> int:
        """The number of steps between two evaluations."""
        return self.recipe.limits.validate_every or self.order.steps_per_epoch

    @property
    def state(self) -> Mapping[str, Stateful]:
        """The components that a checkpoint saves, by name."""
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        parts |= {"schedule": self.schedule, "scaler": self.scaler}
        return parts if self.ema is None else parts | {"ema": self.ema}

    @property
    def process_state(self) -> dict[str, Any] | None:
        """The state that only this process has, for the checkpoint; None if the strategy has no such state."""
        strategy = self.strategy
        if not isinstance(strategy, PerProcessState) or (layout := strategy.own_layout()) is None:
            return None
        return {"layout": layout, "state": strategy.own_state()}


def set_up(
    recipe: Recipe, run: Run, group: Group, stack: ExitStack, *, quiet: bool, on_event: OnEvent | None = None
) -> Training:
    """Builds the run, restores it from its newest checkpoint, and refuses input that would fail later.

    Resources that must be closed at the end of the run are entered on ``stack``.
    """
    recipe = resolve(recipe)
    limit_torch_threads()
    log = stack.enter_context(TrainingLog(f"{run.app} {run.recipe_name}", enabled=group.leader and not quiet))
    _claim_directory(run, recipe, group, stack)
    if group.device.type == "cpu":
        stack.enter_context(keep_freed_memory())
    notes: list[str] = []
    checkpoints = Checkpoints(run.checkpoints, recipe_digest=digest(recipe), keep=recipe.limits.keep, group=group)
    latest = checkpoint_to_resume(checkpoints, run, recipe, notes)
    training = _build(recipe, run, group, checkpoints, latest, log, notes)
    if latest is not None:
        _restore(training, latest, notes)
    _refuse_faulty_input(training)
    if group.leader:
        run_digest = checkpoints.recipe_digest
        save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name, digest_at_start=run_digest)
    progress, samples = training.progress, training.progress.samples
    training.events = stack.enter_context(Events(run.path if group.leader else None, progress.step, on_event))
    training.events.write("begin", progress.step, world=group.world, device=group.name, samples=samples, notes=notes)
    for note in notes:
        log.info(note)
    log.start(training.total_steps, progress.step, progress.seconds, training.order.steps_per_epoch)
    return training


def _build(
    recipe: Recipe,
    run: Run,
    group: Group,
    checkpoints: Checkpoints,
    latest: Path | None,
    log: TrainingLog,
    notes: list[str],
) -> Training:
    """Builds every component in the state before the first step, the network with the recipe's initial weights."""
    limits = recipe.limits
    precision = _choose_run_precision(recipe, latest, group)
    notes.insert(0, f"on {group.name}, {precision.reason}")
    model = _build_model(recipe, group, precision, latest, log, notes)
    task = recipe.task.build()
    find_unused = bool(getattr(task, "leaves_parameters_unused", False))
    strategy = recipe.strategy.build(group, find_unused_parameters=find_unused)
    if isinstance(task, Prepared):
        task.prepare(model)
    wrapped_model = strategy.wrap(model)
    train, validation = recipe.data.train(recipe.input), recipe.data.validation(recipe.input)
    for part, dataset in {"training": train, "validation": validation}.items():
        refuse_unusable_data_set(part, dataset)
    order = _build_order(recipe, len(train), notes)
    loader = Loader(
        train,
        order,
        device=group.device,
        rank=group.rank,
        world=group.world,
        micro_batch=limits.micro_batch,
        threads=limits.loader_threads,
    )
    optimizer, schedule = _build_optimizer(recipe, model, order)
    total_steps = limits.steps if limits.steps is not None else limits.epochs * order.steps_per_epoch
    notes.extend(filter(None, [_describe_long_warm_up(recipe, total_steps)]))
    counts = {"training samples": len(train), "steps": total_steps, "validation samples": len(validation)}
    group.refuse_differences({f"the number of {name}": count for name, count in counts.items()})
    return Training(
        recipe=recipe,
        run=run,
        group=group,
        task=task,
        counting_task=task if isinstance(task, Counted) and limits.micro_batch is not None else None,
        model=model,
        wrapped_model=wrapped_model,
        parameters=list(model.parameters()),
        buffers=BufferSnapshot(model),
        strategy=strategy,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(group.device.type, enabled=precision.dtype == torch.float16),
        ema=None if recipe.ema_decay is None else ExponentialMovingAverage(model, recipe.ema_decay),
        dtype=precision.dtype,
        order=order,
        loader=loader,
        validation=validation,
        checkpoints=checkpoints,
        progress=Progress(samples=len(train), device=group.name, precision=precision.name),
        guard=FiniteGuard(group.device),
        total_steps=total_steps,
        log=log,
        events=Events(None),
        timer=CommunicationTimer(group, sample_every=limits.log_every),
    )


def _build_model(
    recipe: Recipe, group: Group, precision: ChosenPrecision, latest: Path | None, log: TrainingLog, notes: list[str]
) -> nn.Module:
    """The network on its device, not wrapped. A new run has random weights, or those of ``recipe.init``."""
    torch.manual_seed(recipe.seed)
    model = build_within_memory(
        lambda: recipe.model.build(recipe.input), on_cpu=group.device.type == "cpu", report=log.info
    )
    refuse_unusable_network(model)
    refuse_unsupported(model, precision.dtype, group.device)
    refuse_different_processes(recipe, model, "" if latest is None else latest.name, group)
    if recipe.init is not None and latest is None:
        classes = shared_classes(recipe.init, recipe.model, recipe.input)
        loaded = load_initial_weights(model, recipe.init, classes)
        notes.append(f"{recipe.init}: {loaded.summary()}")
        notes.extend(filter(None, [new_classes(recipe.init, recipe.input, by_name=bool(loaded.by_class))]))
    model = model.to(group.device)
    widen_small_convolutions(model, precision.dtype, group.device)
    if recipe.compile:
        compile_in_place(recipe.model, model)
        notes.append("torch.compile compiles the network during the first steps")
    return model


def _build_optimizer(recipe: Recipe, model: nn.Module, order: Order) -> tuple[Optimizer, LRScheduler]:
    try:
        optimizer = recipe.optimizer.build(model)
        refuse_other_type("optimizer", optimizer, Optimizer)
        schedule = recipe.schedule.build(optimizer, order.steps_per_epoch)
    except ValueError as error:
        raise InvalidInputError(f"the recipe's optimizer or schedule cannot be built: {error}") from error
    refuse_other_type("schedule", schedule, LRScheduler)
    if isinstance(schedule, ReduceLROnPlateau):
        raise InvalidInputError("ReduceLROnPlateau is stepped with a score; use a schedule that is stepped without one")
    return optimizer, schedule


def _restore(training: Training, latest: Path, notes: list[str]) -> None:
    """Restores the state after the last step of the checkpoint ``latest``, on this device."""
    begun, checkpoints = training.progress, training.checkpoints
    training.progress = checkpoints.load(latest, training.state)
    notes.append(f"resumed from {latest.name}, of {training.total_steps} steps")
    _restore_process_state(training.strategy, checkpoints, latest, training.group, notes)
    notes.extend(filter(None, [resume_micro_batch(training)]))
    if training.progress.samples != begun.samples:
        raise InvalidInputError(
            f"{training.run.path} was started on {training.progress.samples} training samples, and the data set now "
            f"has {begun.samples}; name a new run"
        )
    training.progress.device, training.progress.precision = begun.device, begun.precision


def _refuse_faulty_input(training: Training) -> None:
    """Tries a few samples and an evaluation before the first step. Raises ``InvalidInputError`` if the run would fail.

    A run that was evaluated before is not evaluated again.
    """
    step, loader, limits = training.progress.step, training.loader, training.recipe.limits
    if step < training.total_steps:
        key, first_samples = training.order.key(step), training.order.indices(step)[:2].copy()
        refuse_impure_batches(loader.dataset, loader.indices(step)[0][:4], key)
        refuse_different_data(loader.dataset, first_samples, key, training.group)
    if not training.progress.history:
        model, task, group = training.model, training.task, training.group
        batch = training.evaluation_batch
        with training.strategy.whole():
            refuse_unknown_monitor(limits.monitor, model, task, training.validation, batch, group, training.dtype)
        refuse_late_parameters(model, training.parameters)


def _choose_run_precision(recipe: Recipe, latest: Path | None, group: Group) -> ChosenPrecision:
    """The number format on all processes: the format of the resumed run, else the choice for the leader's device."""
    begun = "" if latest is None else read_progress(latest).precision
    own_choice = choose_precision(recipe.precision, group.device, begun)
    return choose_precision(recipe.precision, group.device, group.gather(own_choice.name)[0])


def _restore_process_state(
    strategy: Strategy, checkpoints: Checkpoints, latest: Path, group: Group, notes: list[str]
) -> None:
    """Restores the state of each process if the checkpoint has it for the same layout of processes."""
    if not isinstance(strategy, PerProcessState) or (layout := strategy.own_layout()) is None:
        return
    saved = checkpoints.load_process_state(latest)
    if not group.any(saved is None or saved["layout"] != layout):
        strategy.load_own_state(saved["state"])
        return
    reason = "the checkpoint has none" if saved is None else "; ".join(differences(layout, saved["layout"]))
    reason = reason or "another process finds none"
    notes.append(
        f"the {layout['compression']} compression starts without its saved errors ({reason}): the run continues, but "
        "its results are not exactly those of an uninterrupted run"
    )


def _claim_directory(run: Run, recipe: Recipe, group: Group, stack: ExitStack) -> None:
    """The leader locks the run's directory and writes its recipe; if it refuses, every process raises the error."""
    problem = None
    if group.leader:
        try:
            stack.enter_context(run.claimed())
            if not run.recipe_file.exists():
                save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        except InvalidInputError as error:
            problem = str(error)
    if (leader_problem := group.gather(problem)[0]) is not None:
        raise InvalidInputError(leader_problem)


def _describe_long_warm_up(recipe: Recipe, total_steps: int) -> str | None:
    """A message if the warm-up takes more than ``_MAX_WARM_UP_FRACTION`` of the run's steps; None otherwise.

    The warm-up is reported but not shortened: a run that is extended later must equal a run that had this length from
    its first step.
    """
    warmup = getattr(recipe.schedule, "warmup_steps", 0)
    if warmup <= _MAX_WARM_UP_FRACTION * total_steps:
        return None
    effect = (
        "the learning rate never reaches its maximum"
        if warmup >= total_steps
        else f"it takes {warmup / total_steps:.0%} of them"
    )
    remedy = f"; --schedule.warmup-steps {total_steps // 10} would be a tenth"
    return f"schedule.warmup_steps is {warmup} and the run has {total_steps} steps: {effect}{remedy}"


def _build_order(recipe: Recipe, samples: int, notes: list[str]) -> Order:
    batch = recipe.limits.batch
    if samples < 1:
        raise InvalidInputError("the training data has no samples")
    if callable(order := getattr(recipe.data, "order", None)):
        custom_order: Order = order(recipe.seed, batch)
        return custom_order
    if batch > samples:
        notes.append(f"limits.batch is {batch}, but there are only {samples} samples: the batch is {samples}")
    return Permutation(seed=recipe.seed, length=samples, batch=batch)
