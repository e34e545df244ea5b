"""Everything that a run needs before its first step: built, restored and looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from shared.comms.group import Group
from shared.comms.timing import CommunicationTimer
from shared.data.dataset import Dataset
from shared.data.loader import Loader
from shared.data.order import Order, Permutation
from shared.engine.checkpoint import Checkpoints, Progress, Stateful, read_progress
from shared.engine.checks import refuse_different_processes, refuse_impure_batches
from shared.engine.compilation import compile_in_place
from shared.engine.divergence import FiniteGuard
from shared.engine.ema import ExponentialMovingAverage
from shared.engine.evaluate import refuse_unknown_monitor
from shared.engine.host_memory import keep_freed_memory
from shared.engine.initial_weights import load_initial_weights, new_classes, shared_classes
from shared.engine.network_size import build_within_memory
from shared.engine.out_of_memory import BufferSnapshot, resume_micro_batch
from shared.engine.run import Run
from shared.engine.task import Counted, Prepared, Task
from shared.engine.training_log import TrainingLog
from shared.errors import InvalidInputError
from shared.observe.events import Events
from shared.precision import ChosenPrecision, choose_precision, refuse_unsupported, widen_small_convolutions
from shared.recipe import Recipe, resolve
from shared.recipe_file import (
    HOW_COMPUTED,
    class_name,
    component_classes,
    differences,
    digest,
    read_recipe_file,
    save_recipe,
    settings_beside,
)
from shared.strategy import OwnState, Strategy

_LONGEST_WARM_UP = 0.3
"""The part of a run that may warm up unremarked, as in torch's ``OneCycleLR`` (its ``pct_start``)."""


@dataclass(slots=True)
class Training:
    """A run while it goes on.

    ``counted`` is the task where it is to tell the weights of its losses before the forward pass, which only
    micro-batches need; ``trained`` is ``model`` as the strategy wraps it, ``total`` the steps of the run.
    """

    recipe: Recipe
    run: Run
    group: Group
    task: Task
    counted: Counted | None
    model: nn.Module
    trained: nn.Module
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
    total: int
    log: TrainingLog
    events: Events
    timer: CommunicationTimer

    @property
    def evaluation_batch(self) -> int:
        limits = self.recipe.limits
        return limits.evaluation_batch or self.loader.micro_batch or limits.batch

    @property
    def validate_every(self) -> int:
        """How many steps lie between two evaluations."""
        return self.recipe.limits.validate_every or self.order.steps_per_epoch

    @property
    def state(self) -> Mapping[str, Stateful]:
        """What a checkpoint keeps."""
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        parts |= {"schedule": self.schedule, "scaler": self.scaler}
        return parts if self.ema is None else parts | {"ema": self.ema}

    @property
    def own_state(self) -> dict[str, Any] | None:
        """What this process keeps for itself in a checkpoint, where the strategy has such a state."""
        strategy = self.strategy
        if not isinstance(strategy, OwnState) or (layout := strategy.own_layout()) is None:
            return None
        return {"layout": layout, "state": strategy.own_state()}


def set_up(recipe: Recipe, run: Run, group: Group, stack: ExitStack, *, quiet: bool) -> Training:
    """Builds the run, restores it from its newest checkpoint, and refuses what would go wrong later.

    What must be closed at the end goes onto ``stack``.
    """
    recipe = resolve(recipe)
    limits = recipe.limits
    log = stack.enter_context(TrainingLog(f"{run.app} {run.recipe_name}", enabled=group.leader and not quiet))
    _claim(run, recipe, group, stack)
    if group.device.type == "cpu":
        stack.enter_context(keep_freed_memory())
    notes: list[str] = []
    checkpoints = Checkpoints(run.checkpoints, recipe_digest=digest(recipe), keep=limits.keep, group=group)
    latest = _newest(checkpoints, run, recipe, notes)
    chosen = _precision(recipe, latest, group)
    notes.insert(0, f"on {group.name}, {chosen.reason}")

    torch.manual_seed(recipe.seed)
    model = build_within_memory(
        lambda: recipe.model.build(recipe.input), on_cpu=group.device.type == "cpu", say=log.say
    )
    refuse_unsupported(model, chosen.dtype, group.device)
    refuse_different_processes(recipe, model, "" if latest is None else latest.name, group)
    if recipe.init is not None and latest is None:
        classes = shared_classes(recipe.init, recipe.model, recipe.input)
        loaded = load_initial_weights(model, recipe.init, classes)
        notes.append(f"{recipe.init}: {loaded.summary()}")
        notes.extend(filter(None, [new_classes(recipe.init, recipe.input, by_name=bool(loaded.by_class))]))
    model = model.to(group.device)
    widen_small_convolutions(model, chosen.dtype, group.device)
    if recipe.compile:
        compile_in_place(recipe.model, model)
        notes.append("compiled by torch.compile, at the first steps")
    task = recipe.task.build()
    unused = bool(getattr(task, "leaves_parameters_unused", False))
    strategy = recipe.strategy.build(group, find_unused_parameters=unused)
    if isinstance(task, Prepared):
        task.prepare(model)
    trained = strategy.wrap(model)
    train, validation = recipe.data.train(recipe.input), recipe.data.validation(recipe.input)
    order = _order(recipe, len(train), notes)
    loader = Loader(
        train,
        order,
        device=group.device,
        rank=group.rank,
        world=group.world,
        micro_batch=limits.micro_batch,
        threads=limits.loader_threads,
    )
    try:
        optimizer = recipe.optimizer.build(model)
        schedule = recipe.schedule.build(optimizer, order.steps_per_epoch)
    except ValueError as error:
        raise InvalidInputError(f"the recipe's optimizer or schedule cannot be built: {error}") from error

    total = limits.steps if limits.steps is not None else limits.epochs * order.steps_per_epoch
    notes.extend(filter(None, [_long_warm_up(recipe, total)]))
    counts = {"training samples": len(train), "steps": total, "validation samples": len(validation)}
    group.refuse_differences({f"the number of {name}": count for name, count in counts.items()})
    training = Training(
        recipe=recipe,
        run=run,
        group=group,
        task=task,
        counted=task if isinstance(task, Counted) and limits.micro_batch is not None else None,
        model=model,
        trained=trained,
        parameters=list(model.parameters()),
        buffers=BufferSnapshot(model),
        strategy=strategy,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(group.device.type, enabled=chosen.dtype == torch.float16),
        ema=None if recipe.ema_decay is None else ExponentialMovingAverage(model, recipe.ema_decay),
        dtype=chosen.dtype,
        order=order,
        loader=loader,
        validation=validation,
        checkpoints=checkpoints,
        progress=Progress(samples=len(train)),
        guard=FiniteGuard(group.device),
        total=total,
        log=log,
        events=Events(None),
        timer=CommunicationTimer(group, sample_every=limits.log_every),
    )
    if latest is not None:
        training.progress = checkpoints.load(latest, training.state)
        notes.append(f"going on from {latest.name}, of {total} steps")
        _restore_own_state(strategy, checkpoints, latest, group, notes)
        notes.extend(filter(None, [resume_micro_batch(training)]))
    progress = training.progress
    if progress.samples != len(train):
        raise InvalidInputError(
            f"{run.path} began with {progress.samples} samples and there are {len(train)}; name a new run"
        )
    progress.device, progress.precision = group.name, chosen.name
    if progress.step < training.total:
        few = loader.indices(progress.step)[0][:4]
        refuse_impure_batches(train, few, order.key(progress.step))
    if not progress.history:
        names = (limits.monitor, model, task, validation, training.evaluation_batch, group, chosen.dtype)
        with strategy.whole():
            refuse_unknown_monitor(*names)
    if group.leader:
        digest_of_run = checkpoints.recipe_digest
        save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name, begun_under=digest_of_run)
    training.events = stack.enter_context(Events(run.path if group.leader else None, progress.step))
    training.events.write("begin", progress.step, world=group.world, device=group.name, samples=len(train), notes=notes)
    for note in notes:
        log.say(note)
    log.begin(training.total, progress.step, progress.seconds, order.steps_per_epoch)
    return training


def _precision(recipe: Recipe, latest: Path | None, group: Group) -> ChosenPrecision:
    """The format of every process: that in which the run began, else what is chosen for the leader's device."""
    begun = "" if latest is None else read_progress(latest).precision
    here = choose_precision(recipe.precision, group.device, begun)
    return choose_precision(recipe.precision, group.device, group.gather(here.name)[0])


def _restore_own_state(
    strategy: Strategy, checkpoints: Checkpoints, latest: Path, group: Group, notes: list[str]
) -> None:
    """Restores what each process keeps for itself where the checkpoint has it for the same processes."""
    if not isinstance(strategy, OwnState) or (layout := strategy.own_layout()) is None:
        return
    kept = checkpoints.load_own(latest)
    if not group.any(kept is None or kept["layout"] != layout):
        strategy.load_own_state(kept["state"])
        return
    changed = "the checkpoint has none" if kept is None else "; ".join(differences(layout, kept["layout"]))
    changed = changed or "another process finds none"
    notes.append(
        f"the {layout['compression']} compression starts anew, without the errors that it kept ({changed}): the run "
        "goes on, and is not exactly the one that was interrupted"
    )


def _claim(run: Run, recipe: Recipe, group: Group, stack: ExitStack) -> None:
    """The leader holds the run's directory and writes its recipe; where it refuses, every process does."""
    refused = None
    if group.leader:
        try:
            stack.enter_context(run.claimed())
            if not run.recipe_file.exists():
                save_recipe(run.recipe_file, recipe, app=run.app, name=run.recipe_name)
        except InvalidInputError as error:
            refused = str(error)
    if (told := group.gather(refused)[0]) is not None:
        raise InvalidInputError(told)


def _long_warm_up(recipe: Recipe, total: int) -> str | None:
    """A sentence on a warm-up that takes more of the run's steps than ``_LONGEST_WARM_UP``; None otherwise.

    It is told and not shortened: a run may be lengthened, and is then what it would have been at that length from the
    first step on.
    """
    warmup = getattr(recipe.schedule, "warmup_steps", 0)
    if warmup <= _LONGEST_WARM_UP * total:
        return None
    much = "the learning rate never reaches its full height" if warmup >= total else f"{warmup / total:.0%} of them"
    fewer = f"; --schedule.warmup-steps {total // 10} is a tenth"
    return f"schedule.warmup_steps is {warmup} and the run has {total} steps: {much}{fewer}"


def _newest(checkpoints: Checkpoints, run: Run, recipe: Recipe, notes: list[str]) -> Path | None:
    """The checkpoint to go on from. Refuses to start over where all are torn, and to go on with another recipe."""
    latest, torn = checkpoints.newest()
    names = ", ".join(path.name for path in torn)
    if latest is None:
        if torn:
            raise InvalidInputError(
                f"no checkpoint of {run.path} is whole ({names}): restore one of them, or name a new run; this one is "
                "not started over"
            )
        if run.events_file.exists():
            notes.append(f"{run.path} holds no checkpoint: it begins again with its first step")
        return None
    document = read_recipe_file(run.recipe_file)
    settings = settings_beside(recipe, document["recipe"])
    classes = {path: name for path, name in component_classes(recipe).items() if _holds(settings, path)}
    found = [
        *differences(settings, document["recipe"]),
        *differences(_names(classes), _names(document.get("classes", {}))),
    ]
    found = [phrase for phrase in found if not phrase.startswith(HOW_COMPUTED)]
    if not found:
        # By the digest that the run was begun under: settings that came since are not in it.
        checkpoints.recipe_digest = document.get("digest", checkpoints.recipe_digest)
    elif document.get("digest") != checkpoints.recipe_digest:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise InvalidInputError(
            f"{run.path} was begun by another recipe: {'; '.join(found[:5])}{more}; go on with its own settings "
            f"(--recipe {run.recipe_file}), or name a new run, which --init {run.path} starts from its weights"
        )
    if torn:
        notes.append(f"{names} is torn or was altered, and is passed over")
    return latest


def _holds(settings: Any, path: str) -> bool:
    for name in filter(None, path.split(".")):
        if not isinstance(settings, Mapping) or name not in settings:
            return False
        settings = settings[name]
    return True


def _names(classes: Mapping[str, str]) -> dict[str, str]:
    return {path or "recipe": class_name(name) for path, name in classes.items()}


def _order(recipe: Recipe, samples: int, notes: list[str]) -> Order:
    batch = recipe.limits.batch
    if samples < 1:
        raise InvalidInputError("the training data has no samples")
    if callable(order := getattr(recipe.data, "order", None)):
        made: Order = order(recipe.seed, batch)
        return made
    if batch > samples:
        notes.append(f"limits.batch is {batch} and there are {samples} samples: the batch is {samples}")
    return Permutation(seed=recipe.seed, length=samples, batch=batch)
