"""Which evaluation of a run is the best, and whether it is time to stop: pure functions of the run's history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import InvalidInputError
from shared.recipe import Limits

Entry = dict[str, float]
"""One evaluation: ``step``, and the scores by name."""


@dataclass(frozen=True, slots=True)
class EarlyStoppingState:
    """``best_step`` is that of the best evaluation, 0 where there is none.

    ``stale`` counts the evaluations since the last that was better than those before by more than ``min_delta``.
    """

    best_step: int
    stale: int


def early_stopping_state(history: Sequence[Entry], limits: Limits) -> EarlyStoppingState:
    """Where a run stands. Scores that are not finite are never the best."""
    sign = 1 if limits.mode == "min" else -1
    best_step, best, reference, stale = 0, math.inf, math.inf, 0
    for entry in history:
        if limits.monitor not in entry:
            raise InvalidInputError(
                f"limits.monitor is {limits.monitor!r}, and the task scores {', '.join(sorted(entry))}"
            )
        value = sign * entry[limits.monitor]
        if value < best:
            best_step, best = int(entry["step"]), value
        if reference - value > limits.min_delta:
            reference, stale = value, 0
        else:
            stale += 1
    return EarlyStoppingState(best_step, stale)


def scheduled_entries(history: Sequence[Entry], every: int) -> list[Entry]:
    """The evaluations that a run would have made without having been stopped: ``every`` so many steps it makes one.

    Where it was stopped between two of them, the last is one more.
    """
    stopped_between = bool(history) and history[-1]["step"] % every != 0
    return list(history[:-1] if stopped_between else history)


def stop_reason(history: Sequence[Entry], limits: Limits, *, late: bool) -> str | None:
    """Why a run that has been evaluated goes no further, or None where it goes on. ``late``: its minutes are over."""
    if late and history:
        return "minutes"
    return "early" if early_stopping_state(history, limits).stale >= limits.patience else None


def explain_stop(reason: str, limits: Limits) -> str:
    """In words why a run ended (``Result.reason``), and with which setting the same command goes on."""
    if reason == "early":
        times = "1 evaluation" if limits.patience == 1 else f"{limits.patience} evaluations"
        return (
            f"{limits.monitor} has not improved by {limits.min_delta:g} in {times}; a larger --limits.patience or a "
            "smaller --limits.min-delta goes on"
        )
    if reason == "minutes":
        return f"its {limits.minutes:g} minutes are over; more --limits.minutes goes on"
    return f"its --limits.{reason} {getattr(limits, reason)} are done; more goes on from here"
