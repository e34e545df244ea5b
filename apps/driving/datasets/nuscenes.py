"""nuScenes: its own tables (``v1.0-*``), or OpenMMLab's info files as JSON. Does not load pickled infos."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from apps.driving.adapters import nuscenes, nuscenes_tables
from apps.driving.datasets.frame_data import FrameData, Input, Split
from apps.driving.datasets.split import every_fifth, listing_digest, names_in
from apps.driving.types import Frame
from shared.data.build_cache import get_or_build
from shared.errors import InvalidInputError

_VERSION = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class NuScenes(FrameData):
    """nuScenes key frames: sweeps and six cameras with boxes.

    ``root`` holds ``samples`` and the tables of ``version``, or info files (``data_list``, ``metainfo``) as JSON.

    ``validation_scenes`` is a text file with the names of the validation scenes, one per line; nuscenes-devkit has the
    official ones in nuscenes/utils/splits.py. Without it, every fifth scene is for validation. Info files with "val" in
    their names are for validation, and the others for training.
    """

    root: Path
    version: str = "v1.0-trainval"
    validation_scenes: Path | None = None
    description: ClassVar[str] = "nuScenes key frames"
    default_classes: ClassVar[tuple[str, ...]] = (
        *("car", "truck", "bus", "trailer", "construction_vehicle"),
        *("pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier"),
    )

    def frames(self, split: Split, input: Input | None = None) -> DescribedFrames:
        found = self.of_split(split)
        if not len(found):
            raise InvalidInputError(f"{self.root} has no scene for {split}; see --data.validation-scenes")
        return found

    def all_frames(self) -> DescribedFrames:
        """The frames of all scenes, each with its earlier sweeps."""
        index = DescribedFrames(root=self.root, index=self._index(), numbers=(), with_sweeps=True)
        return replace(index, numbers=tuple(range(len(index.all_scenes))))

    def of_split(self, split: Split) -> DescribedFrames:
        """The frames of one split; may be empty."""
        index = DescribedFrames(root=self.root, index=self._index(), numbers=())
        scenes = sorted(set(index.all_scenes))
        if self.validation_scenes is not None:
            validating = set(names_in(self.validation_scenes))
            chosen = [scene for scene in scenes if (scene in validating) == (split == "validation")]
        elif any(scene.startswith("val ") for scene in scenes):
            chosen = [scene for scene in scenes if scene.startswith("val ") == (split == "validation")]
        else:
            chosen = every_fifth(scenes, split)
        numbers = tuple(number for number, scene in enumerate(index.all_scenes) if scene in set(chosen))
        return DescribedFrames(root=self.root, index=index.index, numbers=numbers)

    def cases(self) -> DescribedFrames:
        """The validation frames with their earlier sweeps, because public nuScenes models use several sweeps."""
        return replace(self.frames("validation"), with_sweeps=True)

    def _index(self) -> Path:
        """The folder with the joined descriptions, one per line; built once."""
        tables = self.root / self.version
        if tables.is_dir():
            sources = sorted(tables.glob("*.json"))
        else:
            sources = sorted(file for file in self.root.glob("*.json") if b'"data_list"' in file.read_bytes())
            if not sources and any(self.root.glob("*.pkl")):
                raise InvalidInputError(
                    f"{self.root} has pickled infos, which are not loaded because pickles can run code; give the "
                    f"folder with {self.version}, or convert the infos to JSON"
                )
        if not sources:
            versions = ", ".join(sorted(found.name for found in self.root.glob("v1.0-*"))) or "none"
            raise InvalidInputError(
                f"{self.root} has neither {self.version} nor infos as JSON; its versions: {versions} (--data.version)"
            )
        key = listing_digest(self.root, sources, f"{_VERSION} {self.version}")[:24]

        def make(folder: Path) -> None:
            descriptions = (
                nuscenes_tables.key_frames(self.root, self.version) if tables.is_dir() else _from_infos(sources)
            )
            end = 0
            with (folder / "frames.jsonl").open("wb") as lines, (folder / "scenes.jsonl").open("wb") as table:
                for scene, description in descriptions:
                    end += lines.write(json.dumps(description).encode() + b"\n")
                    table.write(json.dumps([end, nuscenes.frame_name(description), scene]).encode() + b"\n")

        return get_or_build(f"driving-nuscenes-{key}", make)


def _from_infos(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Descriptions with class names filled in; the drive is taken from the name of the sweep's file."""
    for file in files:
        described = []
        with nuscenes.in_info_layout(file):
            content = json.loads(file.read_bytes())
            names = nuscenes.class_names(content)
            part = "val " if "val" in file.stem else ""
            for description in content["data_list"]:
                for instance in description.get("instances", ()):
                    instance["name"] = names.get(instance["bbox_label_3d"], "other")
                sweep = description.get("lidar_points", {}).get("lidar_path", file.stem)
                described.append((part + Path(sweep).name.split("__")[0], description))
        yield from described


@dataclass(frozen=True, kw_only=True)
class DescribedFrames:
    """Key frames by their numbers in an index of descriptions; ``with_sweeps`` also reads their earlier sweeps."""

    root: Path
    index: Path
    numbers: tuple[int, ...]
    with_sweeps: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def _table(self) -> tuple[list[int], list[str], list[str]]:
        """The end of each description in the file, its frame's name, and its scene."""
        rows = [json.loads(line) for line in (self.index / "scenes.jsonl").read_bytes().splitlines()]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    @property
    def all_scenes(self) -> list[str]:
        """The scene of every frame in the index."""
        return self._table[2]

    @property
    def names(self) -> Sequence[str]:
        """The names of the frames: their sample tokens."""
        return [self._table[1][number] for number in self.numbers]

    @property
    def scenes(self) -> Sequence[str]:
        return [self.all_scenes[number] for number in self.numbers]

    def read(self, index: int, *, points: bool = True, images: bool = True) -> Frame:
        ends, number = self._table[0], self.numbers[index]
        start = ends[number - 1] if number else 0
        with (self.index / "frames.jsonl").open("rb") as file:
            file.seek(start)
            description = json.loads(file.read(ends[number] - start))
        earlier = nuscenes.read_points if points and self.with_sweeps else None
        with nuscenes.in_info_layout(self.root):
            return nuscenes.read_described(
                description, {}, self._find, with_points=points, with_images=images, earlier=earlier
            )

    def digest(self) -> str:
        return hashlib.sha256(f"{self.index.name} {self.numbers}".encode()).hexdigest()

    def _find(self, name: str) -> Path:
        """The path of a file. Tables name files by their path below the root; infos give bare names of files beside the
        infos, or in samples or sweeps."""
        file = Path(name).name
        sensor = file.split("__")[1] if "__" in file else ""
        folders = (self.root / "samples" / sensor, self.root / "sweeps" / sensor)
        for path in (self.root / name, self.root / file, *(folder / file for folder in folders)):
            if path.is_file():
                return path
        raise InvalidInputError(f"{name}, named in the description of a key frame, is not in {self.root}")
