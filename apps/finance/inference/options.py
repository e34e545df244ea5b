"""The options that say how many events a user wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.finance.inference.conformal import Budget
from apps.finance.inference.scoring import Calibration
from apps.finance.types import Series
from shared.errors import InvalidInputError

MAX_EVENTS_PER_1000_ROWS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How many events are wanted; if all are None, the model's own budget applies.

    ``events_per_1000_rows`` and ``events_per_day`` are met by an adaptive threshold. ``threshold``, in (0, 1], is a
    fixed threshold, however many events it yields. At most one of the three may be given. Raises InvalidInputError
    otherwise, and for values out of range.
    """

    threshold: float | None = None
    events_per_1000_rows: float | None = None
    events_per_day: float | None = None

    def __post_init__(self) -> None:
        names = ("events_per_day", "events_per_1000_rows", "threshold")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            first, second, *_ = given
            raise InvalidInputError(f"{first} and {second} both say how many events are wanted; give one of them")
        for name, value in given.items():
            if not isinstance(value, int | float):
                raise InvalidInputError(f"{name} is {value!r}, not a number; give a number such as 0.5")
            if name == "threshold" and not 0 < value <= 1:
                raise InvalidInputError(f"the threshold {value:g} is out of range; give a number above 0 and at most 1")
            if name != "threshold" and not 0 < value < float("inf"):
                raise InvalidInputError(f"{name} is {value:g}; give a number above 0, such as 0.5")

    def budget(self, calibration: Calibration) -> Budget:
        """The requested budget, or the calibration's default."""
        if self.events_per_1000_rows is None and self.events_per_day is None:
            return calibration.budget()
        return Budget(per_1000_rows=self.events_per_1000_rows, per_day=self.events_per_day)

    def refuse_too_many_events(self, series: Sequence[Series]) -> None:
        """Raises InvalidInputError if more than 10 events in 1,000 rows of one of ``series`` are requested."""
        if self.events_per_day is None and self.events_per_1000_rows is None:
            return
        budget = Budget(per_1000_rows=self.events_per_1000_rows, per_day=self.events_per_day)
        rate = max((budget.rate(item) for item in series), default=0.0)
        if rate > MAX_EVENTS_PER_1000_ROWS * (1 + 1e-9):
            most = f"{MAX_EVENTS_PER_1000_ROWS:g} events in 1,000 rows"
            if self.events_per_day is not None:
                most += f", here {self.events_per_day * MAX_EVENTS_PER_1000_ROWS / rate:.2g} a day"
            raise InvalidInputError(f"this budget is one event every {1000 / rate:.3g} rows; ask for at most {most}")
