"""nuScenes: its own tables (``v1.0-*``), or OpenMMLab's info files as JSON. Pickled infos are not loaded."""

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

    ``validation_scenes`` is a text file with the names of the scenes that validate, one a line: nuscenes-devkit lists
    the official ones in nuscenes/utils/splits.py. Without it every fifth scene does. Where a file of infos has "val" in
    its name, it validates, and the others train.
    """

    root: Path
    version: str = "v1.0-trainval"
    validation_scenes: Path | None = None
    called: ClassVar[str] = "nuScenes key frames"
    usual: ClassVar[tuple[str, ...]] = (
        *("car", "truck", "bus", "trailer", "construction_vehicle"),
        *("pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier"),
    )

    def frames(self, split: Split, input: Input | None = None) -> DescribedFrames:
        found = self.of_split(split)
        if not len(found):
            raise InvalidInputError(f"no scene of {self.root} is left for {split}; see --data.validation-scenes")
        return found

    def all_frames(self) -> DescribedFrames:
        """The frames of all scenes, with the sweeps before each."""
        index = DescribedFrames(root=self.root, index=self._index(), numbers=(), with_sweeps=True)
        return replace(index, numbers=tuple(range(len(index.all_scenes))))

    def of_split(self, split: Split) -> DescribedFrames:
        """The frames of one split, of which there may be none."""
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
        """The frames that validate, with the sweeps before each: public models of nuScenes look at those too."""
        return replace(self.frames("validation"), with_sweeps=True)

    def _index(self) -> Path:
        """The folder of the joined descriptions, one line each, made once."""
        tables = self.root / self.version
        if tables.is_dir():
            sources = sorted(tables.glob("*.json"))
        else:
            sources = sorted(file for file in self.root.glob("*.json") if b'"data_list"' in file.read_bytes())
            if not sources and any(self.root.glob("*.pkl")):
                raise InvalidInputError(
                    f"{self.root} holds pickled infos, which can run code as they are loaded and are not; give the "
                    f"folder with {self.version}, or write the infos as JSON"
                )
        if not sources:
            held = ", ".join(sorted(found.name for found in self.root.glob("v1.0-*"))) or "none"
            raise InvalidInputError(
                f"{self.root} holds neither {self.version} nor infos as JSON; versions there: {held} (--data.version)"
            )
        key = listing_digest(self.root, sources, f"{_VERSION} {self.version}")[:24]

        def make(folder: Path) -> None:
            described = self._from_tables() if tables.is_dir() else _from_infos(sources)
            end = 0
            with (folder / "frames.jsonl").open("wb") as lines, (folder / "scenes.jsonl").open("w") as table:
                for scene, description in described:
                    end += lines.write(json.dumps(description).encode() + b"\n")
                    table.write(json.dumps([end, nuscenes.name_of(description), scene]) + "\n")

        return get_or_build(f"driving-nuscenes-{key}", make)

    def _from_tables(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            yield from nuscenes_tables.key_frames(self.root, self.version)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"the tables in {self.root / self.version} do not fit together: {type(error).__name__} {error}"
            ) from error


def _from_infos(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Descriptions with the classes' names written in; the drive is read off the name of the sweep's file."""
    for file in files:
        content = json.loads(file.read_bytes())
        names = nuscenes.class_names(content)
        part = "val " if "val" in file.stem else ""
        for description in content["data_list"]:
            for instance in description.get("instances", ()):
                instance["name"] = names.get(instance["bbox_label_3d"], "other")
            sweep = description.get("lidar_points", {}).get("lidar_path", file.stem)
            yield part + Path(sweep).name.split("__")[0], description


@dataclass(frozen=True, kw_only=True)
class DescribedFrames:
    """Key frames by their numbers in an index of descriptions; ``with_sweeps`` reads the sweeps before them too."""

    root: Path
    index: Path
    numbers: tuple[int, ...]
    with_sweeps: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def _table(self) -> tuple[list[int], list[str], list[str]]:
        """Where each description ends, its frame's name, and its scene."""
        rows = [json.loads(line) for line in (self.index / "scenes.jsonl").read_text().splitlines()]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    @property
    def all_scenes(self) -> list[str]:
        """The scene of every frame in the index."""
        return self._table[2]

    @property
    def names(self) -> Sequence[str]:
        """Those of the frames: tokens of samples."""
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
        return nuscenes.read_described(
            description, {}, self._find, with_points=points, with_images=images, earlier=earlier
        )

    def digest(self) -> str:
        return hashlib.sha256(f"{self.index.name} {self.numbers}".encode()).hexdigest()

    def _find(self, name: str) -> Path:
        """Tables name files from the root; infos name them alone, as they lie beside the infos or in samples."""
        file = Path(name).name
        sensor = file.split("__")[1] if "__" in name else ""
        folders = (self.root / "samples" / sensor, self.root / "sweeps" / sensor)
        for place in (self.root / name, self.root / file, *(folder / file for folder in folders)):
            if place.is_file():
                return place
        raise InvalidInputError(f"{name}, which a description of a key frame names, is not in {self.root}")
