"""Cityscapes 3D: ``gtBbox3d/{train,val}/CITY/*_gtBbox3d.json`` beside ``leftImg8bit``. For camera networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from apps.driving.adapters import cityscapes3d
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.split import every_fifth, listing_digest
from apps.driving.types import Frame, LidarInput
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cityscapes3D(FrameData):
    """Cityscapes 3D: images with boxes of vehicles.

    ``root`` holds ``gtBbox3d`` and ``leftImg8bit``. Uses the official split if ``val`` exists, else every fifth image
    is for validation."""

    root: Path
    default_classes: ClassVar[tuple[str, ...]] = ("car", "truck", "bus", "train", "motorcycle", "bicycle")
    description: ClassVar[str] = "Cityscapes 3D images"

    def frames(self, split: Split, input: Input | None = None) -> CityFrames:
        if isinstance(input, LidarInput):
            raise InvalidInputError("Cityscapes 3D has no LiDAR; choose a camera network, such as fcos3d_small")
        labels = self.root / "gtBbox3d"
        parts = {"train": labels / "train", "validation": labels / "val"}
        if all(part.is_dir() for part in parts.values()):
            files = sorted(parts[split].rglob(f"*{cityscapes3d.LABELS}"))
        else:
            known = {file.name: file for file in labels.rglob(f"*{cityscapes3d.LABELS}")}
            files = [known[name] for name in every_fifth(list(known), split)] if known else []
        if not files:
            raise InvalidInputError(f"{self.root} has no gtBbox3d/*/*/*{cityscapes3d.LABELS} for {split}")
        return CityFrames(root=self.root, files=tuple(files))


@dataclass(frozen=True, kw_only=True, slots=True)
class CityFrames:
    """Label files, each with its image."""

    root: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def scenes(self) -> Sequence[str]:
        """City and sequence: the first two parts of the file name."""
        return ["_".join(file.name.split("_")[:2]) for file in self.files]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        return cityscapes3d.read(self.files[index], self._image(self.files[index]) if images else None)

    def digest(self) -> str:
        return listing_digest(self.root, [*self.files, *map(self._image, self.files)], "cityscapes3d")

    def _image(self, labels: Path) -> Path:
        relative = labels.relative_to(self.root / "gtBbox3d").with_name(
            labels.name.replace(cityscapes3d.LABELS, cityscapes3d.IMAGE)
        )
        image = self.root / cityscapes3d.CAMERA / relative
        if not image.is_file():
            raise InvalidInputError(f"{image} does not exist; it is in leftImg8bit_trainvaltest.zip")
        return image
