"""Argoverse 2 sensor logs: ``root`` holds ``train`` and ``val`` with logs, or logs, or is one."""

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

    Every ``stride``-th annotated sweep: logs are taken at 10 Hz, and neighbours hardly differ.

    The official split where there are folders ``train`` and ``val``; otherwise every fifth log validates, and of one
    log alone the frames do both.
    """

    root: Path
    stride: int = 5
    usual: ClassVar[tuple[str, ...]] = (
        *("regular_vehicle", "large_vehicle", "bus", "box_truck", "truck", "truck_cab", "vehicular_trailer"),
        *("pedestrian", "bicyclist", "bicycle", "motorcyclist", "motorcycle", "wheeled_rider", "stroller"),
        *("bollard", "construction_cone", "construction_barrel", "stop_sign"),
    )
    called: ClassVar[str] = "Argoverse 2 sweeps"

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
        taken = tuple((log, when) for log in logs for when in argoverse2.timestamps(log)[:: self.stride])
        if not taken:
            raise InvalidInputError(f"{self.root} holds no log with sensors/lidar/*.feather for {split}")
        return LogFrames(root=self.root, taken=taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFrames:
    """Sweeps of logs: (log, timestamp in nanoseconds)."""

    root: Path
    taken: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.taken)

    @property
    def scenes(self) -> Sequence[str]:
        return [log.name for log, _ in self.taken]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        log, when = self.taken[index]
        return argoverse2.read_frame(log, when, points=points, images=images)

    def digest(self) -> str:
        logs = sorted({log for log, _ in self.taken})
        files = [log / "sensors" / "lidar" / f"{when}.feather" for log, when in self.taken]
        marks = [file for log in logs if (file := log / "annotations.feather").is_file()]
        mounts = [log / "calibration" / "egovehicle_SE3_sensor.feather" for log in logs]
        images = sorted(file for log in logs for file in (log / "sensors" / "cameras").glob("ring_*/*.jpg"))
        return listing_digest(self.root, [*files, *marks, *mounts, *images], "argoverse2")


def _logs(folder: Path) -> list[Path]:
    return sorted(found for found in folder.iterdir() if argoverse2.is_log(found)) if folder.is_dir() else []
