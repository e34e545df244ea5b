"""Findings of a CT beside those of an earlier one of the same patient: which are the same, and what became of them.

Growth is that of Lung-RADS v2022 (ACR): the mean diameter is more than 1.5 mm larger. The doubling time of the volume
is that of Schwartz, Cancer 14, 1961: days times ln 2 / ln (volume / earlier volume). A change of less than a quarter of
the volume is taken for that of measuring (British Thoracic Society, Thorax 70 Suppl. 2, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from apps.medical.inference.registration import Alignment
from apps.medical.types import Float64

GROWTH_MM = 1.5
GROWTH_VOLUME = 1.25
NEAR_MM = 10.0
"""What lies so near to a finding of the earlier scan, or within its radius, may be the same: alignment is not exact."""

SIZE_MM = 5.0
"""A pair whose diameters differ by a factor of e is as unlikely as one that lies so much further apart."""

Change = Literal["new", "larger", "smaller", "stable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sized:
    """A finding of either scan: ``volume_mm3`` is None where nothing could be measured.

    ``is_above`` says whether its score reaches the operating score.
    """

    rank: int
    centre_lps_mm: tuple[float, float, float]
    mean_diameter_mm: float
    volume_mm3: float | None
    is_above: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A finding, the place where it lies or would lie in the earlier scan, and what it was there.

    ``distance_mm`` is how far the earlier finding lies from that place.
    """

    finding: Sized
    place_lps_mm: tuple[float, float, float]
    earlier: Sized | None = None
    distance_mm: float | None = None

    @property
    def change(self) -> Change:
        """``new`` is what has no counterpart among the listed findings of the earlier scan."""
        if self.earlier is None:
            return "new"
        grown = self.finding.mean_diameter_mm - self.earlier.mean_diameter_mm
        return "larger" if grown > GROWTH_MM else "smaller" if grown < -GROWTH_MM else "stable"

    @property
    def volume_ratio(self) -> float | None:
        """Of the volumes; None where one is missing."""
        if self.earlier is None or not self.finding.volume_mm3 or not self.earlier.volume_mm3:
            return None
        return self.finding.volume_mm3 / self.earlier.volume_mm3

    def doubling_days(self, days: float) -> float | None:
        """The days in which the volume doubles at this rate; None where it is not known to have grown."""
        ratio = self.volume_ratio
        return days * math.log(2) / math.log(ratio) if ratio is not None and ratio >= GROWTH_VOLUME else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """A finding of the earlier scan without a counterpart, and the place where it would lie in the later one."""

    earlier: Sized
    place_lps_mm: tuple[float, float, float]


def follow(
    findings: Sequence[Sized], earlier: Sequence[Sized], alignment: Alignment
) -> tuple[list[Followed], list[Gone]]:
    """What became of each of ``findings``, in their order, and which of ``earlier`` are not among them.

    ``alignment`` moves places of the later scan into the earlier one. The pairs are those of the least distances in
    all, of alike sizes first.
    """
    places = alignment.moved([one.centre_lps_mm for one in findings])
    pairs, distances = _pairs(places, findings, earlier)
    followed = [
        Followed(
            finding=finding,
            place_lps_mm=_three(place),
            earlier=earlier[pairs[n]] if n in pairs else None,
            distance_mm=float(distances[n, pairs[n]]) if n in pairs else None,
        )
        for n, (finding, place) in enumerate(zip(findings, places, strict=True))
    ]
    left = [one for n, one in enumerate(earlier) if n not in pairs.values()]
    back = alignment.moved_back([one.centre_lps_mm for one in left])
    return followed, [Gone(earlier=one, place_lps_mm=_three(place)) for one, place in zip(left, back, strict=True)]


def _pairs(places: Float64, findings: Sequence[Sized], earlier: Sequence[Sized]) -> tuple[dict[int, int], Float64]:
    """Which of the earlier findings each of ``findings`` is, and the distances (n, m) in mm."""
    centres = np.array([one.centre_lps_mm for one in earlier], np.float64).reshape(-1, 3)
    distances = np.linalg.norm(places[:, None] - centres, axis=2)
    sizes, earlier_sizes = (np.array([one.mean_diameter_mm for one in of], np.float64) for of in (findings, earlier))
    cost = distances + SIZE_MM * np.abs(np.log(sizes[:, None] / earlier_sizes))
    reach = np.maximum(NEAR_MM, np.maximum(sizes[:, None], earlier_sizes) / 2)
    allowed = distances <= reach
    # What may not be a pair costs more than all pairs that may.
    rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
    return {int(n): int(m) for n, m in zip(rows, columns, strict=True) if allowed[n, m]}, np.asarray(distances)


def _three(place: Float64) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in place)
    return x, y, z
