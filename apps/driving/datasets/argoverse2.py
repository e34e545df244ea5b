"""Argoverse 2 sensor logs: ``root`` holds ``train`` and ``val`` with logs, or holds logs, or is one log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from apps.driving.adapters import argoverse2
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.split import every_fifth, listing_digest
from apps.driving.types import Frame
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Argoverse2(FrameData):
    """Argoverse 2 sensor logs: sweeps with boxes.

    Uses every ``stride``-th annotated sweep, because logs are recorded at 10 Hz and neighbouring sweeps hardly differ.

    Uses the official split if there are folders ``train`` and ``val``; otherwise every fifth log is for validation, and
    a single log is used for both training and validation.
    """

    root: Path
    stride: int = 5
    default_classes: ClassVar[tuple[str, ...]] = (
        *("regular_vehicle", "large_vehicle", "bus", "box_truck", "truck", "truck_cab", "vehicular_trailer"),
        *("pedestrian", "bicyclist", "bicycle", "motorcyclist", "motorcycle", "wheeled_rider", "stroller"),
        *("bollard", "construction_cone", "construction_barrel", "stop_sign"),
    )
    description: ClassVar[str] = "Argoverse 2 sweeps"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InvalidInputError(f"data.stride is {self.stride}; it must be at least 1")

    def frames(self, split: Split, input: Input | None = None) -> LogFrames:
        parts = {"train": self.root / "train", "validation": self.root / "val"}
        if all(part.is_dir() for part in parts.values()):
            logs = _logs(parts[split])
        else:
            known = {log.name: log for log in ([self.root] if argoverse2.is_log(self.root) else _logs(self.root))}
            logs = [known[name] for name in every_fifth(list(known), split)] if known else []
        sweeps = tuple(
            (log, timestamp_ns) for log in logs for timestamp_ns in argoverse2.timestamps(log)[:: self.stride]
        )
        if not sweeps:
            raise InvalidInputError(f"{self.root} has no log with sensors/lidar/*.feather for {split}")
        return LogFrames(root=self.root, sweeps=sweeps)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFrames:
    """Sweeps of logs, each given as (log, timestamp in nanoseconds)."""

    root: Path
    sweeps: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.sweeps)

    @property
    def scenes(self) -> Sequence[str]:
        return [log.name for log, _ in self.sweeps]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        log, timestamp_ns = self.sweeps[index]
        return argoverse2.read_frame(log, timestamp_ns, points=points, images=images)

    def digest(self) -> str:
        logs = sorted({log for log, _ in self.sweeps})
        files = [log / "sensors" / "lidar" / f"{timestamp_ns}.feather" for log, timestamp_ns in self.sweeps]
        annotations = [file for log in logs if (file := log / "annotations.feather").is_file()]
        calibrations = [log / "calibration" / "egovehicle_SE3_sensor.feather" for log in logs]
        images = sorted(file for log in logs for file in (log / "sensors" / "cameras").glob("ring_*/*.jpg"))
        return listing_digest(self.root, [*files, *annotations, *calibrations, *images], "argoverse2")


def _logs(folder: Path) -> list[Path]:
    return sorted(found for found in folder.iterdir() if argoverse2.is_log(found)) if folder.is_dir() else []
