"""From a frame to boxes in the LiDAR frame, with a trained network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.driving.adapters.projection import to_lidar_boxes
from apps.driving.inference.ground import set_on_ground
from apps.driving.inference.second_stage import SecondStage
from apps.driving.inference.upload import image_at_focal_length
from apps.driving.models import structures
from apps.driving.models.decoding import CameraDecoder, Normalisation
from apps.driving.models.detectors import CameraNetwork, LidarNetwork
from apps.driving.models.ops.boxes import box_iou_rotated, nms_rotated
from apps.driving.models.pillars import ProgramPillars
from apps.driving.types import Boxes3D, CameraInput, Floats, Frame, LidarInput, ObjectClass
from shared.deploy.programs.program import Program

_STRIDE = 32
"""To a multiple of this mmdet3d pads images on the right and below."""
_SAME_PLACE = 0.3
"""Boxes that overlap from above by this much are one object."""
_WITHIN = 0.5
"""So are boxes of different classes when this much of the smaller lies in the larger: no pedestrian stands in a car."""
_OWN_VEHICLE_M = 0.5
"""The LiDAR lies in a box, or so near to it, only where that is the box of its own vehicle."""
_AHEAD_M = -5.0
"""A network that looks further back than this looks all round by itself."""
_OVERLAP_M = 2.56
"""One that looks ahead and about sees so much of the other half: what stands beside the LiDAR is seen whole."""


class Detector(Protocol):
    """Finds objects in a frame; boxes from the best score down. ``sensor`` is what it needs of the frame.

    ``program`` computes its dense network; None where mmdet3d's own modules do.
    """

    @property
    def sensor(self) -> Literal["lidar", "camera"]: ...

    @property
    def input(self) -> LidarInput | CameraInput: ...

    @property
    def program(self) -> Program | None: ...

    def detect(self, frame: Frame) -> Boxes3D: ...


@dataclass(frozen=True, slots=True)
class LidarDetector:
    """A LiDAR network. One that looks ahead sees a frame that shows all round once more, turned about.

    Boxes of a network of ours are set on the ground, and one that holds the LiDAR is left out: it is the vehicle that
    carries it. Those of an imported network are its own. A ``second_stage`` corrects what is found. ``detect`` is its
    two steps, one after the other: ``compute``, ``corrected``.
    """

    network: ProgramPillars | LidarNetwork
    input: LidarInput
    device: str = "cpu"
    program: Program | None = None
    second_stage: SecondStage | None = None

    @property
    def sensor(self) -> Literal["lidar"]:
        return "lidar"

    @property
    def earlier_sweeps(self) -> int:
        """How many sweeps before a frame's own the network learnt from."""
        return self.network.layout.earlier_sweeps if isinstance(self.network, LidarNetwork) else 0

    def detect(self, frame: Frame) -> Boxes3D:
        return self.corrected(self.compute(frame), frame)

    @torch.inference_mode()
    def compute(self, frame: Frame) -> Boxes3D:
        """What the network finds, before ``corrected``."""
        assert frame.points_lidar_m is not None
        points = self.network.layout.points(frame) if isinstance(self.network, LidarNetwork) else frame.points_lidar_m
        if not self._looks_twice(frame):
            return _boxes(*self._look(points), self.input.classes)
        ahead = self._look(points, _OVERLAP_M)
        about = points.copy()
        about[:, :2] *= -1
        boxes, scores, labels = self._look(about, _OVERLAP_M)
        boxes = torch.cat([-boxes[:, :2], boxes[:, 2:6], structures.wrap(boxes[:, 6:] + torch.pi)], dim=1)
        both = [torch.cat(pair) for pair in zip(ahead, (boxes, scores, labels), strict=True)]
        return _boxes(*_unique(both[0], both[1], both[2], 0.01), self.input.classes)

    def corrected(self, found: Boxes3D, frame: Frame) -> Boxes3D:
        """The boxes that the network found in a frame, on the ground and corrected by the second stage."""
        points = frame.points_lidar_m
        assert points is not None
        if not isinstance(self.network, LidarNetwork):
            found = self._standing(found, points)
        return found if self.second_stage is None else self.second_stage.refined(found, points)

    def in_range(self, frame: Frame, boxes: Boxes3D) -> NDArray[np.bool_]:
        """(N,) which of the boxes have their centre where a frame such as this is looked at."""
        x, y, _, *end = self.input.range_m
        along, across = boxes.centre_lidar_m[:, 0], boxes.centre_lidar_m[:, 1]
        if self._looks_twice(frame):
            along = np.abs(along)
            x, end[0] = 0.0, end[0] - _OVERLAP_M
        return np.asarray((along >= x) & (along < end[0]) & (across >= y) & (across < end[1]))

    def _looks_twice(self, frame: Frame) -> bool:
        return frame.all_round and self.input.range_m[0] >= _AHEAD_M

    def _standing(self, found: Boxes3D, points: Floats) -> Boxes3D:
        at_sensor = found.centre_lidar_m * np.array([0, 0, 1], np.float32)
        grown = replace(found, size_m=found.size_m + 2 * np.float32(_OWN_VEHICLE_M))
        found = found.take(~np.diagonal(grown.inside(at_sensor)))
        placed = set_on_ground(found.array, points)
        return replace(found, centre_lidar_m=placed[:, :3], size_m=placed[:, 3:6])

    def _look(self, points: Floats, back_m: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """What the network finds from ``back_m`` behind the start of its range; its far end is as much nearer."""
        x, y, z, *end = self.input.range_m
        seen = replace(self.input, range_m=(x - back_m, y, z, end[0] - back_m, end[1], end[2])).crop(points)
        if not len(seen):
            return torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.long)
        seen[:, 0] += back_m
        boxes, scores, labels = (part.cpu() for part in self.network.predict(torch.from_numpy(seen).to(self.device)))
        place = torch.cat([boxes[:, :1] - back_m, boxes[:, 1:6], structures.wrap(boxes[:, 6:])], dim=1)
        return place, scores, labels


class Images(NamedTuple):
    """Images of a frame that are padded alike, as the network takes them: (B, 3, H, W), the numbers of their cameras,
    and the factors by which their width and height were resized."""

    image_B3HW: Tensor
    cameras: tuple[int, ...]
    scales: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class CameraDetector:
    """FCOS3D on every camera of a frame, each brought to the focal length that the network knows.

    ``detect`` is its three steps, one after the other: ``prepare``, ``compute``, ``boxes``.
    """

    program: Program
    input: CameraInput
    device: str = "cpu"
    colours: Normalisation = field(default_factory=Normalisation)
    decode: CameraDecoder = field(default_factory=CameraDecoder)

    @property
    def sensor(self) -> Literal["camera"]:
        return "camera"

    def detect(self, frame: Frame) -> Boxes3D:
        prepared = self.prepare(frame)
        return self.boxes(frame, prepared, self.compute(prepared))

    @torch.inference_mode()
    def prepare(self, frame: Frame) -> list[Images]:
        """The frame's images on the device, resized and normalised."""
        focal_px = self.input.training_focal_px
        resized = [image_at_focal_length(camera, focal_px, self.device) for camera in frame.cameras.values()]
        # A batch is padded to its largest image, and the padding takes part in GroupNorm's mean: images that are padded
        # alike go together, so that what is found in one does not depend on the others.
        return [
            Images(
                self.colours([resized[n][0] for n in numbers]), tuple(numbers), tuple(resized[n][1] for n in numbers)
            )
            for numbers in _padded_alike([image for image, _ in resized])
        ]

    @torch.inference_mode()
    def compute(self, prepared: Sequence[Images]) -> list[dict[str, Tensor]]:
        """The network's maps of them."""
        return [self.program({"image": images.image_B3HW}) for images in prepared]

    @torch.inference_mode()
    def boxes(self, frame: Frame, prepared: Sequence[Images], computed: Sequence[Mapping[str, Tensor]]) -> Boxes3D:
        """The boxes in the maps, in the frame's LiDAR frame."""
        cameras = list(frame.cameras.values())
        boxes, scores, labels = [], [], []
        for images, maps in zip(prepared, computed, strict=True):
            for place, (number, scale) in enumerate(zip(images.cameras, images.scales, strict=True)):
                found = self.decode(maps, place, torch.from_numpy(cameras[number].intrinsics).float(), scale)
                boxes_N7, scores_N, labels_N = (part.cpu() for part in found)
                mount = cameras[number].lidar_to_camera
                boxes.append(torch.from_numpy(to_lidar_boxes(boxes_N7.numpy(), mount)))
                scores.append(scores_N)
                labels.append(labels_N)
        # The head suppresses at an overlap of 0.8; two cameras, or two levels, may still name one object twice.
        return _boxes(*_unique(torch.cat(boxes), torch.cat(scores), torch.cat(labels), 0.1), self.input.classes)


@dataclass(frozen=True, slots=True)
class PublicCameraDetector:
    """A camera network of mmdet3d's own configurations on every camera of a frame, each image as it is."""

    network: CameraNetwork
    input: CameraInput
    device: str = "cpu"
    program: Program | None = None

    @property
    def sensor(self) -> Literal["camera"]:
        return "camera"

    @torch.inference_mode()
    def detect(self, frame: Frame) -> Boxes3D:
        boxes, scores, labels = [], [], []
        for camera in frame.cameras.values():
            found = [part.cpu() for part in self.network.predict(camera, self.device)]
            boxes.append(torch.from_numpy(to_lidar_boxes(found[0].numpy(), camera.lidar_to_camera)))
            scores.append(found[1])
            labels.append(found[2])
        # An object that two cameras see is found twice.
        return _boxes(*_unique(torch.cat(boxes), torch.cat(scores), torch.cat(labels), 0.1), self.input.classes)


def _padded_alike(images_3HW: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the images, those together that become equally large when they are padded."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, image in enumerate(images_3HW):
        height, width = image.shape[1:]
        alike[-(-height // _STRIDE), -(-width // _STRIDE)].append(number)
    return list(alike.values())


def shown_boxes(found: Boxes3D, least: Mapping[str, float] | float) -> Boxes3D:
    """What a person is shown of ``found``: from the ``least`` score of each class (or of all) up, one box an object.

    The networks suppress within a class alone, so that a pole may be a pedestrian and a cyclist at once. Average
    precision is taken of all boxes, as the protocols ask.
    """
    assert found.scores is not None
    limits = [least.get(name, 0.0) if isinstance(least, Mapping) else least for name in found.names]
    found = found.take(found.scores >= np.array(limits, np.float32))
    assert found.scores is not None
    same = _same_object(found)
    kept = np.ones(len(found), bool)
    best_first = np.argsort(-found.scores, kind="stable")
    for place, index in enumerate(best_first):
        if kept[index]:
            later = best_first[place + 1 :]
            kept[later[same[index, later]]] = False
    return found.take(kept)


def _same_object(found: Boxes3D) -> np.ndarray:
    """(N, N): whether two boxes, seen from above, are in one place."""
    plane = torch.from_numpy(found.array[:, [0, 1, 3, 4, 6]])
    of_both, of_first = torch.zeros(2, len(plane) ** 2)
    box_iou_rotated(plane, plane, of_both)
    box_iou_rotated(plane, plane, of_first, mode_flag=1)
    of_first_NN = of_first.reshape(len(plane), len(plane))
    of_smaller = torch.maximum(of_first_NN, of_first_NN.T).numpy()
    names = np.array(found.names)
    differ = names[:, None] != names[None]
    return np.asarray((of_both.reshape(of_smaller.shape).numpy() >= _SAME_PLACE) | (differ & (of_smaller >= _WITHIN)))


def _unique(boxes_N7: Tensor, scores_N: Tensor, labels_N: Tensor, overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """What remains when boxes of one class that overlap from above by more than ``overlap`` yield to the best."""
    kept = []
    for label in torch.unique(labels_N).tolist():
        mine = (labels_N == label).nonzero().squeeze(1)
        plane = boxes_N7[mine][:, [0, 1, 3, 4, 6]]
        kept.append(mine[nms_rotated(plane, scores_N[mine], mine, plane, labels_N, overlap, False)])
    chosen = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    return boxes_N7[chosen], scores_N[chosen], labels_N[chosen]


def _boxes(boxes_N7: Tensor, scores_N: Tensor, labels_N: Tensor, classes: tuple[ObjectClass, ...]) -> Boxes3D:
    """The boxes from the best score down."""
    boxes, scores, labels = boxes_N7.float().numpy(), scores_N.numpy(), labels_N.numpy()
    kept = np.nonzero(np.isfinite(boxes).all(axis=1))[0]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Boxes3D(
        centre_lidar_m=boxes[kept, :3],
        size_m=boxes[kept, 3:6],
        yaw=structures.wrap(torch.from_numpy(boxes[kept, 6])).numpy(),
        names=tuple(classes[label].name for label in labels[kept]),
        scores=scores[kept].astype(np.float32),
    )
