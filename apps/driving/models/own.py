"""The settings of an mmdet3d LiDAR detector in the user's own configuration, checked for consistency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own_settings import (
    LIDAR_DETECTORS,
    as_text,
    check_classes,
    checked_settings,
    numbers_setting,
    object_class,
    part_settings,
)
from apps.driving.types import LidarInput, ObjectClass
from shared.errors import InvalidInputError

_MAX_CELLS = 2048 * 2048
_MAX_ANCHORS = 1 << 27
_MAX_PILLAR_POINTS = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnConfiguration:
    """The network of a detector that was trained with the user's own configuration, in JSON types.

    ``model`` are mmdet3d's settings without those of training, ``classes`` the class names in label order.
    ``columns``, ``intensity``, ``quarter_turn``, ``earlier_sweeps`` and ``remove_close`` are as in
    ``detectors.PointLayout``. Raises ``InvalidInputError`` if a part is not supported here or inconsistent with others.
    """

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: tuple[int, ...] = (0, 1, 2, 3)
    intensity: float = 1.0
    quarter_turn: int = 0
    earlier_sweeps: int = 0
    remove_close: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", checked_settings(self.model, LIDAR_DETECTORS))
        object.__setattr__(self, "classes", tuple(name.lower() for name in self.classes))
        object.__setattr__(self, "quarter_turn", int(self.quarter_turn) % 4)
        try:
            self._check_head()
            self._check_pillars()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"the model's settings do not have the form that mmdet3d expects: {error}"
            ) from error

    @property
    def voxel_layer(self) -> Mapping[str, Any]:
        return part_settings(part_settings(self.model, "data_preprocessor"), "voxel_layer")

    @property
    def range_m(self) -> tuple[float, ...]:
        """Minima, then maxima of x, y, z in metres, in the network's axes."""
        return numbers_setting(self.voxel_layer, "point_cloud_range", 6)

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of rows (y) and columns (x) of pillars, in the network's axes."""
        low, high, sides = self.range_m[:3], self.range_m[3:], numbers_setting(self.voxel_layer, "voxel_size", 3)
        if not all(0 < side <= end - start for side, start, end in zip(sides, low, high, strict=True)):
            raise InvalidInputError(f"voxels of {as_text(sides)} m do not fill the range {as_text(self.range_m)} m")
        counts = [round((end - start) / side) for side, start, end in zip(sides, low, high, strict=True)]
        if counts[2] != 1:
            raise InvalidInputError(
                f"the grid is {counts[2]} voxels high; only pillar networks, one voxel high, run here"
            )
        return counts[1], counts[0]

    def part(self, name: str) -> Mapping[str, Any]:
        """The settings of a part of the network; MVXFasterRCNN and CenterPoint prefix its name with ``pts_``."""
        return part_settings(self.model, name if name in self.model else f"pts_{name}")

    def lidar_input(self) -> LidarInput:
        """The network's input: its range in the LiDAR frame of ``Frame``, and its classes."""
        x0, y0, z0, x1, y1, z1 = self.range_m
        for _ in range(self.quarter_turn):
            x0, y0, x1, y1 = y0, -x1, y1, -x0
        return LidarInput(range_m=(x0, y0, z0, x1, y1, z1), classes=self.object_classes())

    def has_anchor_sizes(self) -> bool:
        """Whether the head has one anchor size for each class."""
        anchors = self.part("bbox_head").get("anchor_generator") or {}
        sizes, ranges = anchors.get("sizes"), anchors.get("ranges")
        return (
            isinstance(sizes, list)
            and isinstance(ranges, list)
            and len(sizes) == len(self.classes)
            and len(ranges) in (1, len(sizes))
            and anchors.get("scales", [1]) == [1]
        )

    def object_classes(self) -> tuple[ObjectClass, ...]:
        """The classes with the sizes and heights of their anchors; of a car's size if there is no anchor per class."""
        if not self.has_anchor_sizes():
            return tuple(map(object_class, self.classes))
        anchors = self.part("bbox_head")["anchor_generator"]
        classes = []
        for number, name in enumerate(self.classes):
            length, width, height = numbers_setting({"sizes": anchors["sizes"][number]}, "sizes", 3)
            bottom = numbers_setting({"ranges": anchors["ranges"][number % len(anchors["ranges"])]}, "ranges", 6)[2]
            classes.append(object_class(name, (length, width, height), bottom))
        return tuple(classes)

    def _check_head(self) -> None:
        head = self.part("bbox_head")
        if "tasks" in head and "num_classes" not in head:
            class_count = sum(task.get("num_class", len(task.get("class_names", []))) for task in head["tasks"])
        else:
            class_count = head.get("num_classes", 0)
        check_classes(self.classes, class_count)

    def _check_pillars(self) -> None:
        rows, columns = self.grid
        shape = self.part("middle_encoder").get("output_shape")
        if shape != [rows, columns]:
            raise InvalidInputError(
                f"middle_encoder.output_shape is {shape}; range and voxel size give {[rows, columns]} (rows, columns)"
            )
        generator = self.part("bbox_head").get("anchor_generator") or {}
        anchors = math.prod(len(generator.get(name) or [0]) for name in ("sizes", "rotations", "scales"))
        max_voxels = self.voxel_layer.get("max_voxels", 20000)
        points = self.voxel_layer.get("max_num_points", 0) * max(
            max_voxels if isinstance(max_voxels, list) else [max_voxels]
        )
        if rows * columns > _MAX_CELLS or rows * columns * anchors > _MAX_ANCHORS or points > _MAX_PILLAR_POINTS:
            raise InvalidInputError(
                f"a grid of {rows} by {columns} pillars with {anchors} anchors each, or {points} points in pillars, "
                "is larger than supported here"
            )
        in_channels = self.part("voxel_encoder").get("in_channels", 4)
        if in_channels != len(self.columns) or not {0, 1, 2} <= set(self.columns) or max(self.columns) > 4:
            raise InvalidInputError(
                f"its encoder takes {in_channels} columns of a point; the test pipeline reads the file's columns "
                f"{as_text(self.columns)}, and only x, y, z, the intensity and the time of a sweep are supported"
            )
        if 4 in self.columns and not self.earlier_sweeps:
            raise InvalidInputError(
                "its network takes the fifth column of the points' file, which is not the time of a sweep "
                "(LoadPointsFromMultiSweeps); a frame has only x, y, z and the intensity"
            )
