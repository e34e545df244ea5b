"""Fast detection in an image with MONAI's RetinaNetDetector: the same tiles, maps, boxes and suppression.

What MONAI's ``detector(image, use_inferer=True)`` does, and what is spared here: tiles without lung are not
computed; batch normalisation is folded into the convolutions; anchors are made and decoded for the best candidates
alone, not for every position; suppression computes overlaps with the boxes that are kept alone. On the same image
with no tile left out the result is MONAI's; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from apps.medical.models.boxes import BoxDecoder, decode
from apps.medical.models.dense import Maps
from shared.precision import autocast
from shared.progress import report_each

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector

Tile = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Tiles of ``size`` voxels along x, y, z; neighbours share ``margin`` voxels. ``batch`` or more go through at once.

    Size and margin must be whole multiples of the network's strides, so that neighbours' maps align.
    """

    size: tuple[int, int, int] = (160, 160, 96)
    margin: tuple[int, int, int] = (16, 16, 8)
    batch: int = 2

    def fitted(self, image: Sequence[int], divisible: Sequence[int]) -> Tiling:
        """As few tiles as these for an image of that size, and each as small as the image allows."""
        sizes = []
        for length, tile, shared, unit in zip(image, self.size, self.margin, divisible, strict=True):
            count = max(1, -(-(length - shared) // (tile - shared)))
            sizes.append(-(-(length + (count - 1) * shared) // (count * unit)) * unit)
        return replace(self, size=(sizes[0], sizes[1], sizes[2]))

    def starts(self, image: Sequence[int]) -> list[Tile]:
        """Where tiles begin in an image at least as large as a tile, in MONAI's order."""
        axes = []
        for length, tile, shared in zip(image, self.size, self.margin, strict=True):
            interval = max(tile - shared, 1)
            count = -(-(length - tile) // interval) + 1
            axes.append([min(n * interval, length - tile) for n in range(count)])
        return [(x, y, z) for x, y, z in product(*axes)]


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes (n, 6) in voxels of the image, scores (n,) and numbers of classes (n,), best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.inference_mode()
def detect(
    detector: RetinaNetDetector | BoxDecoder,
    image: Tensor,
    tiling: Tiling,
    *,
    network: nn.Module | None = None,
    skip: set[Tile] | None = None,
    dtype: torch.dtype | None = None,
) -> Detections:
    """Detections in ``image`` (X, Y, Z), values 0..1, on its device; tiles that begin at ``skip`` are left out.

    ``network`` computes the detector's maps, where it is not the detector's own (see ``fold_batch_norm``); it is needed
    where ``detector`` is the decoder of its boxes alone. ``dtype`` is the autocast type of its forward pass, None for
    fp32; boxes are decoded in fp32.
    """
    decoder = detector if isinstance(detector, BoxDecoder) else BoxDecoder.of_detector(detector)
    if network is None:
        assert not isinstance(detector, BoxDecoder)
        network = Maps(detector.network)
    size = [-(-n // d) * d for n, d in zip(image.shape, decoder.size_divisible, strict=True)]
    shape = [max(n, tile) for n, tile in zip(size, tiling.size, strict=True)]
    maps = _maps(network, image, shape, tiling, skip or set(), dtype)
    if not maps:
        none = torch.zeros(0, dtype=torch.long, device=image.device)
        return Detections(image.new_zeros((0, 6)), image.new_zeros(0), none)
    return select(decoder, maps, list(image.shape), shape)


def _maps(
    network: nn.Module,
    image: Tensor,
    shape: Sequence[int],
    tiling: Tiling,
    skip: set[Tile],
    dtype: torch.dtype | None,
) -> list[tuple[Tensor, Tensor]]:
    """Logits (A, X', Y', Z') and box codes (6 A, ...) of every level; the mean where tiles overlap.

    The image is looked at as one of ``shape``, with zeros beyond its own.
    """
    starts = [start for start in tiling.starts(shape) if start not in skip]
    sums: list[tuple[Tensor, Tensor, Tensor]] = []
    for chosen in report_each(list(_chunks(starts, tiling.batch)), "searching, part"):
        tiles = image.new_zeros((len(chosen), 1, *tiling.size))
        for tile, start in zip(tiles[:, 0], chosen, strict=True):
            part = image[_window(start, tiling.size)]
            tile[_window((0, 0, 0), part.shape)] = part
        with autocast(dtype, image.device):
            outputs = network(tiles)
        levels = list(zip(outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :], strict=True))
        for level, (logits, codes) in enumerate(levels):
            strides = [tile // n for tile, n in zip(tiling.size, logits.shape[2:], strict=True)]
            if len(sums) == level:
                whole = [n // stride for n, stride in zip(shape, strides, strict=True)]
                empty = [image.new_zeros((channels, *whole)) for channels in (logits.shape[1], codes.shape[1], 1)]
                sums.append((empty[0], empty[1], empty[2]))
            for n, start in enumerate(chosen):
                at = tuple(s // stride for s, stride in zip(start, strides, strict=True))
                window = (slice(None), *_window(at, logits.shape[2:]))
                for total, part in zip(sums[level], (logits[n], codes[n], 1.0), strict=True):
                    total[window] += part
    merged = []
    for logits, codes, count in sums:
        seen = count.clamp(min=1)
        merged.append(((logits / seen).masked_fill_(count == 0, -torch.inf), codes / seen))
    return merged


def select(decoder: BoxDecoder, maps: list[tuple[Tensor, Tensor]], size: list[int], shape: list[int]) -> Detections:
    """The best candidates of each level as boxes in the image, without those that overlap better ones."""
    boxes, scores, labels = [], [], []
    for level, (logits, codes) in enumerate(maps):
        anchors_here = decoder.anchors[level].to(codes)
        count = len(anchors_here)
        classes = len(logits) // count
        # MONAI numbers candidates by position, then anchor, then class.
        score = torch.sigmoid(logits.permute(1, 2, 3, 0).reshape(-1))
        above = torch.nonzero(score > decoder.score_threshold).squeeze(1)
        best, order = score[above].topk(min(decoder.candidates, len(above)))
        chosen, label = above[order] // classes, above[order] % classes
        position, anchor = chosen // count, chosen % count
        cells = logits.shape[1:]
        # torch.unravel_index would import torch's compiler.
        row, layer = cells[1] * cells[2], cells[2]
        index = torch.stack([position // row, position // layer % cells[1], position % layer], 1)
        stride = torch.tensor([n // c for n, c in zip(shape, cells, strict=True)], device=index.device)
        centre = (index * stride + stride // 2).to(codes).repeat(1, 2)
        code = codes.reshape(count, 6, -1)[anchor, :, position]
        box = decode(code, centre + anchors_here[anchor])
        limit = torch.tensor(size * 2, device=box.device, dtype=box.dtype)
        box = torch.minimum(box.clamp(min=0), limit)
        whole = (box[:, 3:] >= box[:, :3] + 1).all(dim=1)
        boxes.append(box[whole])
        scores.append(best[whole])
        labels.append(label[whole])
    joined, values, classes_of = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    # Classes are moved apart, so that a box suppresses none of another class.
    apart = joined + classes_of[:, None] * (joined.max() + 1 if len(joined) else 0)
    kept = suppress(apart, values, decoder.overlap, decoder.detections)
    return Detections(joined[kept], values[kept], classes_of[kept])


def suppress(boxes: Tensor, scores: Tensor, most_overlap: float, most: int) -> Tensor:
    """Indices of boxes (n, 6), best first, none of which overlaps a better one by more than ``most_overlap`` (IoU)."""
    order = torch.sort(scores, descending=True, stable=True).indices
    ranked = boxes[order].float().cpu().numpy()
    low, high = ranked[:, :3], ranked[:, 3:]
    volume = (high - low).prod(axis=1)
    waiting = np.arange(len(ranked))
    kept: list[int] = []
    while len(waiting) and len(kept) < most:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        common = np.minimum(high[waiting], high[best]) - np.maximum(low[waiting], low[best])
        shared = np.maximum(common, 0).prod(axis=1)
        waiting = waiting[shared / (volume[waiting] + volume[best] - shared) <= most_overlap]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]


def _window(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))


def _chunks(items: list[Tile], size: int) -> Iterator[list[Tile]]:
    """At least ``size`` at a time: on one thread torch convolves a single small image several times slower."""
    count = max(1, len(items) // size)
    for part in np.array_split(np.arange(len(items)), count):
        if len(part):
            yield [items[n] for n in part]
