"""How many events a user wants."""

from __future__ import annotations

from dataclasses import dataclass

from apps.finance.inference.conformal import Budget
from apps.finance.inference.scoring import Calibration
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How many events are wanted; all None for the model's own budget.

    ``events_per_1000_rows`` or ``events_per_day`` is kept to by a threshold that follows the series. ``threshold``, in
    (0, 1], is one that stays, whatever number of events that makes. Only one of them may be given.
    """

    threshold: float | None = None
    events_per_1000_rows: float | None = None
    events_per_day: float | None = None

    def __post_init__(self) -> None:
        names = ("events_per_day", "events_per_1000_rows", "threshold")
        said = {name: value for name in names if (value := getattr(self, name)) is not None}
        if len(said) > 1:
            first, second, *_ = said
            raise InvalidInputError(f"{first} and {second} both say how many events are wanted; give one of them")
        for name, value in said.items():
            if not isinstance(value, int | float):
                raise InvalidInputError(f"{name} is {value!r}, and no number; give one such as 0.5")
            if name == "threshold" and not 0 < value <= 1:
                raise InvalidInputError(f"the threshold {value:g} is not above 0 and at most 1")
            if name != "threshold" and not 0 < value < float("inf"):
                raise InvalidInputError(f"{name} is {value:g}; give a number above 0, such as 0.5")

    def budget(self, calibration: Calibration) -> Budget:
        """The budget that is asked for, or the calibration's."""
        if self.events_per_1000_rows is None and self.events_per_day is None:
            return calibration.budget()
        return Budget(per_1000_rows=self.events_per_1000_rows, per_day=self.events_per_day)
