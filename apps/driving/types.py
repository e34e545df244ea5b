"""The canonical data of the driving application: frames, cameras, 3D boxes, and what a network takes in and looks for.

Frames of reference. ``lidar``: metres, x forward, y left, z up, origin at the LiDAR. ``camera``: metres, x right,
y down, z forward (OpenCV). Yaw is about z of the LiDAR frame, counter-clockwise from x, in radians in [-pi, pi).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError
from shared.recipe import InputSpec

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes3D:
    """N oriented boxes in the LiDAR frame.

    ``centre_lidar_m`` (N, 3) is the gravity centre, ``size_m`` (N, 3) length, width, height, ``yaw`` (N,) radians.
    ``names`` are class names of the data set's own vocabulary, lower case; ``scores`` (N,) in [0, 1] or None for truth.
    ``truncation``, ``occlusion`` and ``box_2d`` (N, 4: left, top, right, bottom in pixels of the first camera) are
    those of KITTI object labels; NaN and -1 where unknown. ``point_counts`` (N,) says how many LiDAR returns came from
    the object; boxes with hardly any cannot be found by LiDAR.
    """

    centre_lidar_m: Floats
    size_m: Floats
    yaw: Floats
    names: tuple[str, ...]
    scores: Floats | None = None
    truncation: Floats | None = None
    occlusion: NDArray[np.int64] | None = None
    box_2d: Floats | None = None
    point_counts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def array(self) -> Floats:
        """(N, 7): x, y, z of the gravity centre, length, width, height, yaw."""
        return np.concatenate([self.centre_lidar_m, self.size_m, self.yaw[:, None]], axis=1)

    def corners_lidar_m(self) -> Floats:
        """(N, 8, 3) corners: bottom face counter-clockwise from front left, then the top face in the same order."""
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float32) / 2
        plane = self.size_m[:, None, :2] * signs
        cosine, sine = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        x = plane[..., 0] * cosine - plane[..., 1] * sine + self.centre_lidar_m[:, None, 0]
        y = plane[..., 0] * sine + plane[..., 1] * cosine + self.centre_lidar_m[:, None, 1]
        half = self.size_m[:, None, 2:3] / 2
        bottom = np.concatenate(
            [x[..., None], y[..., None], self.centre_lidar_m[:, None, 2:3] - half + 0 * x[..., None]], -1
        )
        top = bottom + np.concatenate([np.zeros_like(bottom[..., :2]), np.broadcast_to(2 * half, x.shape + (1,))], -1)
        return np.concatenate([bottom, top], axis=1)

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """The boxes that ``index`` (a mask (N,) or indices) chooses, with all that is known of them."""
        chosen = np.arange(len(self))[index]
        fields: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[chosen]
            for name in (
                "centre_lidar_m",
                "size_m",
                "yaw",
                "scores",
                "truncation",
                "occlusion",
                "box_2d",
                "point_counts",
            )
        }
        return replace(self, names=tuple(self.names[i] for i in chosen), **fields)

    def inside(self, points_lidar_m: Floats) -> NDArray[np.bool_]:
        """(N, M): whether each of M points (their first three columns) lies in each box, faces included."""
        offset = points_lidar_m[None, :, :3] - self.centre_lidar_m[:, None]
        cosine, sine = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        half = self.size_m[:, None] / 2
        within: NDArray[np.bool_] = (
            (np.abs(offset[..., 0] * cosine + offset[..., 1] * sine) <= half[..., 0])
            & (np.abs(offset[..., 1] * cosine - offset[..., 0] * sine) <= half[..., 1])
            & (np.abs(offset[..., 2]) <= half[..., 2])
        )
        return within

    @classmethod
    def empty(cls) -> Self:
        return cls(
            centre_lidar_m=np.zeros((0, 3), np.float32),
            size_m=np.zeros((0, 3), np.float32),
            yaw=np.zeros(0, np.float32),
            names=(),
            scores=np.zeros(0, np.float32),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """What was found in a frame: boxes from the best score down, the model that found them, remarks on the sweep."""

    boxes: Boxes3D
    model: str
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What a notebook shows: a line for the frame, one for each box."""
        boxes = self.boxes
        scores = np.ones(len(boxes)) if boxes.scores is None else boxes.scores
        lines = [
            f"  {name} {score:.2f} at {x:.1f}, {y:.1f}, {z:.1f} m, {length:.1f} x {width:.1f} x {height:.1f} m, "
            f"yaw {yaw:.2f}"
            for name, score, (x, y, z, length, width, height, yaw) in zip(boxes.names, scores, boxes.array, strict=True)
        ]
        return "\n".join([f"{len(boxes)} boxes by {self.model}", *self.remarks, *lines])


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A calibrated image: ``image_HWC`` uint8 RGB, ``intrinsics`` (3, 3), ``lidar_to_camera`` (4, 4) rigid.

    ``reference_offset_m`` (3,): where the origin of the frame in which KITTI writes its labels (the rectified reference
    camera) lies in this camera's frame. Zero where the labels are in this camera's own frame.
    """

    image_HWC: NDArray[np.uint8]
    intrinsics: Floats
    lidar_to_camera: Floats
    reference_offset_m: Floats = field(default_factory=lambda: np.zeros(3, np.float32))

    def __post_init__(self) -> None:
        image = self.image_HWC
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InvalidInputError(
                f"image_HWC is {image.dtype} of shape {image.shape}; give uint8 of shape (height, width, 3), RGB"
            )

    @property
    def looks_ahead(self) -> bool:
        """Whether its axis is within 45 degrees of the LiDAR's x."""
        return bool(self.lidar_to_camera[2, 0] > np.sqrt(0.5))


def left_to_right(cameras: Mapping[str, Camera]) -> dict[str, Camera]:
    """The cameras as they are laid out for people: those that look ahead from left to right, then those behind, the
    left one first: nuScenes' FRONT_LEFT, FRONT, FRONT_RIGHT, BACK_LEFT, BACK, BACK_RIGHT."""

    def place(name: str) -> tuple[bool, float]:
        ahead, left = cameras[name].lidar_to_camera[2, :2]
        behind = bool(ahead < 0)
        azimuth = float(np.arctan2(left, ahead))
        return behind, azimuth % (2 * np.pi) if behind else -azimuth

    return {name: cameras[name] for name in sorted(cameras, key=place)}


_NEAR_M, _SHARE_BEHIND = 5.0, 0.1


def _four_columns(points: Any) -> Floats:
    """Points (N, 4) as float32, one after the other in memory; refuses another shape."""
    found: Floats = np.ascontiguousarray(points, np.float32)
    if found.ndim != 2 or found.shape[1] != 4:
        zeros = "; zeros do where the intensity is not known" if found.shape[1:] == (3,) else ""
        raise InvalidInputError(
            f"points_lidar_m has the shape {found.shape}; give (N, 4): x, y, z in metres and intensity in [0, 1]{zeros}"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierSweep:
    """A sweep ``seconds`` before a frame's own. ``points_lidar_m`` (N, 4) is x, y, z, intensity, in the LiDAR frame of
    that moment; ``to_frame`` (4, 4, rigid) takes it into the frame's: it undoes the vehicle's motion.
    """

    points_lidar_m: Floats
    to_frame: NDArray[np.float64]
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_lidar_m", _four_columns(self.points_lidar_m))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One moment of a vehicle: a LiDAR sweep, cameras, and boxes where the truth is known.

    ``points_lidar_m`` (N, 4) is x, y, z, intensity in [0, 1]; None without LiDAR. Other numbers than float32 are
    converted; another shape is refused. ``earlier_sweeps`` are those before it, the latest first, where they are known.
    ``time_ns`` is UTC, or None. ``lidar_to_global`` (4, 4) is rigid; None but of nuScenes, which has a global frame.
    ``remarks`` say what was left out or is doubtful of the files that it was read from.
    """

    name: str
    points_lidar_m: Floats | None
    cameras: Mapping[str, Camera]
    truth: Boxes3D | None = None
    time_ns: int | None = None
    earlier_sweeps: tuple[EarlierSweep, ...] = ()
    ignore_boxes_2d: Mapping[str, Floats] = field(default_factory=dict)
    lidar_to_global: NDArray[np.float64] | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.points_lidar_m is not None:
            object.__setattr__(self, "points_lidar_m", _four_columns(self.points_lidar_m))

    @property
    def all_round(self) -> bool:
        """Whether it shows what lies behind too: of one camera ahead, as KITTI's, only what lies before it is asked."""
        if [camera.looks_ahead for camera in self.cameras.values()] == [True]:
            return False
        if self.points_lidar_m is None:
            return len(self.cameras) > 0
        far = self.points_lidar_m[np.abs(self.points_lidar_m[:, 0]) > _NEAR_M, 0]
        return len(far) > 0 and bool((far < 0).mean() > _SHARE_BEHIND)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectClass:
    """A class of objects that a network looks for.

    ``size_m`` is the mean length, width and height: that of its anchors, and what a camera network's sizes are relative
    to. ``bottom_m`` is the mean height at which its boxes end below, in the LiDAR frame. ``reach_m`` says how far, in
    the ground plane, a detection's centre may lie from the object's for the two to match in a validation's scores.
    """

    name: str
    size_m: tuple[float, float, float]
    bottom_m: float
    reach_m: float = 1.0


KITTI_CLASSES = (
    ObjectClass(name="pedestrian", size_m=(0.8, 0.6, 1.73), bottom_m=-0.6, reach_m=0.5),
    ObjectClass(name="cyclist", size_m=(1.76, 0.6, 1.73), bottom_m=-0.6, reach_m=0.5),
    ObjectClass(name="car", size_m=(3.9, 1.6, 1.56), bottom_m=-1.78, reach_m=1.0),
)
"""Sizes, heights and order of the anchors in mmdet3d's KITTI 3-class PointPillars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarInput(InputSpec):
    """What a LiDAR network sees and looks for.

    ``range_m`` is x, y, z from and to, in the LiDAR frame. ``intensity=False`` shows the network zeros in place of the
    intensity, which differs more between sensors than shapes do. ``own_vehicle_m`` is how far from the LiDAR, along and
    across, returns are those of the vehicle that carries it, and not shown. ``classes`` in the order of the network's
    outputs.
    """

    range_m: tuple[float, float, float, float, float, float] = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
    intensity: bool = True
    own_vehicle_m: tuple[float, float] | None = None
    classes: tuple[ObjectClass, ...] = KITTI_CLASSES

    def crop(self, points_N4: Floats) -> Floats:
        """Points (M, 4) as the network is to see them: those in its range, with or without their intensity."""
        seen = within(points_N4, self.range_m)
        if self.own_vehicle_m is not None:
            along, across = self.own_vehicle_m
            seen &= (np.abs(points_N4[:, 0]) > along) | (np.abs(points_N4[:, 1]) > across)
        points = points_N4.compress(seen, axis=0)
        if not self.intensity:
            points[:, 3] = 0
        return points


CORRECTED = ("pointpillars", "mmdet3d_lidar")
"""The models whose boxes a second stage may correct: those that look at sweeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxInput(LidarInput):
    """What a second stage sees: the boxes that a LiDAR detector finds, each with the points in it and about it.

    ``detector`` is the folder of the detector's artifact, None for the one that ships. Its range, its classes and the
    digest of its weights (``weights``) are filled in when a run begins. Of each box ``points`` points are shown, from
    its faces ``around_m`` to all sides, ``below_m`` and ``above_m``.
    """

    detector: Path | None = None
    weights: str = ""
    points: int = 128
    around_m: float = 0.8
    below_m: float = 0.5
    above_m: float = 0.8

    def __post_init__(self) -> None:
        if not 2 <= self.points <= 256 or not all(
            0 <= margin < 100 for margin in (self.around_m, self.below_m, self.above_m)
        ):
            raise InvalidInputError(
                f"input.points is {self.points}, around_m {self.around_m}, below_m {self.below_m} and above_m "
                f"{self.above_m}; expected 2 to 256 points, and margins of 0 to 100 m"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraInput(InputSpec):
    """What a camera network sees and looks for.

    Images are brought to the focal length ``focal_px``, for monocular depth is learnt for one focal length; None: they
    are seen as they are, as public models are tested, and a camera of another focal length gets wrong depths. ``image``
    is the (height, width) for which the network is exported, multiples of 32. ``classes`` in the order of its outputs.
    """

    image: tuple[int, int] = (384, 1248)
    focal_px: float | None = 721.54
    classes: tuple[ObjectClass, ...] = KITTI_CLASSES

    @property
    def training_focal_px(self) -> float:
        """The focal length of images to learn from; refuses an input that sees them as they are."""
        if self.focal_px is None:
            raise InvalidInputError("input.focal_px is not set: a network learns depth at one focal length; set it")
        return self.focal_px


def within(points_N3: Floats, range_m: tuple[float, ...]) -> NDArray[np.bool_]:
    """(N,) whether x, y, z (the first three columns) lie in a range of x, y, z from and to."""
    inside = np.ones(len(points_N3), bool)
    # Column by column: several times as fast as all three at once.
    for column, low, high in zip(points_N3.T, range_m[:3], range_m[3:], strict=False):
        inside &= (column >= low) & (column < high)
    return inside
