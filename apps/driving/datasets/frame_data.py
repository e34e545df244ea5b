"""What every data set of labelled frames does: batches for either kind of network, facts, and its classes' sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np

from apps.driving.datasets.packing import CLASS, RETURNS, FrameList, Pack
from apps.driving.datasets.sampling import ImageSampling, SweepSampling
from apps.driving.types import BoxInput, CameraInput, Floats, Frame, LidarInput, ObjectClass, within
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.driving.datasets.found_boxes import FoundBoxes
    from apps.driving.datasets.images import Images
    from apps.driving.datasets.sweeps import Sweeps

Split: TypeAlias = Literal["train", "validation"]
Input: TypeAlias = LidarInput | CameraInput
_REACH_OF_LENGTH, _MIN_REACH_M = 0.25, 0.5
_STRIDE = 32
"""Camera networks are exported for images whose sides are multiples of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameData(ABC):
    """Labelled frames, for LiDAR networks as sweeps, for camera networks as images, for the second stage as the boxes
    of a detector: the input decides.

    ``classes`` are what is learnt; empty for the data set's usual ones and those that are merged into, or where it has
    none those of the recipe. ``merge`` names classes to be learnt as another: (("van", "car"),). ``sweeps`` and
    ``images`` say what of them is learnt, and how they are varied. ``called`` is what the frames are in a sentence.
    """

    classes: tuple[str, ...] = ()
    merge: tuple[tuple[str, str], ...] = ()
    sweeps: SweepSampling = field(default_factory=SweepSampling)
    images: ImageSampling = field(default_factory=ImageSampling)
    called: ClassVar[str] = "frames"
    usual: ClassVar[tuple[str, ...]] = ()
    protocol: ClassVar[Literal["kitti", "centre"]] = "centre"

    @abstractmethod
    def frames(self, split: Split, input: Input | None = None) -> FrameList:
        """The frames of one split; where they are made, for ``input``."""

    def of_split(self, split: Split) -> FrameList:
        """The frames of one split, of which there may be none."""
        return self.frames(split)

    def fingerprint(self) -> dict[str, Any]:
        """What is told of the data in an artifact that learnt from it."""
        train, validation = self.of_split("train"), self.of_split("validation")
        return {
            "description": f"{len(train)} {self.called}; {len(validation)} others for validation",
            "synthetic": False,
            "frames": len(train),
            "validation_frames": len(validation),
            "digest": train.digest(),
        }

    def cases(self) -> FrameList:
        """The frames that a detector is scored on."""
        return self.frames("validation")

    def train(self, input: Input) -> Sweeps | Images | FoundBoxes:
        return self._set("train", input)

    def validation(self, input: Input) -> Sweeps | Images | FoundBoxes:
        return self._set("validation", input)

    def fit_input(self, input: Input) -> Input:
        """The input with this data's classes, and for cameras the size of its images at the input's focal length.

        The second stage takes the range and the classes of its detector. Classes that the input has already keep their
        settings; the sizes of others are the means of the labels.
        """
        if isinstance(input, BoxInput):
            from apps.driving.datasets.found_boxes import fitted

            if self.classes:
                raise InvalidInputError("data.classes does not apply to a second stage: its classes are its detector's")
            return fitted(input)
        tables = self._tables(self.pack("train", input))
        known = {kind.name: kind for kind in input.classes}
        # What others are merged into is meant to be learnt, whatever the data set usually calls it.
        meant = (*self.usual, *(name for _, name in self.merge if self.usual and name in tables))
        names = self.classes or tuple(name for name in dict.fromkeys(meant) if name in known or name in tables)
        if missing := [name for name in names if name not in known and name not in tables]:
            counts = ", ".join(f"{name} ({len(table)})" for name, table in tables.items())
            raise InvalidInputError(f"data.classes names {missing[0]}, of which there is no label; there are {counts}")
        if self.usual and not names:
            raise InvalidInputError(f"the labels hold none of {', '.join(self.usual)}; name others with --data.classes")
        classes = input.classes
        if names and set(names) != set(known):
            classes = tuple(known.get(name) or mean_class(name, tables[name]) for name in names)
        if isinstance(input, LidarInput):
            return replace(input, classes=classes)
        height, width = (-(-int(side) // _STRIDE) * _STRIDE for side in self.pack("train", input).image_sizes().max(0))
        return replace(input, classes=classes, image=(height, width))

    def facts(self, input: Input) -> dict[str, Any]:
        """What is printed before training: frames, objects and their returns by class, what is passed over, splits."""
        packs = {split: self.pack(split, input) for split in ("train", "validation")}
        tables = {split: self._tables(pack) for split, pack in packs.items()}
        said: dict[str, Any] = {
            "training frames": len(packs["train"]),
            "validation frames": len(packs["validation"]),
        }
        for kind in input.classes:
            learnt, validating = (_described(tables[split].get(kind.name), input) for split in ("train", "validation"))
            said[kind.name] = f"{learnt}; validation: {validating}"
        names = {kind.name for kind in input.classes}
        others = Counter({name: len(table) for name, table in tables["train"].items() if name not in names})
        if others:
            said["not learnt"] = ", ".join(f"{name} {count}" for name, count in others.most_common())
        scenes = [set(packs[split].scenes) for split in ("train", "validation")]
        said["scenes"] = f"{len(scenes[0])} train, {len(scenes[1])} validate"
        if isinstance(input, BoxInput):
            said |= {f"boxes, {split}": self._boxes(split, input).described() for split in ("train", "validation")}
        if shared := sorted(scenes[0] & scenes[1]):
            said["scenes in both splits"] = f"{len(shared)}, {shared[0]} among them: scores flatter"
        return said

    def pack(self, split: Split, input: Input) -> Pack:
        """The frames of a split, packed for the input's kind of network."""
        return Pack(self.frames(split, input), input.training_focal_px if isinstance(input, CameraInput) else None)

    def _set(self, split: Split, input: Input) -> Sweeps | Images | FoundBoxes:
        pack, merge = self.pack(split, input), dict(self.merge)
        if isinstance(input, CameraInput):
            from apps.driving.datasets.images import Images

            return Images(pack, input, self.images, merge)
        if isinstance(input, BoxInput):
            return self._boxes(split, input)
        from apps.driving.datasets.sweeps import Sweeps

        return Sweeps(pack, input, self.sweeps, merge, pasting=split == "train" and self.sweeps.paste > 0)

    def _boxes(self, split: Split, input: BoxInput) -> FoundBoxes:
        from apps.driving.datasets.found_boxes import FoundBoxes, require_objects

        pack = self.pack(split, input)
        if split == "train":
            require_objects(pack, input, dict(self.merge))
        found = FoundBoxes(pack, input, dict(self.merge))
        if split == "train":
            found.require_matches()
        return found

    def _tables(self, pack: Pack) -> dict[str, Floats]:
        """All objects of a pack by the name that they are learnt as, the most frequent class first."""
        table = np.concatenate([pack.table(index) for index in range(len(pack))])
        merge = dict(self.merge)
        learnt = np.array([merge.get(name, name) for name in pack.names])[table[:, CLASS].astype(np.int64)]
        return {name: table[learnt == name] for name, _ in Counter(learnt.tolist()).most_common()}


def training_frames(data: FrameData, input: Input, most: int) -> Iterator[Frame]:
    """The frames that are learnt from and have what the input is made of, evenly chosen, at most ``most``."""
    frames = data.frames("train", input)
    for number in np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)).tolist():
        frame = frames.read(number)
        if frame.points_lidar_m is not None if isinstance(input, LidarInput) else frame.cameras:
            yield frame


def mean_class(name: str, table: Floats) -> ObjectClass:
    """A class as its labels (M, 15) are in the mean."""
    size = table[:, 3:6].mean(0)
    bottom = float((table[:, 2] - table[:, 5] / 2).mean())
    return ObjectClass(
        name=name,
        size_m=(round(float(size[0]), 2), round(float(size[1]), 2), round(float(size[2]), 2)),
        bottom_m=round(bottom, 2),
        reach_m=round(max(_MIN_REACH_M, _REACH_OF_LENGTH * float(size[0])), 2),
    )


def _described(table: Floats | None, input: Input) -> str:
    if table is None:
        return "none"
    size = " x ".join(f"{side:.2f}" for side in table[:, 3:6].mean(0))
    away = np.hypot(table[:, 0], table[:, 1])
    text = f"{len(table)} of {size} m, {away.min():.0f} to {away.max():.0f} m away"
    returns = table[table[:, RETURNS] >= 0, RETURNS]
    if len(returns):
        low, middle, high = np.quantile(returns, (0.1, 0.5, 0.9))
        text += f", returns {low:.0f} / {middle:.0f} / {high:.0f} (10, 50, 90 %)"
    if isinstance(input, LidarInput):
        text += f", {100 * within(table, input.range_m).mean():.0f} % in range"
    return text
