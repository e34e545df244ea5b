"""Fast detection in an image with MONAI's RetinaNetDetector: the same tiles, maps, boxes and suppression.

What MONAI's ``detector(image, use_inferer=True)`` does, and what is spared here: batch normalisation is folded into the
convolutions; anchors are made and decoded for the best candidates alone, not for every position, nor are codes averaged
elsewhere; suppression computes overlaps with the boxes that are kept alone, and a GPU is waited for once. On the same
image in MONAI's tiles the result is MONAI's; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from apps.medical.inference.grid import triple
from apps.medical.inference.marks import Detections, Marks, fetched, joined, no_marks, suppressed
from apps.medical.inference.tiles import Tile, Voxels
from apps.medical.models.boxes import BoxDecoder, decode
from apps.medical.models.dense import Maps
from shared.device import sent
from shared.precision import autocast
from shared.progress import report_each

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector


Codes: TypeAlias = "list[tuple[Voxels, Tensor]]"
"""Box codes (6 A, X', Y', Z') of pieces of a level, and the cell at which each piece begins."""


@torch.inference_mode()
def detect(
    detector: RetinaNetDetector | BoxDecoder,
    image: Tensor,
    tiles: Sequence[Tile],
    *,
    batch: int = 1,
    network: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> Detections:
    """Detections in those ``tiles`` of ``image``, see ``search``."""

    def look(on_host: bool) -> Marks:
        return search(detector, image, tiles, on_host=on_host, batch=batch, network=network, dtype=dtype)

    return fetched(look, image.device)


@torch.inference_mode()
def search(
    detector: RetinaNetDetector | BoxDecoder,
    image: Tensor,
    tiles: Sequence[Tile],
    *,
    on_host: bool,
    batch: int = 1,
    network: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> Marks:
    """The marks in those ``tiles`` of ``image`` (X, Y, Z), values 0..1, on its device; see ``fetched`` for ``on_host``.

    Tiles begin at multiples of the network's strides; ``batch`` or more of one size go through at once. ``network``
    computes the detector's maps, where it is not the detector's own (see ``fold_batch_norm``); it is needed where
    ``detector`` is the decoder of its boxes alone. ``dtype`` is the autocast type of its forward pass, None for fp32;
    boxes are decoded in fp32.
    """
    decoder = detector if isinstance(detector, BoxDecoder) else BoxDecoder.of_detector(detector)
    if network is None:
        assert not isinstance(detector, BoxDecoder)
        network = Maps(detector.network)
    if not tiles:
        return no_marks(image)
    ends = zip(*([a + n for a, n in zip(*tile, strict=True)] for tile in tiles), strict=True)
    sizes = zip(image.shape, decoder.size_divisible, ends, strict=True)
    shape = [max(-(-n // unit) * unit, *reached) for n, unit, reached in sizes]
    maps = _maps(network, image, shape, tiles, batch, dtype)
    return suppressed(decoder, candidates(decoder, maps, list(image.shape), shape), on_host=on_host)


def _maps(
    network: nn.Module,
    image: Tensor,
    shape: Sequence[int],
    tiles: Sequence[Tile],
    batch: int,
    dtype: torch.dtype | None,
) -> list[tuple[Tensor, Codes]]:
    """Logits (A, X', Y', Z') of every level, the mean where tiles overlap, and the box codes of its tiles.

    The image is looked at as one of ``shape``, with zeros beyond its own.
    """
    sums: list[tuple[Tensor, Tensor, Codes]] = []
    for chosen in report_each(list(_chunks(tiles, batch)), "searching, part"):
        size = chosen[0].size
        parts = [image[_window(tile.start, size)] for tile in chosen]
        if all(part.shape == size for part in parts):
            inputs = torch.stack(parts)[:, None]
        else:
            inputs = image.new_zeros((len(chosen), 1, *size))
            for into, part in zip(inputs[:, 0], parts, strict=True):
                into[_window((0, 0, 0), part.shape)] = part
        with autocast(dtype, image.device):
            outputs = network(inputs)
        levels = list(zip(outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :], strict=True))
        for level, (logits, codes) in enumerate(levels):
            strides = [tile // n for tile, n in zip(size, logits.shape[2:], strict=True)]
            if len(sums) == level:
                whole = [n // stride for n, stride in zip(shape, strides, strict=True)]
                sums.append((image.new_zeros((logits.shape[1], *whole)), image.new_zeros((1, *whole)), []))
            total, count, pieces = sums[level]
            for n, tile in enumerate(chosen):
                at = triple(s // stride for s, stride in zip(tile.start, strides, strict=True))
                window = (slice(None), *_window(at, logits.shape[2:]))
                total[window] += logits[n]
                count[window] += 1
                pieces.append((at, codes[n]))
    return [
        (total.div_(count.clamp(min=1)).masked_fill_(count == 0, -torch.inf), pieces) for total, count, pieces in sums
    ]


def select(decoder: BoxDecoder, maps: list[tuple[Tensor, Codes]], size: list[int], shape: list[int]) -> Detections:
    """The best candidates of each level as boxes in the image, without those that overlap better ones."""
    found = candidates(decoder, maps, size, shape)
    return fetched(lambda on_host: suppressed(decoder, found, on_host=on_host), found.boxes.device)


def candidates(decoder: BoxDecoder, maps: list[tuple[Tensor, Codes]], size: list[int], shape: list[int]) -> Marks:
    """The best candidates of each level as boxes in the image."""
    return joined([_of_level(decoder, level, *of_level, size, shape) for level, of_level in enumerate(maps)])


def _of_level(
    decoder: BoxDecoder, level: int, logits: Tensor, codes: Codes, size: list[int], shape: list[int]
) -> Marks:
    anchors_here = sent(decoder.anchors[level], logits.device)
    count = len(anchors_here)
    classes = len(logits) // count
    number, score = _best(logits, decoder.score_threshold, decoder.candidates)
    chosen, label = number // classes, number % classes
    position, anchor = chosen // count, chosen % count
    cells = logits.shape[1:]
    # torch.unravel_index would import torch's compiler.
    row, layer = cells[1] * cells[2], cells[2]
    cell = torch.stack([position // row, position // layer % cells[1], position % layer], 1)
    stride = sent(torch.tensor([n // c for n, c in zip(shape, cells, strict=True)]), cell.device)
    centre = (cell * stride + stride // 2).to(anchors_here.dtype).repeat(1, 2)
    box = decode(_codes_at(codes, anchor, cell), centre + anchors_here[anchor])
    box = torch.minimum(box.clamp(min=0), sent(torch.tensor(size * 2, dtype=box.dtype), box.device))
    valid = (box[:, 3:] >= box[:, :3] + 1).all(dim=1) & (score > decoder.score_threshold)
    return Marks(box.masked_fill(~valid[:, None], 0), score, label, valid)


def _best(logits: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Numbers and scores of the ``most`` best candidates in logits (C, X, Y, Z), best first; on a CPU of those alone
    that are above ``threshold``.

    As MONAI numbers them: by position, then anchor, then class.
    """
    flat, places = logits.flatten(), logits[0].numel()
    on_cpu = flat.device.type == "cpu"
    if on_cpu:
        # NumPy's selection is slow where most values are equal, as they are where no tile looked: it is given the good
        # ones alone, and what is a little worse than the threshold, since that may round to it.
        values, least = flat.numpy(), float(torch.logit(torch.tensor(threshold, dtype=torch.float64))) - 1e-3
        good = np.flatnonzero(values > least)
        if len(good) > most:
            good = good[np.argpartition(values[good], len(good) - most)[-most:]]
        index = torch.from_numpy(good)
    else:
        index = flat.topk(min(most, len(flat))).indices
    number = (index % places * len(logits) + index // places).sort()
    score = torch.sigmoid(flat[index[number.indices]])
    order = score.argsort(descending=True, stable=True)
    if on_cpu:
        order = order[score[order] > threshold]
    return number.values[order], score[order]


def _codes_at(pieces: Codes, anchor: Tensor, cell: Tensor) -> Tensor:
    """The codes (n, 6) of anchors (n,) at cells (n, 3), in fp32: the mean of all pieces that hold the cell."""
    total, count = torch.zeros(len(cell), 6, device=cell.device), torch.zeros(len(cell), 1, device=cell.device)
    for start, codes in pieces:
        size = codes.shape[1:]
        within = [one - first for one, first in zip(cell.unbind(1), start, strict=True)]
        inside = [one.clamp(0, n - 1) for one, n in zip(within, size, strict=True)]
        beyond = (torch.stack(within, 1) != torch.stack(inside, 1)).any(dim=1, keepdim=True)
        found = codes.reshape(-1, 6, *size)[anchor, :, inside[0], inside[1], inside[2]]
        total += found.float().masked_fill(beyond, 0)
        count += ~beyond
    return total / count


def _window(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))


def _chunks(tiles: Sequence[Tile], batch: int) -> Iterator[list[Tile]]:
    """Neighbours in the list of one size, at least ``batch`` at a time where there are so many."""
    for _, same in groupby(tiles, key=lambda tile: tile.size):
        items = list(same)
        for part in np.array_split(np.arange(len(items)), max(1, len(items) // batch)):
            yield [items[n] for n in part]
