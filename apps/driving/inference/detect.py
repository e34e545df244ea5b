"""Runs a trained network on a frame and returns boxes in the LiDAR frame."""

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
from apps.driving.types import BEV_COLUMNS, Boxes3D, CameraInput, Floats, Frame, LidarInput, ObjectClass
from shared.deploy.programs.program import Program

_PAD_MULTIPLE = 32
"""mmdet3d pads images on the right and bottom to a multiple of this."""
_SAME_OBJECT_IOU = 0.3
"""Two boxes with at least this BEV IoU are the same object."""
_SAME_OBJECT_CONTAINMENT = 0.5
"""Boxes of different classes are also the same object if at least this share of the smaller lies inside the larger:
no pedestrian stands in a car."""
_OWN_VEHICLE_MARGIN_M = 0.5
"""A box that contains the LiDAR, or comes this close to it, is the vehicle that carries it."""
_FORWARD_ONLY_MIN_X_M = -5.0
"""A network whose range starts behind this x (metres) already covers all directions."""
_PASS_OVERLAP_M = 2.56
"""Each of the two passes, ahead and rotated, extends this far into the other half, so that objects beside the LiDAR are
whole in one of them."""


class Detector(Protocol):
    """Finds objects in a frame; returns boxes sorted by falling score. ``sensor`` is the data it needs from the frame.

    ``program`` computes its dense network; None if mmdet3d's own modules do.
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
    """A LiDAR network. If it covers only the area ahead and the frame covers 360 degrees, it also runs on the frame
    rotated by 180 degrees.

    Boxes of a network trained here are moved onto the ground, and a box around the LiDAR, the vehicle that carries it,
    is dropped. Boxes of an imported network are left unchanged. A ``second_stage`` then refines the boxes. ``detect``
    runs the two steps ``compute`` and ``postprocess``.
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
        """The number of earlier sweeps, besides the frame's own, that the network was trained on."""
        return self.network.layout.earlier_sweeps if isinstance(self.network, LidarNetwork) else 0

    def detect(self, frame: Frame) -> Boxes3D:
        return self.postprocess(self.compute(frame), frame)

    @torch.inference_mode()
    def compute(self, frame: Frame) -> Boxes3D:
        """The network's boxes, before ``postprocess``."""
        assert frame.points_lidar_m is not None
        points = self.network.layout.points(frame) if isinstance(self.network, LidarNetwork) else frame.points_lidar_m
        if not self._needs_second_pass(frame):
            return _to_boxes3d(*self._run_network(points), self.input.classes)
        ahead = self._run_network(points, _PASS_OVERLAP_M)
        rotated = points.copy()
        rotated[:, :2] *= -1
        boxes, scores, labels = self._run_network(rotated, _PASS_OVERLAP_M)
        boxes = torch.cat([-boxes[:, :2], boxes[:, 2:6], structures.wrap(boxes[:, 6:] + torch.pi)], dim=1)
        merged = [torch.cat(pair) for pair in zip(ahead, (boxes, scores, labels), strict=True)]
        return _to_boxes3d(*_suppress_duplicates(merged[0], merged[1], merged[2], 0.01), self.input.classes)

    def postprocess(self, detections: Boxes3D, frame: Frame) -> Boxes3D:
        """The network's boxes in a frame, moved onto the ground and refined by the second stage."""
        points = frame.points_lidar_m
        assert points is not None
        if not isinstance(self.network, LidarNetwork):
            detections = self._postprocess(detections, points)
        return detections if self.second_stage is None else self.second_stage.refine(detections, points)

    def in_range(self, frame: Frame, boxes: Boxes3D) -> NDArray[np.bool_]:
        """(N,) which of the boxes have their centre in the range that the detector covers in such a frame."""
        x, y, _, *end = self.input.range_m
        along, across = boxes.centre_lidar_m[:, 0], boxes.centre_lidar_m[:, 1]
        if self._needs_second_pass(frame):
            along = np.abs(along)
            x, end[0] = 0.0, end[0] - _PASS_OVERLAP_M
        return np.asarray((along >= x) & (along < end[0]) & (across >= y) & (across < end[1]))

    def _needs_second_pass(self, frame: Frame) -> bool:
        return frame.all_round and self.input.range_m[0] >= _FORWARD_ONLY_MIN_X_M

    def _postprocess(self, detections: Boxes3D, points: Floats) -> Boxes3D:
        """The boxes without that of the LiDAR's own vehicle, moved onto the ground."""
        at_sensor = detections.centre_lidar_m * np.array([0, 0, 1], np.float32)
        enlarged = replace(detections, size_m=detections.size_m + 2 * np.float32(_OWN_VEHICLE_MARGIN_M))
        detections = detections.take(~np.diagonal(enlarged.inside(at_sensor)))
        grounded = set_on_ground(detections.array, points)
        return replace(detections, centre_lidar_m=grounded[:, :3], size_m=grounded[:, 3:6])

    def _run_network(self, points: Floats, shift_back_m: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 7), scores (N,) and labels (N,) with the network's range moved back by ``shift_back_m`` metres."""
        x, y, z, *end = self.input.range_m
        cropped = replace(self.input, range_m=(x - shift_back_m, y, z, end[0] - shift_back_m, end[1], end[2])).crop(
            points
        )
        if not len(cropped):
            return torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.long)
        cropped[:, 0] += shift_back_m
        boxes, scores, labels = (part.cpu() for part in self.network.predict(torch.from_numpy(cropped).to(self.device)))
        shifted = torch.cat([boxes[:, :1] - shift_back_m, boxes[:, 1:6], structures.wrap(boxes[:, 6:])], dim=1)
        return shifted, scores, labels


class Images(NamedTuple):
    """Images of a frame that are padded to the same size, as network input (B, 3, H, W); the indices of their cameras;
    and the factors by which their width and height were resized."""

    image_B3HW: Tensor
    cameras: tuple[int, ...]
    scales: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class CameraDetector:
    """FCOS3D on every camera of a frame, each image resized to the focal length that the network was trained at.

    ``detect`` runs the three steps ``prepare``, ``compute`` and ``boxes``.
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
        # A batch is padded to its largest image, and the padding enters GroupNorm's mean. Only images with the same
        # padded size share a batch, so that the boxes of one image do not depend on the others.
        return [
            Images(
                self.colours([resized[n][0] for n in numbers]), tuple(numbers), tuple(resized[n][1] for n in numbers)
            )
            for numbers in _group_by_padded_size([image for image, _ in resized])
        ]

    @torch.inference_mode()
    def compute(self, prepared: Sequence[Images]) -> list[dict[str, Tensor]]:
        """The network's output maps of each batch, by name."""
        return [self.program({"image": images.image_B3HW}) for images in prepared]

    @torch.inference_mode()
    def boxes(self, frame: Frame, prepared: Sequence[Images], computed: Sequence[Mapping[str, Tensor]]) -> Boxes3D:
        """The boxes decoded from the maps, in the LiDAR frame."""
        cameras = list(frame.cameras.values())
        boxes, scores, labels = [], [], []
        for images, maps in zip(prepared, computed, strict=True):
            for index, (number, scale) in enumerate(zip(images.cameras, images.scales, strict=True)):
                decoded = self.decode(maps, index, torch.from_numpy(cameras[number].intrinsics).float(), scale)
                boxes_N7, scores_N, labels_N = (part.cpu() for part in decoded)
                lidar_to_camera = cameras[number].lidar_to_camera
                boxes.append(torch.from_numpy(to_lidar_boxes(boxes_N7.numpy(), lidar_to_camera)))
                scores.append(scores_N)
                labels.append(labels_N)
        # The head suppresses at an IoU of 0.8; two cameras, or two pyramid levels, may still report an object twice.
        return _to_boxes3d(
            *_suppress_duplicates(torch.cat(boxes), torch.cat(scores), torch.cat(labels), 0.1), self.input.classes
        )


@dataclass(frozen=True, slots=True)
class ImportedCameraDetector:
    """An imported mmdet3d camera network on every camera of a frame, each image at its own focal length."""

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
            predicted = [part.cpu() for part in self.network.predict(camera, self.device)]
            boxes.append(torch.from_numpy(to_lidar_boxes(predicted[0].numpy(), camera.lidar_to_camera)))
            scores.append(predicted[1])
            labels.append(predicted[2])
        found = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        # An object that two cameras see is detected twice. The boxes of one camera are those of mmdet3d.
        return _to_boxes3d(*(_suppress_duplicates(*found, 0.1) if len(boxes) > 1 else found), self.input.classes)


def _group_by_padded_size(images_3HW: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the images, grouped by their size after padding."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, image in enumerate(images_3HW):
        height, width = image.shape[1:]
        groups[-(-height // _PAD_MULTIPLE), -(-width // _PAD_MULTIPLE)].append(number)
    return list(groups.values())


def shown_boxes(detections: Boxes3D, min_score: Mapping[str, float] | float) -> Boxes3D:
    """The detections to show to a person: one per object, each with at least ``min_score`` (one value, or one per
    class).

    The networks suppress only within a class, so that a pole may be both a pedestrian and a cyclist. Average precision
    is computed over all boxes, as the protocols require.
    """
    assert detections.scores is not None
    min_scores = [
        min_score.get(name, 0.0) if isinstance(min_score, Mapping) else min_score for name in detections.names
    ]
    detections = detections.take(detections.scores >= np.array(min_scores, np.float32))
    assert detections.scores is not None
    is_same = _same_object_pairs(detections)
    kept = np.ones(len(detections), bool)
    best_first = np.argsort(-detections.scores, kind="stable")
    for rank, index in enumerate(best_first):
        if kept[index]:
            later = best_first[rank + 1 :]
            kept[later[is_same[index, later]]] = False
    return detections.take(kept)


def _same_object_pairs(detections: Boxes3D) -> np.ndarray:
    """(N, N) whether two boxes are the same object, by their overlap in the bird's-eye view."""
    plane = torch.from_numpy(detections.array[:, BEV_COLUMNS])
    iou, over_first = torch.zeros(2, len(plane) ** 2)
    box_iou_rotated(plane, plane, iou)
    box_iou_rotated(plane, plane, over_first, mode_flag=1)
    over_first_NN = over_first.reshape(len(plane), len(plane))
    over_smaller = torch.maximum(over_first_NN, over_first_NN.T).numpy()
    names = np.array(detections.names)
    differ = names[:, None] != names[None]
    return np.asarray(
        (iou.reshape(over_smaller.shape).numpy() >= _SAME_OBJECT_IOU)
        | (differ & (over_smaller >= _SAME_OBJECT_CONTAINMENT))
    )


def _suppress_duplicates(
    boxes_N7: Tensor, scores_N: Tensor, labels_N: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy suppression within each class at a BEV IoU of ``iou_threshold``."""
    kept = []
    for label in torch.unique(labels_N).tolist():
        of_class = (labels_N == label).nonzero().squeeze(1)
        plane = boxes_N7[of_class][:, BEV_COLUMNS]
        kept.append(of_class[nms_rotated(plane, scores_N[of_class], of_class, plane, labels_N, iou_threshold, False)])
    chosen = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    return boxes_N7[chosen], scores_N[chosen], labels_N[chosen]


def _to_boxes3d(boxes_N7: Tensor, scores_N: Tensor, labels_N: Tensor, classes: tuple[ObjectClass, ...]) -> Boxes3D:
    """The boxes with finite values, sorted by falling score."""
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
