"""PaAno: a small convolutional encoder of patches, trained on the beginning of each series (Park and Kang, ICLR 2026).

There is no pre-training. Adjacent patches are pulled together in the embedding and pushed away from the batch's least
similar patch (triplet loss, margin 0.5, cosine distances). For the first tenth of the steps the encoder also classifies
whether one patch follows another (pretext loss). The score of a patch is the mean cosine distance to the 3 nearest in a
memory bank: a tenth of the training patches, chosen by k-means.

As in the paper, except for the size: a quarter of the channels, and fewer and smaller steps, so that one core trains on
a series in seconds; with the paper's 0.3 million parameters it takes minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.finance.types import Floats

_CHANNELS, _KERNELS = (32, 64, 32, 16), (7, 5, 3, 3)
_PROJECTION = 64
_MARGIN, _RADIUS, _NEGATIVES = 0.5, 2, 5
_NEAREST = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PaAno:
    """Settings: ``patch`` is the number of rows of a patch, ``bank`` the share of training patches that is kept."""

    patch: int = 64
    steps: int = 100
    batch: int = 128
    learning_rate: float = 1e-3
    bank: float = 0.1
    seed: int = 0


class Encoder(nn.Module):
    """Patches (B, patch) to embeddings (B, 16); each patch is normalised by its own mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, *_CHANNELS)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(inner, outer, kernel, padding=kernel // 2, bias=False), nn.BatchNorm1d(outer), nn.ReLU()
                )
                for inner, outer, kernel in zip(widths[:-1], widths[1:], _KERNELS, strict=True)
            )
        )
        self.projection = nn.Sequential(
            nn.Linear(_CHANNELS[-1], _PROJECTION), nn.ReLU(), nn.Linear(_PROJECTION, _PROJECTION)
        )
        self.follows = nn.Linear(2 * _CHANNELS[-1], 1)

    def forward(self, patches: Tensor) -> Tensor:
        deviation = patches.std(dim=1, keepdim=True, unbiased=False)
        normalised = (patches - patches.mean(dim=1, keepdim=True)) / (deviation + 1e-5)
        embedding: Tensor = self.blocks(normalised[:, None]).mean(dim=2)
        return embedding


def patch_scores(values: Floats, training_rows: int, settings: PaAno) -> Floats:
    """(N,) the score of the patch that ends at each row; NaN in the first ``training_rows`` rows, which train the
    encoder.

    ``values`` (N,) must have no missing values. The same seed gives the same scores on the same machine.
    """
    result = np.full(len(values), np.nan)
    if len(values) <= training_rows or training_rows < 2 * settings.patch:
        return result
    scale = float(values[:training_rows].std()) or 1.0
    scaled = torch.from_numpy((values - values[:training_rows].mean()) / scale).float()
    patches = scaled.unfold(0, settings.patch, 1)
    training_patches = patches[: training_rows - settings.patch + 1]
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = _train(training_patches, settings)
    with torch.inference_mode():
        training_embeddings = functional.normalize(encoder(training_patches), dim=1)
        bank = _choose_representatives(
            training_embeddings, max(_NEAREST, int(settings.bank * len(training_patches))), settings.seed
        )
        first = training_rows - settings.patch + 1
        for start in range(first, len(patches), 2048):
            embedded = functional.normalize(encoder(patches[start : start + 2048]), dim=1)
            nearest = (embedded @ bank.T).topk(min(_NEAREST, len(bank)), dim=1).values
            rows = start + settings.patch - 1
            result[rows : rows + len(embedded)] = (1 - nearest).mean(dim=1).numpy()
    return result


def _train(patches: Tensor, settings: PaAno) -> Encoder:
    encoder = Encoder().train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.steps, eta_min=settings.learning_rate / 10
    )
    number_of_patches, size = len(patches), min(settings.batch, len(patches))
    for step in range(settings.steps):
        anchors = torch.randperm(number_of_patches)[:size]
        offsets = torch.randint(1, _RADIUS + 1, (size,)) * (2 * torch.randint(0, 2, (size,)) - 1)
        neighbours = (anchors + offsets).abs()
        neighbours = torch.where(neighbours >= number_of_patches, anchors - offsets.abs(), neighbours)
        embedded = encoder(torch.cat([patches[anchors], patches[neighbours]]))
        anchor_embedding, neighbour_embedding = embedded[:size], embedded[size:]
        projected = functional.normalize(encoder.projection(anchor_embedding), dim=1)
        target = functional.normalize(encoder.projection(neighbour_embedding), dim=1)
        distance = 1 - projected @ target.T
        farthest = distance.masked_fill(torch.eye(size, dtype=torch.bool), -1.0).max(dim=1).values
        loss = functional.relu(distance.diagonal() - farthest + _MARGIN).mean()
        weight = 1 - step / max(settings.steps / 10, 1)
        if weight > 0:
            loss = loss + weight * _pretext_loss(encoder, patches, anchors, anchor_embedding, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return encoder.eval()


def _pretext_loss(encoder: Encoder, patches: Tensor, anchors: Tensor, anchor: Tensor, settings: PaAno) -> Tensor:
    """The loss of distinguishing the patch directly before an anchor from other patches of the batch."""
    has_predecessor = anchors >= settings.patch
    size = len(anchors)
    others = (torch.arange(size).repeat_interleave(_NEGATIVES) + torch.randint(1, size, (size * _NEGATIVES,))) % size
    unrelated_pairs = torch.cat([anchor.repeat_interleave(_NEGATIVES, dim=0), anchor[others]], dim=1)
    loss = functional.softplus(encoder.follows(unrelated_pairs)).mean()
    if has_predecessor.any():
        predecessor = (
            encoder(patches[anchors[has_predecessor] - settings.patch])
            if has_predecessor.sum() > 1
            else anchor[has_predecessor]
        )
        loss = (
            loss
            + functional.softplus(-encoder.follows(torch.cat([anchor[has_predecessor], predecessor], dim=1))).mean()
        )
    return loss


def _choose_representatives(embedded: Tensor, number: int, seed: int) -> Tensor:
    """(number, D) the rows of ``embedded`` (N, D) that are nearest to the centres of k-means."""
    from sklearn.cluster import MiniBatchKMeans

    if len(embedded) <= number:
        return embedded
    points = embedded.numpy()
    means = MiniBatchKMeans(number, random_state=seed, n_init=1, batch_size=1024).fit(points)
    nearest = (embedded @ torch.from_numpy(means.cluster_centers_).float().T).argmax(dim=0)
    return embedded[sorted(set(nearest.tolist()))]
