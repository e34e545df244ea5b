"""PaAno: a small convolutional encoder of patches, learnt on a series' own beginning (Park and Kang, ICLR 2026).

There is no pre-training. Patches next to each other shall lie close together in the embedding, and far from the
batch's least similar patch (triplet loss, margin 0.5, cosine distances); for the first tenth of the steps the encoder
also tells whether one patch follows another (pretext loss). The score of a patch is the mean cosine distance to the 3
nearest of a memory bank: a tenth of the training patches, chosen by k-means.

After the paper, but for its size: a quarter of the channels, and fewer and smaller steps, so that one core learns a
series in seconds; the paper's 0.3 million parameters take it minutes.
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
_MARGIN, _RADIUS, _OTHERS = 0.5, 2, 5
_NEAREST = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PaAno:
    """Settings. ``patch`` is the number of rows of a patch, ``bank`` the share of the training patches that is kept."""

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
    """(N,) the score of the patch that ends with each row; NaN until ``training_rows``, from which the encoder learns.

    ``values`` (N,) has no missing ones. The same seed gives the same scores on the same machine.
    """
    result = np.full(len(values), np.nan)
    if len(values) <= training_rows or training_rows < 2 * settings.patch:
        return result
    scale = float(values[:training_rows].std()) or 1.0
    scaled = torch.from_numpy((values - values[:training_rows].mean()) / scale).float()
    patches = scaled.unfold(0, settings.patch, 1)
    own = patches[: training_rows - settings.patch + 1]
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = _train(own, settings)
    with torch.inference_mode():
        known = functional.normalize(encoder(own), dim=1)
        bank = _representatives(known, max(_NEAREST, int(settings.bank * len(own))), settings.seed)
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
    number, size = len(patches), min(settings.batch, len(patches))
    for step in range(settings.steps):
        anchors = torch.randperm(number)[:size]
        offsets = torch.randint(1, _RADIUS + 1, (size,)) * (2 * torch.randint(0, 2, (size,)) - 1)
        beside = (anchors + offsets).abs()
        beside = torch.where(beside >= number, anchors - offsets.abs(), beside)
        embedded = encoder(torch.cat([patches[anchors], patches[beside]]))
        anchor, positive = embedded[:size], embedded[size:]
        projected = functional.normalize(encoder.projection(anchor), dim=1)
        target = functional.normalize(encoder.projection(positive), dim=1)
        distance = 1 - projected @ target.T
        farthest = distance.masked_fill(torch.eye(size, dtype=torch.bool), -1.0).max(dim=1).values
        loss = functional.relu(distance.diagonal() - farthest + _MARGIN).mean()
        weight = 1 - step / max(settings.steps / 10, 1)
        if weight > 0:
            loss = loss + weight * _pretext(encoder, patches, anchors, anchor, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return encoder.eval()


def _pretext(encoder: Encoder, patches: Tensor, anchors: Tensor, anchor: Tensor, settings: PaAno) -> Tensor:
    """The loss of telling the patch right before an anchor from others of the batch."""
    there = anchors >= settings.patch
    size = len(anchors)
    others = (torch.arange(size).repeat_interleave(_OTHERS) + torch.randint(1, size, (size * _OTHERS,))) % size
    apart = torch.cat([anchor.repeat_interleave(_OTHERS, dim=0), anchor[others]], dim=1)
    loss = functional.softplus(encoder.follows(apart)).mean()
    if there.any():
        before = encoder(patches[anchors[there] - settings.patch]) if there.sum() > 1 else anchor[there]
        loss = loss + functional.softplus(-encoder.follows(torch.cat([anchor[there], before], dim=1))).mean()
    return loss


def _representatives(embedded: Tensor, number: int, seed: int) -> Tensor:
    """(number, D) of ``embedded`` (N, D) those nearest to the centres of k-means."""
    from sklearn.cluster import MiniBatchKMeans

    if len(embedded) <= number:
        return embedded
    points = embedded.numpy()
    means = MiniBatchKMeans(number, random_state=seed, n_init=1, batch_size=1024).fit(points)
    nearest = (embedded @ torch.from_numpy(means.cluster_centers_).float().T).argmax(dim=0)
    return embedded[sorted(set(nearest.tolist()))]
