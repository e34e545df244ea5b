"""The canonical data of the driving application: frames, cameras, 3D boxes, and the inputs and classes of a network.

Frames of reference. ``lidar``: metres, x forward, y left, z up, origin at the LiDAR. ``camera``: metres, x right,
y down, z forward (OpenCV). Yaw is about z of the LiDAR frame, counter-clockwise from x, in radians in [-pi, pi).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError
from shared.recipe import InputSpec

Floats = NDArray[np.float32]
BEV_COLUMNS = [0, 1, 3, 4, 6]
"""x, y, length, width and yaw among the seven values of a box: its rectangle in the bird's-eye view."""
_Angles = TypeVar("_Angles", NDArray[np.float32], NDArray[np.float64])


def wrap_angle(angle: _Angles) -> _Angles:
    """Angles wrapped into [-pi, pi), in radians."""
    wrapped: _Angles = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    return wrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes3D:
    """N oriented boxes in the LiDAR frame.

    ``centre_lidar_m`` (N, 3) is the gravity centre, ``size_m`` (N, 3) length, width, height, ``yaw`` (N,) radians.
    ``names`` are class names in the data set's own vocabulary, in lower case. ``scores`` (N,) are in [0, 1], or None
    for ground truth. ``truncation``, ``occlusion`` and ``box_2d`` (N, 4: left, top, right, bottom in pixels of the
    first camera) are as in KITTI object labels; NaN and -1 mean unknown. ``point_counts`` (N,) is the number of LiDAR
    returns from the object; LiDAR cannot detect an object that has hardly any.
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
        """The boxes selected by ``index`` (a mask (N,) or indices), with all their attributes."""
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
        """(N, M): whether each of M points (first three columns: x, y, z) lies in each box. Faces count as inside."""
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
    """The result for one frame: boxes with the highest score first, the model that found them, remarks on the sweep."""

    boxes: Boxes3D
    model: str
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What a notebook shows: one line for the frame and one for each box."""
        boxes = self.boxes
        scores = np.ones(len(boxes)) if boxes.scores is None else boxes.scores
        lines = [
            f"  {name} {score:.2f} at {x:.1f}, {y:.1f}, {z:.1f} m, {length:.1f} x {width:.1f} x {height:.1f} m, "
            f"yaw {yaw:.2f}"
            for name, score, (x, y, z, length, width, height, yaw) in zip(boxes.names, scores, boxes.array, strict=True)
        ]
        return "\n".join([f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'} by {self.model}", *self.remarks, *lines])


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A calibrated image: ``image_HWC`` uint8 RGB, ``intrinsics`` (3, 3), ``lidar_to_camera`` (4, 4) rigid.

    ``reference_offset_m`` (3,) is the origin of KITTI's label frame (the rectified reference camera) in this camera's
    frame. It is zero if the labels are in this camera's own frame.
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
    def faces_forward(self) -> bool:
        """Whether the optical axis is within 45 degrees of the LiDAR's x axis."""
        return bool(self.lidar_to_camera[2, 0] > np.sqrt(0.5))


def left_to_right(cameras: Mapping[str, Camera]) -> dict[str, Camera]:
    """The cameras in display order: the forward ones from left to right, then the rear ones, starting at the left. For
    nuScenes: FRONT_LEFT, FRONT, FRONT_RIGHT, BACK_LEFT, BACK, BACK_RIGHT."""

    def place(name: str) -> tuple[bool, float]:
        ahead, left = cameras[name].lidar_to_camera[2, :2]
        behind = bool(ahead < 0)
        azimuth = float(np.arctan2(left, ahead))
        return behind, azimuth % (2 * np.pi) if behind else -azimuth

    return {name: cameras[name] for name in sorted(cameras, key=place)}


_NEAR_M, _MIN_FRACTION_BEHIND = 5.0, 0.1


def _checked_points(points: Any) -> Floats:
    """Points (N, 4) as contiguous float32; raises ``InvalidInputError`` for any other shape."""
    found: Floats = np.ascontiguousarray(points, np.float32)
    if found.ndim != 2 or found.shape[1] != 4:
        zeros = "; use zeros if the intensity is unknown" if found.shape[1:] == (3,) else ""
        raise InvalidInputError(
            f"points_lidar_m has the shape {found.shape}; give (N, 4): x, y, z in metres and intensity in [0, 1]{zeros}"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierSweep:
    """A sweep taken ``seconds`` before the frame's own. ``points_lidar_m`` (N, 4) is x, y, z, intensity in the LiDAR
    frame at that time; ``to_frame`` (4, 4, rigid) transforms it to the frame's LiDAR frame and so undoes the ego
    motion.
    """

    points_lidar_m: Floats
    to_frame: NDArray[np.float64]
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_lidar_m", _checked_points(self.points_lidar_m))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One moment of a vehicle: a LiDAR sweep, camera images, and boxes if the ground truth is known.

    ``points_lidar_m`` (N, 4) is x, y, z, intensity in [0, 1], or None without LiDAR. Other number types are converted
    to float32; other shapes are refused. ``earlier_sweeps`` are the preceding sweeps, if known, with the latest first.
    ``time_ns`` is UTC, or None. ``lidar_to_global`` (4, 4) is rigid, and None except for nuScenes, which has a global
    frame. ``remarks`` say what was skipped or is doubtful in the files that the frame was read from.
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
            object.__setattr__(self, "points_lidar_m", _checked_points(self.points_lidar_m))

    @property
    def all_round(self) -> bool:
        """Whether the frame shows all directions. If its only camera faces forward, as in KITTI, only the area ahead
        counts, so this is False."""
        if [camera.faces_forward for camera in self.cameras.values()] == [True]:
            return False
        if self.points_lidar_m is None:
            return len(self.cameras) > 0
        far = self.points_lidar_m[np.abs(self.points_lidar_m[:, 0]) > _NEAR_M, 0]
        return len(far) > 0 and bool((far < 0).mean() > _MIN_FRACTION_BEHIND)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectClass:
    """A class of objects that a network detects.

    ``size_m`` is the mean length, width and height: the size of the anchors, and the reference for the sizes that a
    camera network predicts. ``bottom_m`` is the mean height of the bottom of the boxes in the LiDAR frame. ``reach_m``
    is the greatest distance between the centres of a detection and an object, in the ground plane, at which validation
    matches them.
    """

    name: str
    size_m: tuple[float, float, float]
    bottom_m: float
    reach_m: float = 1.0


ASSUMED_SIZE_M, ASSUMED_BOTTOM_M = (4.0, 1.8, 1.6), -1.7
"""Size and height of a class whose imported network does not state any, as CenterPoint's: those of a car."""

KITTI_CLASSES = (
    ObjectClass(name="pedestrian", size_m=(0.8, 0.6, 1.73), bottom_m=-0.6, reach_m=0.5),
    ObjectClass(name="cyclist", size_m=(1.76, 0.6, 1.73), bottom_m=-0.6, reach_m=0.5),
    ObjectClass(name="car", size_m=(3.9, 1.6, 1.56), bottom_m=-1.78, reach_m=1.0),
)
"""Sizes, heights and order of the anchors in mmdet3d's KITTI 3-class PointPillars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarInput(InputSpec):
    """The input and the classes of a LiDAR network.

    ``range_m`` is the minimum x, y, z and the maximum x, y, z in the LiDAR frame. With ``intensity=False`` the network
    gets zeros instead of the intensity, which differs more between sensors than shapes do. Returns within
    ``own_vehicle_m`` of the LiDAR (half length, half width) come from the vehicle that carries it and are removed.
    ``classes`` are in the order of the network's outputs.
    """

    range_m: tuple[float, float, float, float, float, float] = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
    intensity: bool = True
    own_vehicle_m: tuple[float, float] | None = None
    classes: tuple[ObjectClass, ...] = KITTI_CLASSES

    def crop(self, points_N4: Floats) -> Floats:
        """The points (M, 4) for the network: those in its range, with the intensity set to zero if it is not used."""
        seen = within(points_N4, self.range_m)
        if self.own_vehicle_m is not None:
            along, across = self.own_vehicle_m
            seen &= (np.abs(points_N4[:, 0]) > along) | (np.abs(points_N4[:, 1]) > across)
        points = points_N4.compress(seen, axis=0)
        if not self.intensity:
            points[:, 3] = 0
        return points


CORRECTABLE_MODELS = ("pointpillars", "mmdet3d_lidar")
"""The models whose boxes a second stage can correct: the LiDAR models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxInput(LidarInput):
    """The input of a second stage: the boxes found by a LiDAR detector, each with the points in and around it.

    ``detector`` is the folder of the detector's artifact; None means the shipped one. The detector's range, its classes
    and the digest of its weights (``weights``) are filled in when a run begins. For each box the network gets
    ``points`` points, from the box enlarged by ``around_m`` on all sides, ``below_m`` and ``above_m``.
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
    """The input and the classes of a camera network.

    Images are scaled to the focal length ``focal_px``, because a network learns monocular depth for one focal length.
    With None they are not scaled, as in the evaluation of public models, and a camera with another focal length gets
    wrong depths. ``image`` is the (height, width) for which the network is exported, in multiples of 32. ``classes``
    are in the order of the network's outputs.
    """

    image: tuple[int, int] = (384, 1248)
    focal_px: float | None = 721.54
    classes: tuple[ObjectClass, ...] = KITTI_CLASSES

    @property
    def training_focal_px(self) -> float:
        """The focal length of training images; raises ``InvalidInputError`` if ``focal_px`` is None."""
        if self.focal_px is None:
            raise InvalidInputError("input.focal_px is not set; training needs one focal length to learn depth: set it")
        return self.focal_px


def within(points_N3: Floats, range_m: tuple[float, ...]) -> NDArray[np.bool_]:
    """(N,): whether x, y, z (the first three columns) lie in ``range_m`` (minimum x, y, z, then maximum x, y, z)."""
    inside = np.ones(len(points_N3), bool)
    # Column by column: several times as fast as all three at once.
    for column, low, high in zip(points_N3.T, range_m[:3], range_m[3:], strict=False):
        inside &= (column >= low) & (column < high)
    return inside
