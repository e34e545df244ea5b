"""Overlap and suppression of axis-aligned and rotated boxes, with the signatures of ``mmcv._ext``.

Rotated boxes are x, y of the centre, width, height and an angle in radians that turns x towards y.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PAIRS = 1 << 17
_ROUNDS = 16
_BLOCK = 128
_TOLERANCE = 1e-9


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
) -> Tensor:
    """Indices that greedy suppression of rotated boxes (N, 5 or more) keeps, best first.

    A box goes when its overlap with a kept one reaches the threshold. As in mmcv's CPU operator, labels do not count:
    boxes of different labels suppress each other.
    """
    order = scores.sort(0, descending=True)[1]
    if not len(order):
        return order
    sorted_N5 = boxes[order, :5].double()
    alive = torch.arange(len(order), device=order.device)
    kept = []
    while len(alive):
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
    return order[torch.cat(kept)]


def kept_rotated(sorted_N5: Tensor, valid_N: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """(N,) which boxes greedy suppression keeps, best first, of those that are ``valid``; () whether that is certain.

    What ``nms_rotated`` keeps, with every pair compared and no value read on the host, so that a GPU never waits and
    the kernels can be captured in a graph. For some hundred boxes. It is not certain where a box hangs on more than
    ``_ROUNDS`` others, each beaten by the one before.
    """
    count = len(sorted_N5)
    earlier, later = torch.triu_indices(count, count, 1, device=sorted_N5.device).unbind(0)
    overlap = _paired_iou(sorted_N5[earlier], sorted_N5[later]).float()
    hits = torch.zeros(count * count, dtype=torch.bool, device=sorted_N5.device)
    hits = hits.scatter(0, earlier * count + later, overlap >= iou_threshold).view(count, count)
    kept = valid_N
    # Whether a box stays is settled once all better ones are; what a round leaves as it was is what is sought.
    for _ in range(_ROUNDS):
        before, kept = kept, valid_N & ~(hits & kept[:, None]).any(0)
    return kept, (kept == before).all()


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


def _corners(boxes_P5: Tensor) -> Tensor:
    """(P, 4, 2) corners in order around the box."""
    half = boxes_P5[:, None, 2:4] / 2 * boxes_P5.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    cosine, sine = boxes_P5[:, 4:].cos(), boxes_P5[:, 4:].sin()
    x = half[..., 0] * cosine - half[..., 1] * sine + boxes_P5[:, :1]
    y = half[..., 0] * sine + half[..., 1] * cosine + boxes_P5[:, 1:2]
    return torch.stack([x, y], dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points_PK2: Tensor, boxes_P5: Tensor) -> Tensor:
    """(P, K) whether points lie in the box, its edge included."""
    delta = points_PK2 - boxes_P5[:, None, :2]
    cosine, sine = boxes_P5[:, 4:].cos(), boxes_P5[:, 4:].sin()
    along = (delta[..., 0] * cosine + delta[..., 1] * sine).abs() * 2
    across = (delta[..., 1] * cosine - delta[..., 0] * sine).abs() * 2
    slack = _TOLERANCE * (1 + boxes_P5[:, 2:4].amax(dim=1, keepdim=True))
    return (along <= boxes_P5[:, 2:3] + slack) & (across <= boxes_P5[:, 3:4] + slack)


def _paired_iou(a_P5: Tensor, b_P5: Tensor, *, over_first: bool = False) -> Tensor:
    """(P,) overlaps in float64.

    The intersection of two convex polygons has for corners those of each that lie in the other, and the crossings
    of their edges; sorted about their centre they give its area (shoelace formula). Boxes with shared edges are
    covered by the corners alone, so identical boxes overlap by 1.
    """
    a, b = a_P5.double(), b_P5.double()
    # About the first centre, so that far boxes lose no digits.
    origin = a[:, :2].clone()
    a, b = a.clone(), b.clone()
    a[:, :2] -= origin
    b[:, :2] -= origin
    corners_a, corners_b = _corners(a), _corners(b)
    edges_a, edges_b = corners_a.roll(-1, 1) - corners_a, corners_b.roll(-1, 1) - corners_b
    determinant = _cross(edges_a[:, :, None], edges_b[:, None])
    delta = corners_b[:, None] - corners_a[:, :, None]
    lengths = edges_a.norm(dim=-1)[:, :, None] * edges_b.norm(dim=-1)[:, None]
    parallel = determinant.abs() <= _TOLERANCE * lengths
    divisor = torch.where(parallel, torch.ones_like(determinant), determinant)
    t = _cross(delta, edges_b[:, None]) / divisor
    u = _cross(delta, edges_a[:, :, None]) / divisor
    crossing = ~parallel & (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    crossings = corners_a[:, :, None] + t[..., None] * edges_a[:, :, None]

    points = torch.cat([corners_a, corners_b, crossings.flatten(1, 2)], dim=1)
    valid = torch.cat([_inside(corners_a, b), _inside(corners_b, a), crossing.flatten(1)], dim=1)
    number = valid.sum(1)
    centre = (points * valid[..., None]).sum(1) / number.clamp(min=1)[:, None]
    some = points.gather(1, valid.float().argmax(1)[:, None, None].expand(-1, 1, 2))
    points = torch.where(valid[..., None], points, some) - centre[:, None]
    around = torch.atan2(points[..., 1], points[..., 0]).argsort(dim=1)
    points = points.gather(1, around[..., None].expand_as(points))
    intersection = _cross(points, points.roll(-1, 1)).sum(1).abs() / 2
    intersection = torch.where(number > 2, intersection, torch.zeros_like(intersection))

    area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    whole = area_a if over_first else area_a + area_b - intersection
    return torch.where(whole > 1e-14, intersection / whole.clamp(min=1e-14), torch.zeros_like(whole)).clamp(0, 1)
