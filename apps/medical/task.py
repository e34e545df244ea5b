"""The training tasks of the detector and of the second stage: their losses and validation scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.medical.inference.pipeline import select
from apps.medical.metrics.froc import Mark, Truth, froc, sensitivity_at
from apps.medical.models.boxes import BoxDecoder
from shared.data.dataset import Batch
from shared.engine.task import WeightedLoss

if TYPE_CHECKING:
    from shared.engine.task import Loss, Task


BELOW_THRESHOLD = -1
"""The index that MONAI's matcher gives to an anchor that matches no box."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionTask:
    """MONAI's detection losses: the sum of cross-entropy with hard negative mining and smooth L1 on boxes."""

    box_weight: float = 1.0

    def build(self) -> Task:
        return NoduleDetection(self)


@dataclass(slots=True)
class PatchScores:
    """Losses and marks of the patches seen. Each process numbers its patches in the order in which it sees them.

    ``losses`` maps the name of a loss to its sum over the elements that it averages, and the number of elements.
    """

    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    patches: int = 0
    marks: list[Mark] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)

    def merge(self, other: PatchScores) -> None:
        prefix = str(self.patches)
        self.marks += [Mark(f"{prefix}/{mark.scan}", mark.centre_mm, mark.score) for mark in other.marks]
        self.truths += [Truth(f"{prefix}/{t.scan}", t.centre_mm, t.diameter_mm) for t in other.truths]
        self.patches += other.patches
        for name, (total, number) in other.losses.items():
            self.add_loss(name, total, number)

    def add_loss(self, name: str, total: float, number: float) -> None:
        previous = self.losses.get(name, (0.0, 0.0))
        self.losses[name] = (previous[0] + total, previous[1] + number)

    def summary(self) -> dict[str, float]:
        curve = froc(self.marks, self.truths, scans=self.patches)
        return {
            "loss": sum(total / max(number, 1) for total, number in self.losses.values()),
            "sensitivity_at_quarter": sensitivity_at(curve, 0.25),
            "sensitivity_at_1": sensitivity_at(curve, 1.0),
        }


class NoduleDetection:
    """The training task of MONAI's RetinaNetDetector.

    A batch holds ``image`` (B, 1, X, Y, Z) in 0..1, ``boxes``, a list of (n, 6) in voxels, ``labels``, a list of
    (n,) class indices, and ``spacing_mm``. Scores do not distinguish classes.
    """

    leaves_parameters_unused = True
    """If no patch of a batch has a nodule, MONAI's box loss is a constant and the box head gets no gradient."""

    def __init__(self, settings: DetectionTask) -> None:
        self.settings = settings
        self._anchors: Anchors | None = None

    def prepare(self, model: nn.Module) -> None:
        """Keeps the model's anchors and matcher, from which ``count`` computes the weights of the losses."""
        self._anchors = Anchors(model)

    @torch.no_grad()
    def count(self, batch: Batch) -> dict[str, float]:
        """The number of anchors that each loss averages over in this batch. Call ``prepare`` first."""
        if self._anchors is None:
            raise RuntimeError("the weights of the losses depend on the model's anchors: call prepare first")
        return self._anchors.count(batch["image"], self._targets(batch))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        image: Tensor = batch["image"]
        with warnings.catch_warnings(), _count_loss_elements(model) as numbers:
            # MONAI warns about each image without nodules; such images are intended here.
            warnings.filterwarnings("ignore", message="No anchor is matched")
            losses = model(image, self._targets(batch))
        return dict(self._means(losses, numbers, image.device))

    @torch.no_grad()
    def evaluate(self, model: Any, batch: Batch, scores: PatchScores) -> None:
        image: Tensor = batch["image"]
        targets = self._targets(batch)
        with torch.random.fork_rng(), warnings.catch_warnings(), _count_loss_elements(model) as numbers:
            warnings.filterwarnings("ignore", message="No anchor is matched")
            torch.manual_seed(0)
            maps = model.network(image)
            model.generate_anchors(image, maps)
            levels = [level.shape[2:].numel() for level in maps[model.cls_key]]
            flat = {key: model._reshape_maps(maps[key]) for key in (model.cls_key, model.box_reg_key)}
            losses = model.compute_loss(flat, targets, model.anchors, levels)
            size = list(image.shape[2:])
            heads = list(zip(maps[model.cls_key], maps[model.box_reg_key], strict=True))
            decoder = BoxDecoder.of_detector(model)
            found = [
                select(decoder, [(cls[n].float(), [((0, 0, 0), box[n])]) for cls, box in heads], size, size)
                for n in range(len(image))
            ]
        for name, loss in self._means(losses, numbers, image.device).items():
            weight = float(loss.weight)
            scores.add_loss(name, float(loss.mean) * weight, weight)
        for target, detection in zip(targets, found, strict=True):
            scan = str(scores.patches)
            scores.patches += 1
            for centre, diameter in _centres_and_sizes(target["box"], batch["spacing_mm"]):
                scores.truths.append(Truth(scan, centre, diameter))
            values = detection.scores.cpu().tolist()
            for (centre, _), score in zip(
                _centres_and_sizes(detection.boxes, batch["spacing_mm"]), values, strict=True
            ):
                scores.marks.append(Mark(scan, centre, score))

    def scores(self) -> PatchScores:
        return PatchScores()

    def _targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        return [{"box": boxes, "label": labels} for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)]

    def _means(
        self, losses: dict[str, Tensor], numbers: dict[str, int], device: torch.device
    ) -> dict[str, WeightedLoss]:
        # The box loss of a batch without nodules is zero, and MONAI leaves it on the CPU.
        boxes = losses["box_regression"].to(device) * self.settings.box_weight
        return {
            "classification": WeightedLoss(losses["classification"], numbers["classification"]),
            "boxes": WeightedLoss(boxes, numbers["boxes"]),
        }


@contextmanager
def _count_loss_elements(model: nn.Module) -> Iterator[dict[str, int]]:
    """Counts the anchors that MONAI's two losses average over: sampled for classification, matched for the boxes."""
    detector: Any = getattr(model, "module", model)
    numbers = {"classification": 0, "boxes": 0}

    def counting_hook(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            numbers[name] += len(inputs[0])

        return hook

    hooks = [
        detector.cls_loss_func.register_forward_pre_hook(counting_hook("classification")),
        detector.box_loss_func.register_forward_pre_hook(counting_hook("boxes")),
    ]
    try:
        yield numbers
    finally:
        for hook in hooks:
            hook.remove()


class Anchors:
    """A detector's anchors for images of any size, and the number of anchors that its losses average over."""

    def __init__(self, model: nn.Module) -> None:
        # MONAI's attributes have no type annotations.
        detector: Any = model
        smallest = torch.zeros((1, 1, *detector.size_divisible), device=next(model.parameters()).device)
        training = model.training
        model.eval()
        with torch.no_grad():
            maps = detector.network.feature_extractor(smallest)
        model.train(training)
        self._detector = detector
        self._strides = [
            [size // cells for size, cells in zip(smallest.shape[2:], level.shape[2:], strict=True)]
            for level in maps.values()
        ]

    def count(self, image: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, float]:
        """Numbers of anchors sampled for classification and matched for the boxes, over a batch (B, 1, X, Y, Z)."""
        cells = [[n // stride for n, stride in zip(image.shape[2:], level, strict=True)] for level in self._strides]
        maps = [image.new_empty((len(image), 1, *level)) for level in cells]
        anchors = self._detector.anchor_generator(image, maps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No anchor is matched")
            matches = self._detector.compute_anchor_matched_idxs(anchors, targets, [math.prod(n) for n in cells])
        sampler = self._detector.fg_bg_sampler
        sampled = matched = 0
        for found in matches:
            positive, negative = torch.where(found >= 0)[0], torch.where(found == BELOW_THRESHOLD)[0]
            sampled_positive = sampler.get_num_pos(positive)
            sampled += sampled_positive + sampler.get_num_neg(negative, sampled_positive)
            matched += len(positive)
        return {"classification": float(sampled), "boxes": float(matched)}


def _centres_and_sizes(
    boxes: Tensor, spacing_mm: tuple[float, float, float]
) -> list[tuple[tuple[float, float, float], float]]:
    """Centre and mean of the two in-plane sides, in mm, of boxes (n, 6) in voxels."""
    corners = boxes.float().cpu().numpy().astype(np.float64) * np.tile(spacing_mm, 2)
    middle = (corners[:, :3] + corners[:, 3:]) / 2
    size = np.mean(corners[:, 3:5] - corners[:, :2], axis=1)
    return [(tuple(m), float(s)) for m, s in zip(middle.tolist(), size, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateTask:
    """Binary cross-entropy on a detector's marks: nodule or false positive."""

    def build(self) -> Task:
        return CandidateClassification()


@dataclass(slots=True)
class CandidateScores:
    """Logits and labels of the marks seen."""

    logits: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)

    def merge(self, other: CandidateScores) -> None:
        self.logits += other.logits
        self.labels += other.labels

    def summary(self) -> dict[str, float]:
        """The mean loss, and the area under the ROC curve (0.5 if only one class was seen)."""
        logits, labels = np.array(self.logits), np.array(self.labels)
        loss = np.mean(np.logaddexp(0, logits) - labels * logits) if len(logits) else 0.0
        positive, negative = np.sort(logits[labels > 0]), np.sort(logits[labels <= 0])
        if not len(positive) or not len(negative):
            return {"loss": float(loss), "auc": 0.5}
        below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
        return {"loss": float(loss), "auc": float(below.mean() / 2 / len(negative))}


class CandidateClassification:
    """The training task of ``CandidateClassifier``; its batches come from ``PackedCandidates``."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(batch["image"], batch["known"])
        return nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, scores: CandidateScores) -> None:
        scores.logits += model(batch["image"], batch["known"]).float().cpu().tolist()
        scores.labels += batch["label"].cpu().tolist()

    def scores(self) -> CandidateScores:
        return CandidateScores()
