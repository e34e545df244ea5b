"""The best evaluation of a run, and when to stop: pure functions of the run's history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import InvalidInputError
from shared.recipe import Limits

Entry = dict[str, float]
"""The result of one evaluation: ``step``, and the scores by name."""


@dataclass(frozen=True, slots=True)
class EarlyStoppingState:
    """``best_step`` is the step of the best evaluation, 0 if there is none.

    ``stale`` counts the evaluations since the score last improved by more than ``min_delta``.
    """

    best_step: int
    stale: int


def early_stopping_state(history: Sequence[Entry], limits: Limits) -> EarlyStoppingState:
    """The best step and the number of evaluations without improvement. A score that is not finite is never the best."""
    sign = 1 if limits.mode == "min" else -1
    best_step, best, reference, stale = 0, math.inf, math.inf, 0
    for entry in history:
        if limits.monitor not in entry:
            names = ", ".join(sorted(entry.keys() - {"step"})) or "empty"
            raise InvalidInputError(f"limits.monitor is {limits.monitor!r}, but the task's scores are {names}")
        value = sign * entry[limits.monitor]
        if value < best:
            best_step, best = int(entry["step"]), value
        if reference - value > limits.min_delta:
            reference, stale = value, 0
        else:
            stale += 1
    return EarlyStoppingState(best_step, stale)


def scheduled_entries(history: Sequence[Entry], every: int) -> list[Entry]:
    """The evaluations at multiples of ``every`` steps, which an uninterrupted run makes as well.

    If the run was stopped between two of them, its last evaluation is an extra one and is left out.
    """
    has_extra = bool(history) and history[-1]["step"] % every != 0
    return list(history[:-1] if has_extra else history)


def stop_reason(history: Sequence[Entry], limits: Limits, *, out_of_time: bool) -> str | None:
    """Why the run stops after an evaluation, or None if it continues. ``out_of_time``: ``limits.minutes`` are over."""
    if out_of_time and history:
        return "minutes"
    return "early" if early_stopping_state(history, limits).stale >= limits.patience else None


def explain_stop(reason: str, limits: Limits) -> str:
    """A message that says why a run ended (``Result.reason``) and which setting lets the same command continue."""
    if reason == "early":
        evaluations = "1 evaluation" if limits.patience == 1 else f"{limits.patience} evaluations"
        return (
            f"{limits.monitor} has not improved by {limits.min_delta:g} in {evaluations}; to continue, raise "
            "--limits.patience or lower --limits.min-delta"
        )
    if reason == "minutes":
        return f"the time limit of {limits.minutes:g} minutes is over; to continue, raise --limits.minutes"
    return f"--limits.{reason} {getattr(limits, reason)} is reached; to continue, raise it"
