"""How the detectors learn and are scored: mmdet3d's own losses, and average precision by the distance of centres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.driving.models import structures
from apps.driving.models.positives import PositiveCounter, divisor_of
from shared.data.dataset import Batch
from shared.engine.task import WeightedLoss

if TYPE_CHECKING:
    from shared.engine.task import Loss

_PADDED_TO = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarTask:
    """No settings."""

    def build(self) -> LidarDetection:
        return LidarDetection()


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraTask:
    """``reach_factor`` widens the distance for a match: depth from one image is coarse."""

    reach_factor: float = 2.0

    def build(self) -> CameraDetection:
        return CameraDetection(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxTask:
    """How much the losses of the box and of its being turned about count beside that of the score."""

    box_weight: float = 2.0
    about_weight: float = 1.0

    def build(self) -> BoxCorrection:
        return BoxCorrection(self)


class LidarDetection:
    """mmdet3d's anchor head on sweeps: its loss, its prediction, and how many anchors are positive."""

    def prepare(self, model: nn.Module) -> None:
        """Looks at the detector that is to be trained, before it is wrapped, and has it train faster."""
        from apps.driving.models.targets import use_nearby_targets

        detector: Any = model
        self._count = PositiveCounter(detector)
        scatter = detector.middle_encoder
        self._shape = (scatter.in_channels, scatter.ny, scatter.nx)
        use_nearby_targets(detector.bbox_head)
        if next(detector.parameters()).device.type == "cpu":
            # Convolutions are a tenth faster with the channels innermost; the values are the same but for rounding.
            detector.to(memory_format=torch.channels_last)

    def count(self, batch: Batch) -> dict[str, float]:
        """The weight of each loss of a batch."""
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
    """mmdet3d's monocular head on images: its loss and its prediction."""

    def __init__(self, settings: CameraTask) -> None:
        self.settings = settings

    def prepare(self, model: nn.Module) -> None:
        """Looks at the detector that is to be trained, before it is wrapped."""
        self._count = PositiveCounter(model)

    def count(self, batch: Batch) -> dict[str, float]:
        """The weight of each loss of a batch."""
        data = structures.camera_data(batch["images"], batch["intrinsics"], batch)
        # As mmdet3d's preprocessor pads them: to the largest, and to multiples of 32.
        sides = [[-(-side // _PADDED_TO) * _PADDED_TO for side in image.shape[1:]] for image in batch["images"]]
        height, width = (max(image) for image in zip(*sides, strict=True))
        shape, device = (len(sides), 3, height, width), batch["images"][0].device
        counted = self._count(shape, data["data_samples"], device)
        return {name: value if name == "loss_cls" else value - len(sides) for name, value in counted.items()}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return dict(self._losses(model, batch))

    def _losses(self, model: nn.Module, batch: Batch) -> dict[str, WeightedLoss]:
        found, counted = losses(model, structures.camera_data(batch["images"], batch["intrinsics"], batch))
        # The head divides the loss of the class by the positives and the images, the others by the positives.
        positives = counted - len(batch["images"])
        return {
            name: WeightedLoss(value, counted if name == "loss_cls" else positives) for name, value in found.items()
        }

    def evaluate(self, model: nn.Module, batch: Batch, scores: DetectionScores) -> None:
        # The head decodes into pixels while it evaluates and into strides while it trains; its loss expects strides.
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
    """mmdet3d's losses by name, those of several levels added up, and what the loss of the class is divided by.

    ``model`` may be wrapped for several processes.
    """
    detector: Any = getattr(model, "module", model)
    data = detector.data_preprocessor(data, training=True)
    with divisor_of(detector.bbox_head) as divisors:
        found = model(data["inputs"], data["data_samples"], mode="loss")
    added = {
        name: value if isinstance(value, Tensor) else torch.stack([level.mean() for level in value]).sum()
        for name, value in found.items()
        if "loss" in name
    }
    return added, divisors[0]


@dataclass
class DetectionScores:
    """Average precision by class where a match is a centre near enough in the ground plane.

    As nuScenes matches (Caesar et al., 2020), with the area under the precision envelope over all recalls. ``classes``
    are names in the order of the labels, each with the greatest distance of a match in metres.
    """

    classes: tuple[tuple[str, float], ...] = ()
    frames: dict[int, tuple[NDArray[Any], ...]] = field(default_factory=dict)
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add_loss(self, found: Mapping[str, WeightedLoss]) -> None:
        """Adds the losses of a batch. Kept are, by name, the sum over what a loss counts and how many that were."""
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
        """Adds the frame of number ``index``: where boxes were found, and where objects are."""
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
        """Recall, precision and score at every detection of a class, best score first; None where it does not occur."""
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
        """For each class the score above which F1 is highest; 0.3 where the class does not occur or is never found."""
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
    """(N,) whether a detection takes an object; the best scores choose first, each the nearest object still free."""
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
    """One collection from several."""
    whole, *others = parts
    for other in others:
        whole.merge(other)
    return whole


_PRECISE = torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 4.0])
"""By what metres, logarithms and radians are multiplied for the loss of a box."""
_SMOOTH = 0.3
"""Up to this the loss of a box is square; see ``smooth_l1_loss``."""
_RIGHT = 0.8
"""Of this score on a box is right: it overlaps an object in space by half."""


class BoxCorrection:
    """The second stage on boxes of a detector; batches are those of ``FoundBoxes``.

    Its loss is a mean over all boxes, those without an object having none for the box.
    """

    def __init__(self, settings: BoxTask) -> None:
        self.settings = settings

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model(batch["points"], batch["size"], batch["known"]), batch)

    def _loss(self, found: Tensor, batch: Batch) -> Tensor:
        cross_entropy: Any = nn.functional.binary_cross_entropy_with_logits
        found, meant = found.float(), batch["positive"]
        precise = _PRECISE.to(found.device)
        box = nn.functional.smooth_l1_loss(
            found[:, 1:8] * precise, batch["box_target"] * precise, reduction="none", beta=_SMOOTH
        )
        about = cross_entropy(found[:, 8], batch["flipped"], reduction="none")
        of_boxes = self.settings.box_weight * box.sum(dim=1) + self.settings.about_weight * about
        loss: Tensor = cross_entropy(found[:, 0], batch["score_target"]) + (of_boxes * meant).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, scores: BoxScores) -> None:
        found = model(batch["points"], batch["size"], batch["known"]).float()
        met = batch["positive"] > 0
        off_m = (found[:, 1:4] - batch["box_target"][:, :3])[met].norm(dim=1)
        before_m = batch["box_target"][met, :3].norm(dim=1)
        scores.add(
            len(found) * float(self._loss(found, batch)),
            found[:, 0].cpu().numpy(),
            (batch["score_target"] >= _RIGHT).cpu().numpy(),
            float(off_m.sum()),
            float(before_m.sum()),
            int(met.sum()),
        )

    def scores(self) -> BoxScores:
        return BoxScores()


@dataclass
class BoxScores:
    """Of the boxes seen the loss, how well the score tells those that are right, and how far their centres are off."""

    loss: float = 0.0
    logits: list[NDArray[Any]] = field(default_factory=list)
    right: list[NDArray[Any]] = field(default_factory=list)
    off_m: float = 0.0
    before_m: float = 0.0
    met: int = 0

    def add(
        self, loss: float, logits: NDArray[Any], right: NDArray[Any], off_m: float, before_m: float, met: int
    ) -> None:
        """Adds a batch: sums over its boxes, and over the ``met`` ones that overlap an object."""
        self.loss += loss
        self.logits.append(logits)
        self.right.append(right)
        self.off_m += off_m
        self.before_m += before_m
        self.met += met

    def merge(self, other: BoxScores) -> None:
        self.logits += other.logits
        self.right += other.right
        self.add(other.loss, np.zeros(0), np.zeros(0, bool), other.off_m, other.before_m, other.met)

    def summary(self) -> dict[str, float]:
        """``ap`` is the average precision of the score at telling boxes that overlap an object by half in space."""
        logits = np.concatenate([np.zeros(0), *self.logits])
        right = np.concatenate([np.zeros(0, bool), *self.right])[np.argsort(-logits, kind="stable")]
        found = np.cumsum(right)
        precise = average_precision(found / found[-1], found / np.arange(1, len(found) + 1)) if right.any() else 0.0
        return {
            "loss": self.loss / max(len(logits), 1),
            "ap": precise,
            "centre_m": self.off_m / max(self.met, 1),
            "centre_before_m": self.before_m / max(self.met, 1),
        }
