"""Scores that are means over samples: the ``Scores`` of a task that needs no others."""

from __future__ import annotations

from typing import Any

import torch


class MeanScores:
    """The mean of each named value over an evaluation, on any number of processes.

    ``Task.scores`` returns a new one, ``Task.evaluate`` calls ``add``. ``limits.monitor`` names one of the values.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, **values: Any) -> None:
        """Adds the elements of a tensor or array per name, such as the loss or the correctness of each sample."""
        for name, value in values.items():
            elements = torch.as_tensor(value)
            self._add(name, float(elements.sum(dtype=torch.float64)), elements.numel())

    def merge(self, other: MeanScores) -> None:
        for name, (total, number) in other._sums.items():
            self._add(name, total, number)

    def summary(self) -> dict[str, float]:
        return {name: total / number for name, (total, number) in self._sums.items() if number}

    def _add(self, name: str, total: float, number: int) -> None:
        old_total, old_number = self._sums.get(name, (0.0, 0))
        self._sums[name] = (old_total + total, old_number + number)
