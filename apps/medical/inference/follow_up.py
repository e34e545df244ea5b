"""Matches the findings of a CT to those of an earlier CT of the same patient, and computes their growth.

Growth is defined as in Lung-RADS v2022 (ACR): the mean diameter has increased by more than 1.5 mm. The volume doubling
time is that of Schwartz, Cancer 14, 1961: days times ln 2 / ln (volume / earlier volume). A change of less than a
quarter of the volume counts as measurement error (British Thoracic Society, Thorax 70 Suppl. 2, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from apps.medical.inference.registration import Alignment
from apps.medical.types import Float64, triple

GROWTH_MM = 1.5
GROWTH_VOLUME_RATIO = 1.25
MAX_DISTANCE_MM = 10.0
"""Findings may match up to this distance, or up to the radius of the larger one, since the alignment is not exact."""

SIZE_COST_MM = 5.0
"""A diameter ratio of e costs a pair as much as this distance."""

Change = Literal["new", "larger", "smaller", "stable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredFinding:
    """A finding of either scan. ``volume_mm3`` is None if it could not be measured.

    ``is_above`` is whether its score reaches the operating score.
    """

    rank: int
    centre_lps_mm: tuple[float, float, float]
    mean_diameter_mm: float
    volume_mm3: float | None
    is_above: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedFinding:
    """A finding, its position in the earlier scan, and the earlier finding that it matches.

    ``distance_mm`` is the distance of the earlier finding from that position.
    """

    finding: MeasuredFinding
    place_lps_mm: tuple[float, float, float]
    earlier: MeasuredFinding | None = None
    distance_mm: float | None = None

    @property
    def change(self) -> Change:
        """The change since the earlier scan: ``new`` if it lists no matching finding."""
        if self.earlier is None:
            return "new"
        growth = self.finding.mean_diameter_mm - self.earlier.mean_diameter_mm
        return "larger" if growth > GROWTH_MM else "smaller" if growth < -GROWTH_MM else "stable"

    @property
    def volume_ratio(self) -> float | None:
        """Volume divided by earlier volume; None if either is missing."""
        if self.earlier is None or not self.finding.volume_mm3 or not self.earlier.volume_mm3:
            return None
        return self.finding.volume_mm3 / self.earlier.volume_mm3

    def doubling_days(self, days: float) -> float | None:
        """The volume doubling time in days; None if no growth of the volume was measured."""
        ratio = self.volume_ratio
        return days * math.log(2) / math.log(ratio) if ratio is not None and ratio >= GROWTH_VOLUME_RATIO else None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmatchedFinding:
    """A finding of the earlier scan without a match, and its position in the later scan."""

    earlier: MeasuredFinding
    place_lps_mm: tuple[float, float, float]


def match_findings(
    findings: Sequence[MeasuredFinding], earlier: Sequence[MeasuredFinding], alignment: Alignment
) -> tuple[list[MatchedFinding], list[UnmatchedFinding]]:
    """Matches ``findings`` to ``earlier``: each of ``findings`` in order, and those of ``earlier`` without a match.

    ``alignment`` maps points of the later scan to the earlier one. The matching minimises the total cost, which
    is the distance plus a cost for different sizes.
    """
    positions = alignment.transform_points([finding.centre_lps_mm for finding in findings])
    pairs, distances = _match(positions, findings, earlier)
    followed = [
        MatchedFinding(
            finding=finding,
            place_lps_mm=triple(position.tolist()),
            earlier=earlier[pairs[n]] if n in pairs else None,
            distance_mm=float(distances[n, pairs[n]]) if n in pairs else None,
        )
        for n, (finding, position) in enumerate(zip(findings, positions, strict=True))
    ]
    unmatched = [finding for n, finding in enumerate(earlier) if n not in pairs.values()]
    later_positions = alignment.inverse_transform_points([finding.centre_lps_mm for finding in unmatched])
    return followed, [
        UnmatchedFinding(earlier=finding, place_lps_mm=triple(position.tolist()))
        for finding, position in zip(unmatched, later_positions, strict=True)
    ]


def _match(
    positions: Float64, findings: Sequence[MeasuredFinding], earlier: Sequence[MeasuredFinding]
) -> tuple[dict[int, int], Float64]:
    """Indices of the matching earlier findings by index in ``findings``, and all distances (N, M) in mm."""
    centres = np.array([finding.centre_lps_mm for finding in earlier], np.float64).reshape(-1, 3)
    distances = np.linalg.norm(positions[:, None] - centres, axis=2)
    sizes, earlier_sizes = (
        np.array([finding.mean_diameter_mm for finding in of], np.float64) for of in (findings, earlier)
    )
    cost = distances + SIZE_COST_MM * np.abs(np.log(sizes[:, None] / earlier_sizes))
    max_distances = np.maximum(MAX_DISTANCE_MM, np.maximum(sizes[:, None], earlier_sizes) / 2)
    allowed = distances <= max_distances
    # A forbidden pair costs more than all allowed pairs together.
    rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
    return {int(n): int(m) for n, m in zip(rows, columns, strict=True) if allowed[n, m]}, np.asarray(distances)
