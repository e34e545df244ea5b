"""Real sweeps against synthetic ones: ``python -m apps.driving.datasets.sweep_statistics VELODYNE_DIR``.

Prints the mean over the sweeps, and the least and the greatest, of what tells the two apart: returns by range, the
heights at which they lie, and pillars of 0.32 m: how many, how full, how high what lies in them reaches up, and how
rough the flat ones are. Forward half of the turn, as the networks look.
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
    """The figures of one sweep, by name."""
    ahead = points_N4[points_N4[:, 0] > 0].astype(np.float64)
    away = np.hypot(ahead[:, 0], ahead[:, 1])
    found = {"returns": float(len(ahead))}
    cell = np.floor(ahead[:, :2] / _SIDE_M).astype(np.int64)
    order = np.argsort(cell[:, 0] * 100_000 + cell[:, 1], kind="stable")
    key = (cell[:, 0] * 100_000 + cell[:, 1])[order]
    z, away = ahead[order, 2], away[order]
    start = np.nonzero(np.diff(key, prepend=key[:1] - 1))[0]
    number = np.diff(start, append=len(key))
    extent = np.maximum.reduceat(z, start) - np.minimum.reduceat(z, start)
    mean = np.add.reduceat(z, start) / number
    spread = np.sqrt(np.maximum(np.add.reduceat(z * z, start) / number - mean**2, 0))
    distance = np.add.reduceat(away, start) / number
    for low, high in pairwise(RANGES_M):
        near, pillars = (away >= low) & (away < high), (distance >= low) & (distance < high)
        flat = pillars & (extent < 0.3) & (number >= 3)
        name = f"{low} to {high} m: "
        found |= {f"{name}{what}": float(value) for what, value in _of(near, z).items()}
        found[f"{name}pillars"] = float(pillars.sum())
        for reach in (0.3, 1.0, 2.0):
            found[f"{name}% of pillars over {reach} m high"] = 100 * _mean(extent[pillars] > reach)
        found[f"{name}roughness of flat pillars, mm"] = 1e3 * float(np.median(spread[flat])) if flat.any() else np.nan
    return found


def _of(near: np.ndarray, z: np.ndarray) -> dict[str, float]:
    tenth, half, most = np.quantile(z[near], (0.1, 0.5, 0.9)) if near.any() else (np.nan,) * 3
    return {"returns": near.sum(), "height, 10 %": tenth, "height, 50 %": half, "height, 90 %": most}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def table(real: Sequence[Floats], synthetic: Sequence[Floats]) -> str:
    """One line a figure: mean [least, greatest] of the real sweeps and of the synthetic ones."""
    columns = [[statistics(points) for points in sweeps] for sweeps in (real, synthetic)]
    lines = [f"{'':46}{f'{len(real)} real':>32}{f'{len(synthetic)} synthetic':>32}"]
    for name in columns[0][0]:
        texts = []
        for column in columns:
            values = np.array([one[name] for one in column])
            known = values[np.isfinite(values)]
            text = f"{known.mean():.4g} [{known.min():.4g}, {known.max():.4g}]" if len(known) else "-"
            texts.append(f"{text:>32}")
        lines.append(f"{name:46}" + "".join(texts))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 2 where the input cannot be used."""
    try:
        files = sorted(Path(arguments[0]).glob("*.bin")) if len(arguments) == 1 else []
        if not files:
            raise InvalidInputError(
                "give a folder of sweeps: python -m apps.driving.datasets.sweep_statistics VELODYNE_DIR"
            )
        sensors = Sensors(field_of_view_deg=180.0)
        made = [scene(np.random.default_rng((5, n)), sensors=sensors).points_lidar_m for n in range(SCENES)]
        sys.stdout.write(table([read_points(file) for file in files], [one for one in made if one is not None]) + "\n")
    except InvalidInputError as refusal:
        sys.stderr.write(f"apps.driving.datasets.sweep_statistics: {refusal}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
