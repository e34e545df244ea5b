"""Overlap and suppression of axis-aligned and rotated boxes, with the signatures of ``mmcv._ext``.

Rotated boxes are x, y of the centre, width, height and an angle in radians that turns x towards y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.device import sent
from shared.suppression import suppressed

_PAIRS = 1 << 17
_BLOCK = 128
_TOLERANCE = 1e-9
_PARALLEL = 1e-9
"""Boxes that are turned by less against each other, or against a quarter turn, are parallel."""


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices that greedy suppression keeps, best first. ``offset=1`` counts the last pixel into a box's size."""
    # Imported on use: with it comes torch's compiler, which takes longer to import than a frame to detect in.
    import torchvision

    if offset:
        boxes_N4 = boxes_N4 + boxes_N4.new_tensor([0, 0, offset, offset])
    kept: Tensor = torchvision.ops.nms(boxes_N4, scores_N, iou_threshold)
    return kept


def box_iou_rotated(a_N5: Tensor, b_M5: Tensor, out: Tensor, mode_flag: int = 0, aligned: bool = False) -> None:
    """Writes intersection over union (``mode_flag=0``) or over the area of ``a`` (1) into the flat ``out``.

    All pairs in row order, (N * M,), or with ``aligned`` the pairs of equal index, (N,).
    """
    a, b = a_N5.double(), b_M5.double()
    if aligned:
        first = second = torch.arange(len(a), device=a.device)
    else:
        first, second = _near_pairs(a, b)
    out.zero_()
    for i, j in zip(torch.split(first, _PAIRS), torch.split(second, _PAIRS), strict=True):
        out[i if aligned else i * len(b) + j] = _paired_iou(a[i], b[j], over_first=mode_flag == 1).to(out.dtype)


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    order: Tensor,
    boxes_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
    most: int | None = None,
) -> Tensor:
    """Indices that greedy suppression of rotated boxes (N, 5 or more) keeps, best first; the first ``most`` of them.

    A box goes when its overlap with a kept one reaches the threshold. As in mmcv's CPU operator, labels do not count:
    boxes of different labels suppress each other.
    """
    order = scores.sort(0, descending=True)[1]
    if not len(order):
        return order
    sorted_N5 = boxes[order, :5].double()
    alive = torch.arange(len(order), device=order.device)
    kept: list[Tensor] = []
    while len(alive) and (most is None or sum(map(len, kept)) < most):
        # The best few settle among themselves, then thin out the rest: most pairs are never compared.
        head, alive = alive[:_BLOCK], alive[_BLOCK:]
        head = head[_greedy(*_hits(sorted_N5[head], None, iou_threshold), len(head)).to(head.device)]
        kept.append(head)
        if not len(alive):
            break
        _, beaten = _hits(sorted_N5[head], sorted_N5[alive], iou_threshold)
        stays = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        stays[beaten] = False
        alive = alive[stays]
    return order[torch.cat(kept)[:most]]


def kept_rotated(sorted_N5: Tensor, valid_N: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """(N,) which boxes greedy suppression keeps, best first, of those that are ``valid``; () whether that is certain.

    What ``nms_rotated`` keeps, with every pair compared and no value read on the host, so that a GPU never waits and
    the kernels can be captured in a graph. For some hundred boxes; see ``suppressed`` for when it is not certain.
    """
    count = len(sorted_N5)
    earlier, later = torch.triu_indices(count, count, 1, device=sorted_N5.device).unbind(0)
    overlap = _paired_iou(sorted_N5[earlier], sorted_N5[later]).float()
    hits = torch.zeros(count * count, dtype=torch.bool, device=sorted_N5.device)
    hits = hits.scatter(0, earlier * count + later, overlap >= iou_threshold).view(count, count)
    kept, certain = suppressed(hits, valid_N)
    return kept, certain.all()


def _hits(a_N5: Tensor, b_M5: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Indices (P,) into ``a`` and (P,) into ``b`` of the pairs whose overlap reaches the threshold, in row order.

    Without ``b`` pairs within ``a``, each once, the earlier box first.
    """
    first, second = _near_pairs(a_N5, a_N5 if b_M5 is None else b_M5)
    if b_M5 is None:
        b_M5 = a_N5
        later = first < second
        first, second = first[later], second[later]
    overlaps = [
        _paired_iou(a_N5[i], b_M5[j])
        for i, j in zip(torch.split(first, _PAIRS), torch.split(second, _PAIRS), strict=True)
        if len(i)
    ]
    hit = torch.cat([a_N5.new_zeros(0), *overlaps]).float() >= iou_threshold
    return first[hit], second[hit]


def _greedy(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Which of ``count`` boxes, best first, remain when each that remains removes the later ones that it hits."""
    keep = [True] * count
    for leader, follower in torch.stack([first, second], dim=1).tolist():
        if keep[leader]:
            keep[follower] = False
    return torch.tensor(keep)


def _near_pairs(a_N5: Tensor, b_M5: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (P,) into ``a`` and (P,) into ``b``, in row order, of the pairs whose circumscribed circles meet."""
    radius_a, radius_b = a_N5[:, 2:4].norm(dim=1) / 2, b_M5[:, 2:4].norm(dim=1) / 2
    rows = max(1, (1 << 22) // max(1, len(b_M5)))
    first, second = [a_N5.new_zeros(0, dtype=torch.long)], [a_N5.new_zeros(0, dtype=torch.long)]
    for start in range(0, len(a_N5), rows):
        block = slice(start, start + rows)
        gap = (a_N5[block, None, :2] - b_M5[None, :, :2]).square().sum(-1)
        i, j = (gap <= (radius_a[block, None] + radius_b[None]).square()).nonzero(as_tuple=True)
        first.append(i + start)
        second.append(j)
    return torch.cat(first), torch.cat(second)


def _paired_iou(a_P5: Tensor, b_P5: Tensor, *, over_first: bool = False) -> Tensor:
    """(P,) overlaps in float64.

    By Green's theorem the area of the intersection is an integral along its border, which consists of the parts of
    each box's edges that lie within the other. An edge that both have, in one direction, counts once.
    """
    a, b = a_P5.double(), b_P5.double()
    size_a, size_b = a[:, None, 2:4] / 2, b[:, None, 2:4] / 2
    cosine, sine = _turned(b[:, 4:] - a[:, 4:])
    signs = sent(torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=a.dtype), a.device)
    corners_a, corners_b = size_a * signs, size_b * signs
    turn = torch.stack([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)], dim=1)
    # Where the second lies in the frame of the first, and the first in that of the second.
    cosine_a, sine_a = a[:, 4:].cos(), a[:, 4:].sin()
    apart = b[:, :2] - a[:, :2]
    place = torch.cat(
        [
            apart[:, :1] * cosine_a + apart[:, 1:] * sine_a,
            apart[:, 1:] * cosine_a - apart[:, :1] * sine_a,
        ],
        dim=1,
    )[:, None]
    seen_b = place + corners_b @ turn
    seen_a = (corners_a - place) @ turn.mT
    slack = _TOLERANCE * (1 + torch.maximum(size_a, size_b).amax(dim=2))
    along_b = (corners_b.roll(-1, 1) - corners_b) @ turn
    along_a = (corners_a.roll(-1, 1) - corners_a) @ turn.mT
    share_b = _share_within(seen_b, along_b, size_a, slack, shared=False)
    share_a = _share_within(seen_a, along_a, size_b, slack, shared=True)
    area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    swept = seen_b[..., 0] * along_b[..., 1] - seen_b[..., 1] * along_b[..., 0]
    intersection = area_a * share_a.sum(1) / 4 + (share_b * swept).sum(1) / 2
    # A box without breadth has no area, but edges.
    broad = torch.minimum(size_a, size_b).amin(dim=2)[:, 0] > slack[:, 0]
    intersection = torch.where(broad, intersection.clamp(min=0), torch.zeros_like(intersection))
    whole = area_a if over_first else area_a + area_b - intersection
    return torch.where(whole > 1e-14, intersection / whole.clamp(min=1e-14), torch.zeros_like(whole)).clamp(0, 1)


def _turned(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine; those of a quarter turn where it is one but for ``_PARALLEL``."""
    cosine, sine = angle.cos(), angle.sin()
    aligned, across = sine.abs() <= _PARALLEL, cosine.abs() <= _PARALLEL
    nought = torch.zeros_like(cosine)
    return (
        torch.where(across, nought, torch.where(aligned, cosine.sign(), cosine)),
        torch.where(aligned, nought, torch.where(across, sine.sign(), sine)),
    )


def _share_within(start_PK2: Tensor, along_PK2: Tensor, half_P12: Tensor, slack_P1: Tensor, *, shared: bool) -> Tensor:
    """(P, K) which share of each edge lies within a box about the origin, its halves being ``half``.

    Edges run anticlockwise. One on the box's own border is within if ``shared``, or if it runs the other way.
    """
    level = along_PK2 == 0
    forth = torch.where(level, torch.ones_like(along_PK2), along_PK2)
    far = torch.copysign(half_P12.expand_as(forth), forth)
    enters, leaves = (-far - start_PK2) / forth, (far - start_PK2) / forth
    room = slack_P1[:, None].expand_as(start_PK2)
    if not shared:
        same = torch.stack([-along_PK2[..., 1], along_PK2[..., 0]], dim=-1) * start_PK2 < 0
        room = torch.where(same, -room, room)
    inside = start_PK2.abs() <= half_P12 + room
    enters = torch.where(level, torch.where(inside, 0.0, 2.0).to(enters.dtype), enters).amax(-1).clamp(min=0)
    leaves = torch.where(level, torch.ones_like(leaves), leaves).amin(-1).clamp(max=1)
    return (leaves - enters).clamp(min=0)
