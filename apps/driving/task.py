"""How the detectors are trained and scored: mmdet3d's own losses, and average precision by centre distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.driving.models import structures
from apps.driving.models.positives import PositiveCounter, recorded_divisors
from shared.data.dataset import Batch
from shared.engine.task import WeightedLoss

if TYPE_CHECKING:
    from shared.engine.task import Loss

_PAD_MULTIPLE = 32
"""mmdet3d's preprocessor pads images to the largest of a batch, rounded up to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarTask:
    """No settings."""

    def build(self) -> LidarDetection:
        return LidarDetection()


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraTask:
    """``reach_factor`` enlarges the matching distance, because depth from one image is coarse."""

    reach_factor: float = 2.0

    def build(self) -> CameraDetection:
        return CameraDetection(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxTask:
    """The weights of the box loss and of the heading-flip loss relative to the score loss."""

    box_weight: float = 2.0
    about_weight: float = 1.0

    def build(self) -> BoxCorrection:
        return BoxCorrection(self)


class LidarDetection:
    """mmdet3d's anchor head on sweeps: its loss, its predictions, and the number of positive anchors."""

    def prepare(self, model: nn.Module) -> None:
        """Reads the sizes of the detector to be trained, before it is wrapped, and makes its training faster."""
        from apps.driving.models.targets import use_nearby_targets

        detector: Any = model
        self._count = PositiveCounter(detector)
        scatter = detector.middle_encoder
        self._shape = (scatter.in_channels, scatter.ny, scatter.nx)
        use_nearby_targets(detector.bbox_head)
        if next(detector.parameters()).device.type == "cpu":
            # Convolutions are a tenth faster in channels-last layout; the values are the same except for rounding.
            detector.to(memory_format=torch.channels_last)

    def count(self, batch: Batch) -> dict[str, float]:
        """The weight of each loss for a batch."""
        data = structures.lidar_data(batch["points"], batch["boxes"], batch["labels"])
        device = batch["points"][0].device
        return self._count((len(batch["points"]), *self._shape), data["data_samples"], device)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return dict(self._losses(model, batch))

    def _losses(self, model: nn.Module, batch: Batch) -> dict[str, WeightedLoss]:
        found, positives = losses(model, structures.lidar_data(batch["points"], batch["boxes"], batch["labels"]))
        return {name: WeightedLoss(value, positives) for name, value in found.items()}

    def evaluate(self, model: nn.Module, batch: Batch, scores: DetectionScores) -> None:
        scores.add_loss(self._losses(model, batch))
        found = structures.predict(model, structures.lidar_data(batch["points"]))
        for number, index in enumerate(batch["index"].tolist()):
            boxes, confidence, labels = (part.cpu().numpy() for part in found[number])
            truth = batch["boxes"][number].cpu().numpy(), batch["labels"][number].cpu().numpy()
            scores.add(index, boxes[:, :2], confidence, labels, truth[0][:, :2], truth[1])
        scores.classes = batch["classes"]

    def scores(self) -> DetectionScores:
        return DetectionScores()


class CameraDetection:
    """mmdet3d's monocular head on images: its loss and its predictions."""

    def __init__(self, settings: CameraTask) -> None:
        self.settings = settings

    def prepare(self, model: nn.Module) -> None:
        """Keeps a counter of positives for the detector to be trained, before it is wrapped."""
        self._count = PositiveCounter(model)

    def count(self, batch: Batch) -> dict[str, float]:
        """The weight of each loss for a batch."""
        data = structures.camera_data(batch["images"], batch["intrinsics"], batch)
        sides = [[-(-side // _PAD_MULTIPLE) * _PAD_MULTIPLE for side in image.shape[1:]] for image in batch["images"]]
        height, width = (max(image) for image in zip(*sides, strict=True))
        shape, device = (len(sides), 3, height, width), batch["images"][0].device
        counted = self._count(shape, data["data_samples"], device)
        return {name: value if name == "loss_cls" else value - len(sides) for name, value in counted.items()}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return dict(self._losses(model, batch))

    def _losses(self, model: nn.Module, batch: Batch) -> dict[str, WeightedLoss]:
        found, counted = losses(model, structures.camera_data(batch["images"], batch["intrinsics"], batch))
        # The head divides the class loss by positives plus images, and the other losses by the positives.
        positives = counted - len(batch["images"])
        return {
            name: WeightedLoss(value, counted if name == "loss_cls" else positives) for name, value in found.items()
        }

    def evaluate(self, model: nn.Module, batch: Batch, scores: DetectionScores) -> None:
        # In evaluation mode the head decodes into pixels, in training mode into strides; its loss expects strides.
        detector: Any = model
        detector.bbox_head.train()
        scores.add_loss(self._losses(model, batch))
        detector.bbox_head.eval()
        found = structures.predict(model, structures.camera_data(batch["images"], batch["intrinsics"]))
        for number, index in enumerate(batch["index"].tolist()):
            boxes, confidence, labels = (part.cpu().numpy() for part in found[number])
            truth = batch["boxes_camera"][number].cpu().numpy(), batch["labels"][number].cpu().numpy()
            scores.add(index, boxes[:, [0, 2]], confidence, labels, truth[0][:, [0, 2]], truth[1])
        scores.classes = tuple((name, reach_m * self.settings.reach_factor) for name, reach_m in batch["classes"])

    def scores(self) -> DetectionScores:
        return DetectionScores()


def losses(model: nn.Module, data: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """mmdet3d's losses by name, summed over the levels of the head, and the divisor of the class loss.

    ``model`` may be wrapped for distributed training.
    """
    detector: Any = getattr(model, "module", model)
    data = detector.data_preprocessor(data, training=True)
    with recorded_divisors(detector.bbox_head) as divisors:
        found = model(data["inputs"], data["data_samples"], mode="loss")
    added = {
        name: value if isinstance(value, Tensor) else torch.stack([level.mean() for level in value]).sum()
        for name, value in found.items()
        if "loss" in name
    }
    return added, divisors[0]


@dataclass
class DetectionScores:
    """Average precision by class. A detection matches an object if their centres are close in the ground plane.

    Matching is that of nuScenes (Caesar et al., 2020); average precision is the area under the precision envelope over
    all recalls. ``classes`` has, in the order of the labels, each name and its greatest matching distance in metres.
    """

    classes: tuple[tuple[str, float], ...] = ()
    frames: dict[int, tuple[NDArray[Any], ...]] = field(default_factory=dict)
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add_loss(self, found: Mapping[str, WeightedLoss]) -> None:
        """Adds the losses of a batch: for each name, loss times weight, and the weight."""
        self._add({name: (float(loss.mean) * float(loss.weight), float(loss.weight)) for name, loss in found.items()})

    def _add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        for name, (total, number) in sums.items():
            before = self.losses.get(name, (0.0, 0.0))
            self.losses[name] = (before[0] + total, before[1] + number)

    def add(
        self,
        index: int,
        places_N2: NDArray[Any],
        scores_N: NDArray[Any],
        labels_N: NDArray[Any],
        truth_M2: NDArray[Any],
        truth_labels_M: NDArray[Any],
    ) -> None:
        """Adds frame ``index``: positions, scores, labels of detections; positions, labels of objects."""
        self.frames[index] = (places_N2, scores_N, labels_N, truth_M2, truth_labels_M)

    def merge(self, other: DetectionScores) -> None:
        self.frames |= other.frames
        self.classes = self.classes or other.classes
        self._add(other.losses)

    def summary(self) -> dict[str, float]:
        result = {name: total / max(number, 1) for name, (total, number) in self.losses.items()}
        result["loss"] = sum(result.values())
        precisions = []
        for label, (name, _) in enumerate(self.classes):
            curve = self.curve(label)
            if curve is not None:
                recall, precision, _ = curve
                precisions.append(average_precision(recall, precision))
                result[f"ap_{name}"] = precisions[-1]
        result["map"] = float(np.mean(precisions)) if precisions else 0.0
        return result

    def curve(self, label: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        """Recall, precision and score at each detection of a class, best first; None if the class is absent."""
        ordered = [self.frames[index] for index in sorted(self.frames)]
        objects = sum(int((frame[4] == label).sum()) for frame in ordered)
        if not objects:
            return None
        hits, scores = [], []
        for places, confidence, labels, truth, truth_labels in ordered:
            mine = labels == label
            hits.append(match(places[mine], confidence[mine], truth[truth_labels == label], self.classes[label][1]))
            scores.append(confidence[mine])
        hit, score = np.concatenate(hits), np.concatenate(scores)
        order = np.argsort(-score, kind="stable")
        found = np.cumsum(hit[order])
        return found / objects, found / np.arange(1, len(found) + 1), score[order]

    def thresholds(self) -> dict[str, float]:
        """The score threshold of each class with the highest F1; 0.3 if the class is absent or never detected."""
        result = {}
        for label, (name, _) in enumerate(self.classes):
            result[name] = 0.3
            if (curve := self.curve(label)) is not None and curve[0][-1:].sum() > 0:
                recall, precision, score = curve
                result[name] = round(
                    float(score[np.argmax(2 * recall * precision / np.maximum(recall + precision, 1e-9))]), 4
                )
        return result


def match(places_N2: NDArray[Any], scores_N: NDArray[Any], truth_M2: NDArray[Any], reach_m: float) -> NDArray[np.bool_]:
    """(N,): whether each detection matches an object. Highest score first; each takes the nearest unmatched object."""
    hit = np.zeros(len(places_N2), bool)
    if not len(truth_M2):
        return hit
    away = np.linalg.norm(places_N2[:, None] - truth_M2[None], axis=2)
    for row in np.argsort(-scores_N, kind="stable"):
        nearest = int(away[row].argmin())
        if away[row, nearest] <= reach_m:
            hit[row] = True
            away[:, nearest] = np.inf
    return hit


def average_precision(recall: NDArray[Any], precision: NDArray[Any]) -> float:
    """The area under the precision envelope."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def pool(parts: Sequence[DetectionScores]) -> DetectionScores:
    """Merges several collections into the first one and returns it."""
    merged, *others = parts
    for other in others:
        merged.merge(other)
    return merged


_TARGET_SCALE = torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 4.0])
"""The box loss multiplies metres, logarithms and radians by these."""
_SMOOTH_L1_BETA = 0.3
"""The box loss is quadratic below this; see ``smooth_l1_loss``."""
_CORRECT_SCORE_TARGET = 0.8
"""A box with at least this score target is correct: it overlaps an object with a 3D IoU of at least 0.5."""


class BoxCorrection:
    """The second stage on the boxes of a detector; batches are those of ``FoundBoxes``.

    The loss is a mean over all boxes; a box without an object contributes no box loss.
    """

    def __init__(self, settings: BoxTask) -> None:
        self.settings = settings

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model(batch["points"], batch["size"], batch["known"]), batch)

    def _loss(self, found: Tensor, batch: Batch) -> Tensor:
        cross_entropy: Any = nn.functional.binary_cross_entropy_with_logits
        found, positive = found.float(), batch["positive"]
        scale = _TARGET_SCALE.to(found.device)
        box = nn.functional.smooth_l1_loss(
            found[:, 1:8] * scale, batch["box_target"] * scale, reduction="none", beta=_SMOOTH_L1_BETA
        )
        flip = cross_entropy(found[:, 8], batch["flipped"], reduction="none")
        box_losses = self.settings.box_weight * box.sum(dim=1) + self.settings.about_weight * flip
        loss: Tensor = cross_entropy(found[:, 0], batch["score_target"]) + (box_losses * positive).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, scores: BoxScores) -> None:
        found = model(batch["points"], batch["size"], batch["known"]).float()
        positive = batch["positive"] > 0
        error_m = (found[:, 1:4] - batch["box_target"][:, :3])[positive].norm(dim=1)
        error_before_m = batch["box_target"][positive, :3].norm(dim=1)
        scores.add(
            len(found) * float(self._loss(found, batch)),
            found[:, 0].cpu().numpy(),
            (batch["score_target"] >= _CORRECT_SCORE_TARGET).cpu().numpy(),
            float(error_m.sum()),
            float(error_before_m.sum()),
            int(positive.sum()),
        )

    def scores(self) -> BoxScores:
        return BoxScores()


@dataclass
class BoxScores:
    """The mean loss, how well the score separates correct boxes from others, and the mean error of the centres."""

    loss: float = 0.0
    logits: list[NDArray[Any]] = field(default_factory=list)
    correct: list[NDArray[Any]] = field(default_factory=list)
    error_m: float = 0.0
    error_before_m: float = 0.0
    positives: int = 0

    def add(
        self,
        loss: float,
        logits: NDArray[Any],
        correct: NDArray[Any],
        error_m: float,
        error_before_m: float,
        positives: int,
    ) -> None:
        """Adds a batch: sums over its boxes, and over the ``positives`` among them, those that overlap an object."""
        self.loss += loss
        self.logits.append(logits)
        self.correct.append(correct)
        self.error_m += error_m
        self.error_before_m += error_before_m
        self.positives += positives

    def merge(self, other: BoxScores) -> None:
        self.logits += other.logits
        self.correct += other.correct
        self.add(other.loss, np.zeros(0), np.zeros(0, bool), other.error_m, other.error_before_m, other.positives)

    def summary(self) -> dict[str, float]:
        """``ap`` is the average precision of the score at separating boxes with a 3D IoU of at least 0.5 from others.

        ``centre_m`` is the mean centre error after the correction, ``centre_before_m`` the error before it.
        """
        logits = np.concatenate([np.zeros(0), *self.logits])
        correct = np.concatenate([np.zeros(0, bool), *self.correct])[np.argsort(-logits, kind="stable")]
        found = np.cumsum(correct)
        precise = average_precision(found / found[-1], found / np.arange(1, len(found) + 1)) if correct.any() else 0.0
        return {
            "loss": self.loss / max(len(logits), 1),
            "ap": precise,
            "centre_m": self.error_m / max(self.positives, 1),
            "centre_before_m": self.error_before_m / max(self.positives, 1),
        }
