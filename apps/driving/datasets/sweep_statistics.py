"""Compares real with synthetic sweeps: ``python -m apps.driving.datasets.sweep_statistics VELODYNE_DIR``.

Prints the mean, minimum and maximum over the sweeps of statistics that distinguish the two: returns by range, their
heights, and pillars of 0.32 m: their number, how far their points reach up, and the roughness of flat ones. Uses the
front half of the sweep, like the networks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from apps.driving.adapters.point_files import read_points
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.types import Floats
from shared.errors import InvalidInputError

RANGES_M = (0, 10, 20, 30, 45, 70)
SCENES = 60
_SIDE_M = 0.32


def statistics(points_N4: Floats) -> dict[str, float]:
    """The statistics of one sweep by name."""
    ahead = points_N4[points_N4[:, 0] > 0].astype(np.float64)
    range_m = np.hypot(ahead[:, 0], ahead[:, 1])
    found = {"returns": float(len(ahead))}
    cell = np.floor(ahead[:, :2] / _SIDE_M).astype(np.int64)
    order = np.argsort(cell[:, 0] * 100_000 + cell[:, 1], kind="stable")
    key = (cell[:, 0] * 100_000 + cell[:, 1])[order]
    z, range_m = ahead[order, 2], range_m[order]
    start = np.nonzero(np.diff(key, prepend=key[:1] - 1))[0]
    number = np.diff(start, append=len(key))
    extent = np.maximum.reduceat(z, start) - np.minimum.reduceat(z, start)
    mean = np.add.reduceat(z, start) / number
    spread = np.sqrt(np.maximum(np.add.reduceat(z * z, start) / number - mean**2, 0))
    distance = np.add.reduceat(range_m, start) / number
    for low, high in pairwise(RANGES_M):
        near, pillars = (range_m >= low) & (range_m < high), (distance >= low) & (distance < high)
        flat = pillars & (extent < 0.3) & (number >= 3)
        name = f"{low} to {high} m: "
        found |= {f"{name}{statistic}": float(value) for statistic, value in _returns_and_heights(near, z).items()}
        found[f"{name}pillars"] = float(pillars.sum())
        for height in (0.3, 1.0, 2.0):
            found[f"{name}% of pillars over {height} m high"] = 100 * _mean(extent[pillars] > height)
        found[f"{name}roughness of flat pillars, mm"] = 1e3 * float(np.median(spread[flat])) if flat.any() else np.nan
    return found


def _returns_and_heights(near: np.ndarray, z: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(z[near], (0.1, 0.5, 0.9)) if near.any() else (np.nan,) * 3
    return {"returns": near.sum(), "height, 10 %": low, "height, 50 %": median, "height, 90 %": high}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def table(real: Sequence[Floats], synthetic: Sequence[Floats]) -> str:
    """One line per statistic: mean [minimum, maximum] of the real sweeps and of the synthetic ones."""
    columns = [[statistics(points) for points in sweeps] for sweeps in (real, synthetic)]
    lines = [f"{'':46}{f'{len(real)} real':>32}{f'{len(synthetic)} synthetic':>32}"]
    for name in columns[0][0]:
        texts = []
        for column in columns:
            values = np.array([sweep[name] for sweep in column])
            known = values[np.isfinite(values)]
            text = f"{known.mean():.4g} [{known.min():.4g}, {known.max():.4g}]" if len(known) else "-"
            texts.append(f"{text:>32}")
        lines.append(f"{name:46}" + "".join(texts))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Prints the table. Returns the exit code: 2 if the input cannot be used."""
    try:
        files = sorted(Path(arguments[0]).glob("*.bin")) if len(arguments) == 1 else []
        if not files:
            raise InvalidInputError(
                "give a folder of sweeps: python -m apps.driving.datasets.sweep_statistics VELODYNE_DIR"
            )
        sensors = Sensors(field_of_view_deg=180.0)
        synthetic = [scene(np.random.default_rng((5, n)), sensors=sensors).points_lidar_m for n in range(SCENES)]
        sys.stdout.write(
            table([read_points(file) for file in files], [points for points in synthetic if points is not None]) + "\n"
        )
    except InvalidInputError as refusal:
        sys.stderr.write(f"apps.driving.datasets.sweep_statistics: {refusal}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
