"""Places objects in streets, junctions, car parks and open roads, in road coordinates.

s runs along the road, v to its left, in metres; the LiDAR is at s = 0 in the right half of the road. Nothing overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.synth import surroundings
from apps.driving.datasets.synth.casting import Floats, Ground
from apps.driving.datasets.synth.road_users import cyclist, pedestrian, vehicle
from apps.driving.datasets.synth.sensors import Sizes
from apps.driving.datasets.synth.shapes import Shape

KINDS = ("street", "alley", "avenue", "junction", "lot", "open")
KIND_SHARES = (0.33, 0.2, 0.14, 0.14, 0.07, 0.12)

SCATTERED = (
    # kind, number per 80 m of road, maximum distance from its edge
    ("pole", 11, 9),
    ("tree", 18, 22),
    ("street_tree", 7, 12),
    ("conifer", 3, 22),
    ("bush", 9, 9),
    ("trimmed_hedge", 2, 12),
    ("clutter", 3, 9),
    ("container", 1.5, 12),
    ("furniture", 4, 5),
    ("two_wheeler", 2, 4),
    ("boulder", 1.0, 15),
    ("trailer", 0.5, 8),
)
_CLOSE_PROBABILITIES = {
    "thicket": 0.17,
    "trimmed_hedge": 0.12,
    "wall": 0.12,
    "bush": 0.12,
    "street_tree": 0.08,
    "branches": 0.2,
    "conifer": 0.04,
    "pole": 0.06,
    "furniture": 0.03,
    "two_wheeler": 0.02,
    "clutter": 0.02,
    "container": 0.02,
}
"""Objects that are placed close to vehicles, with their probabilities."""
_LEAVES = ("thicket", "trimmed_hedge", "bush", "conifer")
_MIN_GAP_M = 0.12


@dataclass(frozen=True, slots=True)
class PlacedShape:
    """A shape at (x, y) in the LiDAR frame, rotated by ``yaw``."""

    shape: Shape
    x: float
    y: float
    yaw: float


class Street:
    """Collects the shapes on a ground; refuses those that would overlap others."""

    def __init__(
        self, ground: Ground, generator: np.random.Generator, behind: float, max_range: float, sizes: Sizes = "kitti"
    ) -> None:
        self.ground, self.generator, self.sizes = ground, generator, sizes
        self.behind, self.max_range = behind, max_range
        self.placed: list[PlacedShape] = []
        # The area of the vehicle that carries the sensors is taken.
        self._objects = np.array([[0.3, 0.0, 1.3], [-1.2, 0.0, 1.3], [1.6, 0, 1.3]], np.float32)
        self._outlines = self._objects
        self._surroundings = self._vegetation = np.zeros((0, 3), np.float32)

    def put(self, shape: Shape, s: float, v: float, turn: float) -> bool:
        """Places ``shape`` at (s, v), rotated by ``turn`` relative to the road. Returns False if it would overlap.

        Surrounding objects may overlap each other, as hedges do. Shapes with a footprint are soft: only their footprint
        keeps its distance from road users, so their leaves may touch these.
        """
        heading, lateral = self.ground.heading, v + self.ground.offset
        x = float(np.cos(heading) * s - np.sin(heading) * lateral)
        y = float(np.sin(heading) * s + np.cos(heading) * lateral)
        yaw = float((heading + turn + np.pi) % (2 * np.pi) - np.pi)
        return self._place_if_free(shape, x, y, yaw)

    def put_beside(self, item: PlacedShape, shape: Shape, ahead: float, left: float, turn: float) -> bool:
        """Places ``shape`` ahead and to the left (metres) of an object's centre, even if it overlaps that object.

        Returns False if it would overlap another object.
        """
        cosine, sine = np.cos(item.yaw), np.sin(item.yaw)
        x, y = float(item.x + cosine * ahead - sine * left), float(item.y + sine * ahead + cosine * left)
        yaw = float((item.yaw + turn + np.pi) % (2 * np.pi) - np.pi)
        own = _outline(item.shape, item.x, item.y, item.yaw)
        others = self._outlines[~(self._outlines[:, None] == own).all(axis=2).any(axis=1)]
        if _overlap(_outline(shape, x, y, yaw), others):
            return False
        self.placed.append(PlacedShape(shape, x, y, yaw))
        return True

    def _place_if_free(self, shape: Shape, x: float, y: float, yaw: float) -> bool:
        discs, outline = _discs(shape, x, y, yaw), _outline(shape, x, y, yaw)
        if shape.name is not None:
            if _overlap(discs, self._objects, self._surroundings) or _overlap(outline, self._vegetation):
                return False
            self._objects = np.concatenate([self._objects, discs])
            self._outlines = np.concatenate([self._outlines, outline])
        elif shape.footprint is not None:
            if _overlap(outline, self._outlines):
                return False
            self._vegetation = np.concatenate([self._vegetation, outline])
        else:
            if _overlap(discs, self._objects):
                return False
            self._surroundings = np.concatenate([self._surroundings, discs])
        self.placed.append(PlacedShape(shape, x, y, yaw))
        return True

    def parked_row(
        self, v: float, turn: float, spacing: tuple[float, float], share: float, spread: float = 0.15
    ) -> None:
        """Parked vehicles along the road, bumper to bumper or side by side."""
        draw = self.generator
        s = self.behind + draw.uniform(0, 6)
        while s < self.max_range:
            if draw.random() < share:
                name = str(draw.choice(["car", "van", "truck"], p=[0.88, 0.1, 0.02]))
                angle = turn + (np.pi if draw.random() < 0.25 else 0)
                self.put(vehicle(name, draw, self.sizes), s, v + draw.normal() * spread, angle + draw.normal() * 0.03)
            s += draw.uniform(*spacing)

    def traffic(self, v: float, turn: float, gap: float) -> None:
        """Moving vehicles and bicycles in one lane, ``gap`` metres apart on average."""
        draw = self.generator
        s = self.behind + draw.exponential(gap)
        while s < self.max_range:
            name = str(draw.choice(["car", "van", "truck", "cyclist"], p=[0.8, 0.08, 0.05, 0.07]))
            shape = cyclist(draw) if name == "cyclist" else vehicle(name, draw, self.sizes)
            self.put(shape, s, v + draw.normal() * 0.3, turn + draw.normal() * 0.04)
            s += 5 + draw.exponential(gap)

    def people(self, count: int, low: float, high: float) -> None:
        """Pedestrians, alone or in groups, mostly along the road, and a few cyclists."""
        draw = self.generator
        for _ in range(count):
            s, v = draw.uniform(self.behind, min(self.max_range, 55)), draw.choice([-1, 1]) * draw.uniform(low, high)
            turn = draw.choice([0, np.pi]) + draw.normal() * (0.35 if draw.random() < 0.75 else 2)
            if draw.random() < 0.3:
                self.put(cyclist(draw), s, v, turn)
                continue
            for _ in range(int(draw.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
                self.put(pedestrian(draw), s + draw.normal() * 0.7, v + draw.normal() * 0.7, turn + draw.normal() * 0.2)

    def scatter(self, kind: str, count: int, low: float, high: float) -> None:
        """Poles, trees, bushes or clutter beside the road, from ``low`` to ``high`` metres from its axis."""
        make = getattr(surroundings, kind)
        draw = self.generator
        for _ in range(count):
            side = draw.choice([-1, 1])
            self.put(
                make(draw),
                draw.uniform(self.behind, self.max_range),
                side * draw.uniform(low, high),
                draw.uniform(-np.pi, np.pi),
            )

    def trees(self, side: int, distance: float) -> None:
        """A row of trees along one side; their crowns overhang the road and parked vehicles."""
        draw = self.generator
        s, spacing = self.behind + draw.uniform(0, 10), draw.uniform(6, 16)
        while s < self.max_range:
            if draw.random() < 0.85:
                self.put(surroundings.street_tree(draw), s, side * distance + draw.normal() * 0.2, draw.uniform(0, 3))
            s += spacing + draw.normal() * 0.5

    def vegetation(self, side: int, distance: float, share: float, spread: float = 1.2, trimmed: bool = False) -> None:
        """Thickets or hedges along one side, as beside most roads; they hide most of what is behind them."""
        draw = self.generator
        s = self.behind - draw.uniform(0, 4)
        while s < self.max_range:
            length = draw.uniform(3, 9)
            if draw.random() < share:
                shape = surroundings.trimmed_hedge(draw, length) if trimmed else surroundings.thicket(length, draw)
                offset = distance + abs(draw.normal()) * spread + (shape.footprint or shape.size)[1] / 2
                self.put(shape, s + length / 2, side * offset, draw.normal() * 0.06)
            s += length * draw.uniform(0.7, 1.1)

    def barrier(self, side: int, distance: float, share: float) -> None:
        """Guard rails and concrete barriers along one side, in pieces that follow the road."""
        draw = self.generator
        make = surroundings.guard_rail if draw.random() < 0.7 else surroundings.concrete_barrier
        s = self.behind - draw.uniform(0, 10)
        while s < self.max_range:
            length = draw.uniform(8, 20)
            if draw.random() < share:
                self.put(make(length, draw), s + length / 2, side * distance, 0.0)
            s += length + 0.3

    def road_works(self, side: int, distance: float) -> None:
        """Road works: a line of barriers that slowly leaves the kerb, some oblique or doubled, and cones."""
        draw = self.generator
        s, v, veer = draw.uniform(self.behind, 0.6 * self.max_range), distance, draw.normal() * 0.08
        make = surroundings.traffic_cone if draw.random() < 0.3 else surroundings.works_barrier
        for _ in range(int(draw.integers(3, 16))):
            shape = make(draw) if draw.random() < 0.85 else surroundings.traffic_cone(draw)
            askew = draw.normal() * (0.1 if draw.random() < 0.8 else 0.8)
            self.put(shape, s, side * (v + draw.normal() * 0.1), side * veer + askew)
            if draw.random() < 0.15:
                self.put(make(draw), s, side * (v + draw.uniform(0.5, 1.6)), draw.uniform(-np.pi, np.pi))
            step = shape.size[0] + 0.15 + draw.exponential(0.4 if make is surroundings.works_barrier else 2.5)
            s, v = s + step, v + veer * step

    def frontage(self, side: int, distance: float, share: float) -> None:
        """Houses, walls, hedges and fences along one side."""
        draw = self.generator
        s = self.behind - draw.uniform(0, 12)
        while s < self.max_range:
            length = draw.uniform(5, 24)
            if draw.random() < share:
                offset = distance + abs(draw.normal()) * 1.5
                turn = draw.normal() * 0.02 + (0 if side < 0 else np.pi)
                if draw.random() < 0.45:
                    depth = draw.uniform(5, 10)
                    self.put(surroundings.house(length, depth, draw), s + length / 2, side * (offset + depth / 2), turn)
                else:
                    self.put(surroundings.wall(length, draw), s + length / 2, side * offset, turn)
            s += length + draw.exponential(2.0)


def lay_out(
    kind: str, ground: Ground, generator: np.random.Generator, behind: float, max_range: float, sizes: Sizes = "kitti"
) -> list[PlacedShape]:
    """A scene of ``kind`` from ``behind`` to ``max_range`` metres along the road, with vehicles of ``sizes``."""
    street = Street(ground, generator, behind, max_range, sizes)
    draw, half = generator, ground.half_width
    span = (max_range - behind) / 80
    if kind == "street":
        lane = half - 2.2
        share = draw.uniform(0.2, 0.95)
        for side in (-1, 1):
            if draw.random() < 0.8:
                slanted = draw.random() < 0.15
                turn, spacing = (np.pi / 2, (2.4, 3.2)) if slanted else (0.0, (5.2, 7.0))
                street.parked_row(side * (half - (1.0 if not slanted else -0.5)), turn, spacing, share)
        street.traffic(-lane * 0.4, 0, draw.uniform(15, 60))
        street.traffic(lane * 0.45, np.pi, draw.uniform(12, 60))
    elif kind == "alley":
        side = draw.choice([-1, 1])
        street.parked_row(side * (half - 0.95), 0, (5.0, 9.0), draw.uniform(0, 0.5))
        street.traffic(-side * half * 0.4, 0 if side > 0 else np.pi, draw.uniform(25, 80))
    elif kind == "avenue":
        for lane, turn in ((-1.8, 0.0), (-5.2, 0.0), (1.8, np.pi), (5.2, np.pi)):
            if abs(lane) < half:
                street.traffic(lane, turn, draw.uniform(8, 45))
        if draw.random() < 0.4:
            street.parked_row(-half + 1.0, 0, (5.2, 7), draw.uniform(0.1, 0.7))
    elif kind == "junction":
        cross = draw.uniform(12, 45)
        street.traffic(-1.8, 0, draw.uniform(10, 40))
        street.traffic(1.8, np.pi, draw.uniform(10, 40))
        for lane, turn in ((cross - 1.8, np.pi / 2), (cross + 1.8, -np.pi / 2)):
            for v in np.arange(-35, 35, 7.0):
                if draw.random() < 0.35:
                    street.put(
                        vehicle("car", draw, sizes),
                        lane + draw.normal() * 0.3,
                        v + draw.uniform(-2, 2),
                        turn + draw.normal() * 0.15,
                    )
        for _ in range(3):
            street.put(
                vehicle("car", draw, sizes), cross + draw.normal() * 3, draw.normal() * 4, draw.uniform(-np.pi, np.pi)
            )
    elif kind == "lot":
        for v in (-14.5, -9.0, 9.0, 14.5):
            street.parked_row(v, np.pi / 2 + draw.normal() * 0.02, (2.5, 3.1), draw.uniform(0.2, 0.85))
        street.traffic(0, 0, 50)
    else:
        street.traffic(-1.8, 0, draw.uniform(20, 60))
        street.traffic(1.9, np.pi, draw.uniform(15, 60))
        for _ in range(int(draw.integers(0, 6))):
            v = draw.choice([-1, 1]) * draw.uniform(half + 2, 30)
            street.put(vehicle("car", draw, sizes), draw.uniform(behind, max_range), v, draw.uniform(-np.pi, np.pi))
    edge = half if kind != "lot" else 18.0
    if kind != "open":
        for side in (-1, 1):
            near = draw.uniform(0.2, 1.2) if kind == "alley" else draw.uniform(0.8, 6)
            if draw.random() < 0.6:
                street.vegetation(side, edge + near * 0.6, draw.uniform(0.4, 1.0))
            street.frontage(side, edge + near, draw.uniform(0.6, 1.0))
            # Gardens and houses in a second row are visible through the gaps of the first.
            street.frontage(side, edge + near + draw.uniform(6, 12), draw.uniform(0.5, 1.0))
            if draw.random() < 0.6:
                street.vegetation(side, edge + draw.uniform(6, 20), draw.uniform(0.4, 1.0))
        street.people(int(draw.poisson(4.5 * span)), max(0.6 * half, 2), half + 4)
    else:
        street.frontage(int(draw.choice([-1, 1])), edge + draw.uniform(3, 15), draw.uniform(0.0, 0.5))
        for side in (-1, 1):
            if draw.random() < 0.75:
                street.vegetation(side, edge + draw.uniform(0.8, 9), draw.uniform(0.3, 1.0))
            street.vegetation(side, edge + draw.uniform(12, 25), draw.uniform(0.3, 1.0))
        street.people(int(draw.poisson(1.5 * span)), half * 0.8, half + 3)
    for side in (-1, 1):
        # Hedges and weeds up to the kerb, where vehicles park and drive.
        if draw.random() < {"alley": 0.7, "street": 0.5, "open": 0.4}.get(kind, 0.15):
            close = draw.uniform(-0.4, 0.5)
            street.vegetation(side, edge + close, draw.uniform(0.4, 1.0), 0.15, bool(draw.random() < 0.5))
        if draw.random() < {"lot": 0.3, "open": 0.35}.get(kind, 0.6):
            street.trees(side, edge + draw.uniform(0.3, 2.0))
        if kind == "lot" and draw.random() < 0.4:
            street.trees(side, 11.8)
        if draw.random() < {"avenue": 0.3, "open": 0.35, "junction": 0.1}.get(kind, 0.06):
            street.barrier(side, half + draw.uniform(0.5, 2.5), draw.uniform(0.4, 1.0))
    for kind_name, mean, depth in SCATTERED:
        street.scatter(kind_name, int(draw.poisson(mean * span)), edge + 0.3, edge + depth)
    for side in (-1, 1):
        if draw.random() < 0.15:
            street.road_works(side, half + draw.uniform(-1.5, 1.0))
    add_close_objects(street)
    return street.placed


def add_close_objects(street: Street) -> None:
    """Places objects close to vehicles: hedges that touch them, walls, posts and trunks beside them, branches above.

    In the available frames of KITTI, nuScenes and Argoverse 2, four of ten cars have something within 1.2 m.
    """
    draw = street.generator
    for item in [placed for placed in street.placed if placed.shape.name in ("car", "van", "truck")]:
        if draw.random() < 0.45:
            continue
        for _ in range(int(draw.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
            kind = str(draw.choice(list(_CLOSE_PROBABILITIES), p=list(_CLOSE_PROBABILITIES.values())))
            along = kind in ("thicket", "trimmed_hedge", "wall")
            length = float(draw.uniform(2, 9))
            sizes = (draw, length) if kind == "trimmed_hedge" else (length, draw) if along else (draw,)
            shape = getattr(surroundings, kind)(*sizes)
            half_length, half_width = item.shape.size[0] / 2, item.shape.size[1] / 2
            across = (shape.footprint or shape.size)[1] / 2
            # Leaves may overlap the sides of a vehicle.
            gap = draw.uniform(-0.3, 0.8) if kind in _LEAVES else draw.uniform(0.08, 1.0)
            if kind == "branches":
                ahead, left = draw.uniform(-1, 1) * half_length, draw.uniform(-1, 1) * half_width
                street.put_beside(item, shape, ahead, left, draw.uniform(-np.pi, np.pi))
                continue
            beside, side = draw.random() < 0.75, draw.choice([-1, 1])
            turn = 0.0 if along else float(draw.uniform(-np.pi, np.pi))
            half_depth = across if along else max((shape.footprint or shape.size)[:2]) / 2
            if beside:
                ahead = draw.uniform(-1, 1) * (half_length + (length / 2 if along else 0) * 0.5)
                street.put_beside(
                    item, shape, ahead, side * (half_width + gap + half_depth), turn + draw.normal() * 0.05
                )
            else:
                left = draw.uniform(-1, 1) * half_width
                turn += np.pi / 2 if along else 0.0
                street.put_beside(
                    item, shape, side * (half_length + gap + half_depth), left, turn + draw.normal() * 0.1
                )


def _discs(shape: Shape, x: float, y: float, yaw: float) -> Floats:
    """Discs (N, 3: x, y, radius) that together contain the shape in BEV, with some margin."""
    length, width, _ = shape.size
    count = int(np.clip(np.ceil(length / max(width, 0.3)) * 1.5, 1, 40))
    step = length / count
    along = (np.arange(count) + 0.5) * step - length / 2
    return _discs_along(along, np.hypot(step, width) / 2, x, y, yaw)


def _outline(shape: Shape, x: float, y: float, yaw: float) -> Floats:
    """Discs (N, 3) as wide as the shape's footprint, without its corners: leaves may come close to a vehicle."""
    length, width = sorted(shape.footprint or shape.size[:2], reverse=True)
    if shape.footprint is None and shape.size[0] < shape.size[1]:
        yaw += np.pi / 2
    half = (length - width) / 2
    along = np.linspace(-half, half, 1 + int(np.ceil(4 * half / max(width, 0.3))))
    return _discs_along(along, width / 2, x, y, yaw)


def _discs_along(along: NDArray[np.floating], radius: float, x: float, y: float, yaw: float) -> Floats:
    return np.stack([x + np.cos(yaw) * along, y + np.sin(yaw) * along, np.full(len(along), radius)], 1).astype(
        np.float32
    )


def _overlap(discs: Floats, *others: Floats) -> bool:
    """Whether a disc comes within ``_MIN_GAP_M`` of one of ``others``."""
    other_discs = np.concatenate(others)
    distance = np.hypot(discs[:, None, 0] - other_discs[None, :, 0], discs[:, None, 1] - other_discs[None, :, 1])
    return bool((distance < discs[:, None, 2] + other_discs[None, :, 2] + _MIN_GAP_M).any())
