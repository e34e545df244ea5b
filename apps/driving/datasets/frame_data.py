"""The base of all data sets of labelled frames: batches for each kind of network, facts, and class sizes."""

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
from shared.data.order import evenly_spaced
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.driving.datasets.found_boxes import FoundBoxes
    from apps.driving.datasets.images import Images
    from apps.driving.datasets.sweeps import Sweeps

Split: TypeAlias = Literal["train", "validation"]
Input: TypeAlias = LidarInput | CameraInput
_REACH_PER_LENGTH, _MIN_REACH_M = 0.25, 0.5
_STRIDE = 32
"""Camera networks are exported for image sides that are multiples of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameData(ABC):
    """Labelled frames: sweeps, images, or a detector's boxes, depending on the input's network.

    ``classes`` are the classes to train; if empty, the data set's default classes plus the merge targets, or the
    recipe's classes if the data set has no defaults. ``merge`` maps classes to the one that they are trained as, such
    as (("van", "car"),). ``sweeps`` and ``images`` choose the objects to train on, and the augmentation.
    ``description`` names the frames.
    """

    classes: tuple[str, ...] = ()
    merge: tuple[tuple[str, str], ...] = ()
    sweeps: SweepSampling = field(default_factory=SweepSampling)
    images: ImageSampling = field(default_factory=ImageSampling)
    description: ClassVar[str] = "frames"
    default_classes: ClassVar[tuple[str, ...]] = ()
    protocol: ClassVar[Literal["kitti", "centre"]] = "centre"

    @abstractmethod
    def frames(self, split: Split, input: Input | None = None) -> FrameList:
        """The frames of one split. Synthetic data is generated for ``input``."""

    def of_split(self, split: Split) -> FrameList:
        """The frames of one split; may be empty."""
        return self.frames(split)

    def fingerprint(self) -> dict[str, Any]:
        """The description of the training data that is stored in the artifact."""
        train, validation = self.of_split("train"), self.of_split("validation")
        return {
            "description": f"{len(train)} {self.description}; {len(validation)} others for validation",
            "synthetic": False,
            "frames": len(train),
            "validation_frames": len(validation),
            "digest": train.digest(),
        }

    def cases(self) -> FrameList:
        """The frames that a detector is scored on."""
        return self.frames("validation")

    def train(self, input: Input) -> Sweeps | Images | FoundBoxes:
        return self._batches("train", input)

    def validation(self, input: Input) -> Sweeps | Images | FoundBoxes:
        return self._batches("validation", input)

    def fit_input(self, input: Input) -> Input:
        """The input with this data's classes and, for cameras, the size of its images at the input's focal length.

        A second stage takes the range and the classes of its detector. Classes that the input already has keep their
        settings; the sizes of the others are the means of the labels.
        """
        if isinstance(input, BoxInput):
            from apps.driving.datasets.found_boxes import fit_to_detector

            if self.classes:
                raise InvalidInputError("data.classes does not apply to a second stage: its classes are its detector's")
            return fit_to_detector(input)
        tables = self._tables(self.pack("train", input))
        known = {kind.name: kind for kind in input.classes}
        # The target of a merge is meant to be trained, even if it is not a default class of the data set.
        default = (*self.default_classes, *(name for _, name in self.merge if self.default_classes and name in tables))
        names = self.classes or tuple(name for name in dict.fromkeys(default) if name in known or name in tables)
        if missing := [name for name in names if name not in known and name not in tables]:
            counts = ", ".join(f"{name} ({len(table)})" for name, table in tables.items())
            raise InvalidInputError(f"data.classes names {missing[0]}, but the labels have none; they have {counts}")
        if self.default_classes and not names:
            raise InvalidInputError(
                f"the labels have none of {', '.join(self.default_classes)}; name others with --data.classes"
            )
        classes = input.classes
        if names and set(names) != set(known):
            classes = tuple(known.get(name) or mean_class(name, tables[name]) for name in names)
        if isinstance(input, LidarInput):
            return replace(input, classes=classes)
        height, width = (-(-int(side) // _STRIDE) * _STRIDE for side in self.pack("train", input).image_sizes().max(0))
        return replace(input, classes=classes, image=(height, width))

    def facts(self, input: Input) -> dict[str, Any]:
        """What is printed before training: frames, objects and their returns by class, untrained classes, splits."""
        packs = {split: self.pack(split, input) for split in ("train", "validation")}
        tables = {split: self._tables(pack) for split, pack in packs.items()}
        facts: dict[str, Any] = {
            "training frames": len(packs["train"]),
            "validation frames": len(packs["validation"]),
        }
        for kind in input.classes:
            training, validation = (_summary(tables[split].get(kind.name), input) for split in ("train", "validation"))
            facts[kind.name] = f"{training}; validation: {validation}"
        names = {kind.name for kind in input.classes}
        others = Counter({name: len(table) for name, table in tables["train"].items() if name not in names})
        if others:
            facts["not trained"] = ", ".join(f"{name} {count}" for name, count in others.most_common())
        scenes = [set(packs[split].scenes) for split in ("train", "validation")]
        facts["scenes"] = f"{len(scenes[0])} for training, {len(scenes[1])} for validation"
        if isinstance(input, BoxInput):
            facts |= {f"boxes, {split}": self._boxes(split, input).summary() for split in ("train", "validation")}
        if shared := sorted(scenes[0] & scenes[1]):
            facts["scenes in both splits"] = f"{len(shared)}, such as {shared[0]}: scores are too high"
        return facts

    def pack(self, split: Split, input: Input) -> Pack:
        """The frames of a split, packed for the kind of network of the input."""
        return Pack(self.frames(split, input), input.training_focal_px if isinstance(input, CameraInput) else None)

    def _batches(self, split: Split, input: Input) -> Sweeps | Images | FoundBoxes:
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
        """All objects of a pack by the class they are trained as, the most frequent class first."""
        table = np.concatenate([pack.table(index) for index in range(len(pack))])
        merge = dict(self.merge)
        trained_as = np.array([merge.get(name, name) for name in pack.names])[table[:, CLASS].astype(np.int64)]
        return {name: table[trained_as == name] for name, _ in Counter(trained_as.tolist()).most_common()}


def training_frames(data: FrameData, input: Input, most: int) -> Iterator[Frame]:
    """At most ``most`` training frames with data for the input's sensor, evenly chosen."""
    frames = data.frames("train", input)
    for number in evenly_spaced(len(frames), most):
        frame = frames.read(number)
        if frame.points_lidar_m is not None if isinstance(input, LidarInput) else frame.cameras:
            yield frame


def mean_class(name: str, table: Floats) -> ObjectClass:
    """A class with the mean size and height of its labels (M, 15)."""
    size = table[:, 3:6].mean(0)
    bottom = float((table[:, 2] - table[:, 5] / 2).mean())
    return ObjectClass(
        name=name,
        size_m=(round(float(size[0]), 2), round(float(size[1]), 2), round(float(size[2]), 2)),
        bottom_m=round(bottom, 2),
        reach_m=round(max(_MIN_REACH_M, _REACH_PER_LENGTH * float(size[0])), 2),
    )


def _summary(table: Floats | None, input: Input) -> str:
    if table is None:
        return "none"
    size = " x ".join(f"{side:.2f}" for side in table[:, 3:6].mean(0))
    distance = np.hypot(table[:, 0], table[:, 1])
    text = f"{len(table)} of {size} m, {distance.min():.0f} to {distance.max():.0f} m away"
    returns = table[table[:, RETURNS] >= 0, RETURNS]
    if len(returns):
        low, median, high = np.quantile(returns, (0.1, 0.5, 0.9))
        text += f", returns {low:.0f} / {median:.0f} / {high:.0f} (10, 50, 90 %)"
    if isinstance(input, LidarInput):
        text += f", {100 * within(table, input.range_m).mean():.0f} % in range"
    return text
