"""How the detector learns, and how it is scored on patches while it does."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.medical.metrics.froc import Mark, Truth, froc, sensitivity_at
from apps.medical.models.inference import select
from shared.data.dataset import Batch

if TYPE_CHECKING:
    from shared.engine.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionTask:
    """MONAI's detection losses: cross-entropy on hard negatives and smooth L1 on boxes, added."""

    box_weight: float = 1.0

    def build(self) -> Task:
        return NoduleDetection(self)


@dataclass(slots=True)
class PatchScores:
    """Losses and marks of the patches seen. Patches are numbered as they come in on each process."""

    loss: float = 0.0
    patches: int = 0
    marks: list[Mark] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)

    def merge(self, other: PatchScores) -> None:
        moved = str(self.patches)
        self.marks += [Mark(f"{moved}/{mark.scan}", mark.centre_mm, mark.score) for mark in other.marks]
        self.truths += [Truth(f"{moved}/{t.scan}", t.centre_mm, t.diameter_mm) for t in other.truths]
        self.loss += other.loss
        self.patches += other.patches

    def summary(self) -> dict[str, float]:
        curve = froc(self.marks, self.truths, scans=self.patches)
        return {
            "loss": self.loss / max(self.patches, 1),
            "sensitivity_at_quarter": sensitivity_at(curve, 0.25),
            "sensitivity_at_1": sensitivity_at(curve, 1.0),
        }


class NoduleDetection:
    """The task over a RetinaNetDetector; a batch holds ``image`` (B, 1, X, Y, Z) and ``boxes``, a list of (n, 6)."""

    def __init__(self, settings: DetectionTask) -> None:
        self.settings = settings

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        image: Tensor = batch["image"]
        with warnings.catch_warnings():
            # MONAI warns of every image without nodules; here they are meant.
            warnings.filterwarnings("ignore", message="No anchor is matched")
            losses = model(image, self._targets(batch))
        return self._weighted(losses, image.device)

    @torch.no_grad()
    def evaluate(self, model: Any, batch: Batch, scores: PatchScores) -> None:
        image: Tensor = batch["image"]
        targets = self._targets(batch)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No anchor is matched")
            torch.manual_seed(0)
            maps = model.network(image)
            model.generate_anchors(image, maps)
            levels = [level.shape[2:].numel() for level in maps[model.cls_key]]
            flat = {key: model._reshape_maps(maps[key]) for key in (model.cls_key, model.box_reg_key)}
            losses = model.compute_loss(flat, targets, model.anchors, levels)
            size = list(image.shape[2:])
            heads = list(zip(maps[model.cls_key], maps[model.box_reg_key], strict=True))
            found = [
                select(model, [(cls[n].float(), box[n].float()) for cls, box in heads], size, size)
                for n in range(len(image))
            ]
        loss = torch.stack([value.float() for value in self._weighted(losses, image.device).values()]).sum()
        scores.loss += float(loss) * len(image)
        for target, detection in zip(targets, found, strict=True):
            scan = str(scores.patches)
            scores.patches += 1
            for centre, size in _centres_and_sizes(target["box"]):
                scores.truths.append(Truth(scan, centre, size))
            values = detection.scores.cpu().tolist()
            for (centre, _), score in zip(_centres_and_sizes(detection.boxes), values, strict=True):
                scores.marks.append(Mark(scan, centre, score))

    def scores(self) -> PatchScores:
        return PatchScores()

    def _targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        device = batch["image"].device
        return [
            {"box": boxes, "label": torch.zeros(len(boxes), dtype=torch.long, device=device)}
            for boxes in batch["boxes"]
        ]

    def _weighted(self, losses: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        # A batch without nodules has a box loss of nought, and MONAI leaves it on the CPU.
        return {
            "classification": losses["classification"],
            "boxes": losses["box_regression"].to(device) * self.settings.box_weight,
        }


def _centres_and_sizes(boxes: Tensor) -> list[tuple[tuple[float, float, float], float]]:
    """Centre and size of boxes (n, 6) in voxels, scaled so that a voxel's height counts as on the default grid."""
    corners = boxes.float().cpu().numpy().astype(np.float64) * np.array([0.703125, 0.703125, 1.25] * 2)
    middle = (corners[:, :3] + corners[:, 3:]) / 2
    size = np.mean(corners[:, 3:5] - corners[:, :2], axis=1)
    return [(tuple(m), float(s)) for m, s in zip(middle.tolist(), size, strict=True)]
