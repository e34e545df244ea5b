"""A LiDAR detector of mmdet3d in a configuration of the user's own: its settings, which must fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own_settings import (
    LIDAR_DETECTORS,
    SHORT_M,
    check_classes,
    checked_settings,
    in_words,
    metres,
    part_settings,
)
from apps.driving.types import LidarInput, ObjectClass
from shared.errors import InvalidInputError

_MAX_CELLS = 2048 * 2048
_MAX_ANCHORS = 1 << 27
_MAX_IN_PILLARS = 1 << 24
_ASSUMED_SIZE_M, _ASSUMED_BOTTOM_M = (4.0, 1.8, 1.6), -1.7


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnConfiguration:
    """What the configuration that a detector was trained by says of its network, in JSON types.

    ``model`` are mmdet3d's settings without those of training, ``classes`` the names in the order of its labels.
    ``columns``, ``intensity``, ``quarter_turn``, ``earlier_sweeps`` and ``remove_close`` are those of
    ``detectors.PointLayout``. Raises ``InvalidInputError`` where a part is not known here, or does not fit the others.
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
            raise InvalidInputError(f"the model's settings are not of the form that mmdet3d takes: {error}") from error

    @property
    def voxel_layer(self) -> Mapping[str, Any]:
        return part_settings(part_settings(self.model, "data_preprocessor"), "voxel_layer")

    @property
    def range_m(self) -> tuple[float, ...]:
        """x, y, z from and to in metres, in mmdet3d's own axes."""
        return metres(self.voxel_layer, "point_cloud_range", 6)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of pillars, in mmdet3d's own axes."""
        low, high, sides = self.range_m[:3], self.range_m[3:], metres(self.voxel_layer, "voxel_size", 3)
        if not all(0 < side <= to - start for side, start, to in zip(sides, low, high, strict=True)):
            raise InvalidInputError(f"voxels of {in_words(sides)} m do not fill the range {in_words(self.range_m)} m")
        counts = [round((to - start) / side) for side, start, to in zip(sides, low, high, strict=True)]
        if counts[2] != 1:
            raise InvalidInputError(f"the grid is {counts[2]} voxels high; networks on pillars, of one voxel, run here")
        return counts[1], counts[0]

    def part(self, name: str) -> Mapping[str, Any]:
        """The settings of a part of the network, which MVXFasterRCNN and CenterPoint call ``pts_`` and its name."""
        return part_settings(self.model, name if name in self.model else f"pts_{name}")

    def lidar_input(self) -> LidarInput:
        """What the network sees, in the LiDAR frame of ``Frame``, and looks for."""
        x0, y0, z0, x1, y1, z1 = self.range_m
        for _ in range(self.quarter_turn):
            x0, y0, x1, y1 = y0, -x1, y1, -x0
        return LidarInput(range_m=(x0, y0, z0, x1, y1, z1), classes=self.object_classes())

    def has_anchor_sizes(self) -> bool:
        """Whether it has an anchor's size for each class."""
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
        """The classes with the sizes and heights of their anchors, or, of a network without, of a car's size."""
        if not self.has_anchor_sizes():
            return tuple(
                ObjectClass(name=name, size_m=_ASSUMED_SIZE_M, bottom_m=_ASSUMED_BOTTOM_M) for name in self.classes
            )
        anchors = self.part("bbox_head")["anchor_generator"]
        made = []
        for number, name in enumerate(self.classes):
            length, width, height = metres({"sizes": anchors["sizes"][number]}, "sizes", 3)
            bottom = metres({"ranges": anchors["ranges"][number % len(anchors["ranges"])]}, "ranges", 6)[2]
            reach = 0.5 if length <= SHORT_M else 1.0
            made.append(ObjectClass(name=name, size_m=(length, width, height), bottom_m=bottom, reach_m=reach))
        return tuple(made)

    def _check_head(self) -> None:
        head = self.part("bbox_head")
        if "tasks" in head and "num_classes" not in head:
            count = sum(task.get("num_class", len(task.get("class_names", []))) for task in head["tasks"])
        else:
            count = head.get("num_classes", 0)
        check_classes(self.classes, count)

    def _check_pillars(self) -> None:
        rows, columns = self.grid
        shape = self.part("middle_encoder").get("output_shape")
        if shape != [rows, columns]:
            raise InvalidInputError(
                f"middle_encoder.output_shape is {shape}; range and voxels make {[rows, columns]} (rows, columns)"
            )
        generator = self.part("bbox_head").get("anchor_generator") or {}
        anchors = math.prod(len(generator.get(name) or [0]) for name in ("sizes", "rotations", "scales"))
        most = self.voxel_layer.get("max_voxels", 20000)
        points = self.voxel_layer.get("max_num_points", 0) * max(most if isinstance(most, list) else [most])
        if rows * columns > _MAX_CELLS or rows * columns * anchors > _MAX_ANCHORS or points > _MAX_IN_PILLARS:
            raise InvalidInputError(
                f"a grid of {rows} by {columns} pillars with {anchors} anchors each, or {points} points in pillars, "
                "are more than is computed here"
            )
        taken = self.part("voxel_encoder").get("in_channels", 4)
        if taken != len(self.columns) or not {0, 1, 2} <= set(self.columns) or max(self.columns) > 4:
            raise InvalidInputError(
                f"its encoder takes {taken} columns of a point; the test pipeline gives the columns "
                f"{in_words(self.columns)} of the file, of which x, y, z, the intensity and the time of a sweep are "
                "known"
            )
        if 4 in self.columns and not self.earlier_sweeps:
            raise InvalidInputError(
                "its network takes the fifth column of the points' file, which is not the time of a sweep "
                "(LoadPointsFromMultiSweeps); a frame has x, y, z and the intensity alone"
            )
