"""IoU and non-maximum suppression of axis-aligned and rotated boxes, with the signatures of ``mmcv._ext``.

Rotated boxes are x, y of the centre, width, height, and an angle in radians from x towards y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.device import to_device
from shared.suppression import greedy_nms

_PAIRS_PER_BATCH = 1 << 17
_BLOCK = 128
_TOLERANCE = 1e-9
_PARALLEL_TOLERANCE = 1e-9
"""Boxes are treated as parallel or perpendicular if their angles differ from that by less than this, in radians."""


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices that greedy suppression keeps, best first. With ``offset=1`` a box's size includes its last pixel."""
    # Imported on use: it imports torch's compiler, which takes longer than detecting objects in a frame.
    import torchvision

    if offset:
        boxes_N4 = boxes_N4 + boxes_N4.new_tensor([0, 0, offset, offset])
    kept: Tensor = torchvision.ops.nms(boxes_N4, scores_N, iou_threshold)
    return kept


def box_iou_rotated(a_N5: Tensor, b_M5: Tensor, out: Tensor, mode_flag: int = 0, aligned: bool = False) -> None:
    """Writes the IoU (``mode_flag=0``), or the intersection over the area of ``a`` (1), to the flat ``out``.

    ``out`` holds all pairs in row order, (N * M,), or with ``aligned`` the pairs with equal index, (N,).
    """
    a, b = a_N5.double(), b_M5.double()
    if aligned:
        first = second = torch.arange(len(a), device=a.device)
    else:
        first, second = _near_pairs(a, b)
    out.zero_()
    for i, j in zip(torch.split(first, _PAIRS_PER_BATCH), torch.split(second, _PAIRS_PER_BATCH), strict=True):
        out[i if aligned else i * len(b) + j] = _paired_iou(a[i], b[j], over_first=mode_flag == 1).to(out.dtype)


def nms_rotated(
    boxes: Tensor,
    scores: Tensor,
    order: Tensor,
    boxes_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
    max_boxes: int | None = None,
) -> Tensor:
    """Indices that greedy suppression of rotated boxes (N, 5 or more) keeps, best first, at most ``max_boxes``.

    A box is removed if its IoU with a kept box reaches the threshold. As in mmcv's CPU operator, labels are ignored:
    boxes with different labels suppress each other.
    """
    order = scores.sort(0, descending=True)[1]
    if not len(order):
        return order
    sorted_N5 = boxes[order, :5].double()
    alive = torch.arange(len(order), device=order.device)
    kept: list[Tensor] = []
    while len(alive) and (max_boxes is None or sum(map(len, kept)) < max_boxes):
        # The best few suppress each other, and those kept suppress the rest: most pairs are never compared.
        best, alive = alive[:_BLOCK], alive[_BLOCK:]
        best = best[_greedy_keep(*_overlapping_pairs(sorted_N5[best], None, iou_threshold), len(best)).to(best.device)]
        kept.append(best)
        if not len(alive):
            break
        _, suppressed_index = _overlapping_pairs(sorted_N5[best], sorted_N5[alive], iou_threshold)
        is_kept = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        is_kept[suppressed_index] = False
        alive = alive[is_kept]
    return order[torch.cat(kept)[:max_boxes]]


def nms_rotated_mask(sorted_N5: Tensor, valid_N: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """(N,) which of the valid boxes, sorted best first, greedy suppression keeps; () whether the result is certain.

    It equals the result of ``nms_rotated``, but all pairs are compared and no value is read on the host, so that a GPU
    never waits and the kernels can be captured in a graph. For up to a few hundred boxes; see ``greedy_nms`` for when
    the result is not certain.
    """
    count = len(sorted_N5)
    earlier, later = torch.triu_indices(count, count, 1, device=sorted_N5.device).unbind(0)
    overlap = _paired_iou(sorted_N5[earlier], sorted_N5[later]).float()
    is_overlapping = torch.zeros(count * count, dtype=torch.bool, device=sorted_N5.device)
    is_overlapping = is_overlapping.scatter(0, earlier * count + later, overlap >= iou_threshold).view(count, count)
    kept, certain = greedy_nms(is_overlapping, valid_N)
    return kept, certain.all()


def _overlapping_pairs(a_N5: Tensor, b_M5: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Indices (P,) into ``a`` and (P,) into ``b`` of the pairs whose IoU reaches the threshold, in row order.

    Without ``b``, the pairs within ``a``, each once, with the earlier box first.
    """
    first, second = _near_pairs(a_N5, a_N5 if b_M5 is None else b_M5)
    if b_M5 is None:
        b_M5 = a_N5
        later = first < second
        first, second = first[later], second[later]
    overlaps = [
        _paired_iou(a_N5[i], b_M5[j])
        for i, j in zip(torch.split(first, _PAIRS_PER_BATCH), torch.split(second, _PAIRS_PER_BATCH), strict=True)
        if len(i)
    ]
    is_hit = torch.cat([a_N5.new_zeros(0), *overlaps]).float() >= iou_threshold
    return first[is_hit], second[is_hit]


def _greedy_keep(first: Tensor, second: Tensor, count: int) -> Tensor:
    """(``count``,) which boxes, sorted best first, remain if each remaining box removes later ones that it overlaps."""
    keep = [True] * count
    for better, worse in torch.stack([first, second], dim=1).tolist():
        if keep[better]:
            keep[worse] = False
    return torch.tensor(keep)


def _near_pairs(a_N5: Tensor, b_M5: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (P,) into ``a`` and (P,) into ``b``, in row order, of the pairs whose circumscribed circles touch."""
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
    """(P,) IoU in float64, or with ``over_first`` the intersection over the area of ``a``.

    By Green's theorem the area of the intersection is an integral along its border, which consists of the parts of
    each box's edges that lie within the other box. An edge that both boxes share, in the same direction, counts once.
    """
    a, b = a_P5.double(), b_P5.double()
    size_a, size_b = a[:, None, 2:4] / 2, b[:, None, 2:4] / 2
    cosine, sine = _cosine_and_sine(b[:, 4:] - a[:, 4:])
    signs = to_device(torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=a.dtype), a.device)
    corners_a, corners_b = size_a * signs, size_b * signs
    rotation = torch.stack([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)], dim=1)
    # The corners of the second box in the frame of the first, and those of the first in the frame of the second.
    cosine_a, sine_a = a[:, 4:].cos(), a[:, 4:].sin()
    centre_offset = b[:, :2] - a[:, :2]
    b_centre = torch.cat(
        [
            centre_offset[:, :1] * cosine_a + centre_offset[:, 1:] * sine_a,
            centre_offset[:, 1:] * cosine_a - centre_offset[:, :1] * sine_a,
        ],
        dim=1,
    )[:, None]
    b_in_a = b_centre + corners_b @ rotation
    a_in_b = (corners_a - b_centre) @ rotation.mT
    slack = _TOLERANCE * (1 + torch.maximum(size_a, size_b).amax(dim=2))
    edges_b = (corners_b.roll(-1, 1) - corners_b) @ rotation
    edges_a = (corners_a.roll(-1, 1) - corners_a) @ rotation.mT
    fraction_b = _fraction_within(b_in_a, edges_b, size_a, slack, shared=False)
    fraction_a = _fraction_within(a_in_b, edges_a, size_b, slack, shared=True)
    area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    swept_area = b_in_a[..., 0] * edges_b[..., 1] - b_in_a[..., 1] * edges_b[..., 0]
    intersection = area_a * fraction_a.sum(1) / 4 + (fraction_b * swept_area).sum(1) / 2
    # A box without width has no area, but it has edges.
    has_area = torch.minimum(size_a, size_b).amin(dim=2)[:, 0] > slack[:, 0]
    intersection = torch.where(has_area, intersection.clamp(min=0), torch.zeros_like(intersection))
    denominator = area_a if over_first else area_a + area_b - intersection
    return torch.where(
        denominator > 1e-14, intersection / denominator.clamp(min=1e-14), torch.zeros_like(denominator)
    ).clamp(0, 1)


def _cosine_and_sine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, exact for multiples of 90 degrees within ``_PARALLEL_TOLERANCE``."""
    cosine, sine = angle.cos(), angle.sin()
    aligned, across = sine.abs() <= _PARALLEL_TOLERANCE, cosine.abs() <= _PARALLEL_TOLERANCE
    zero = torch.zeros_like(cosine)
    return (
        torch.where(across, zero, torch.where(aligned, cosine.sign(), cosine)),
        torch.where(aligned, zero, torch.where(across, sine.sign(), sine)),
    )


def _fraction_within(
    start_PK2: Tensor, edge_PK2: Tensor, half_P12: Tensor, slack_P1: Tensor, *, shared: bool
) -> Tensor:
    """(P, K) the fraction of each edge that lies within a box centred at the origin with half sizes ``half``.

    Edges run counter-clockwise. An edge on the box's border is within if ``shared``, or if it runs the other way.
    """
    is_parallel = edge_PK2 == 0
    direction = torch.where(is_parallel, torch.ones_like(edge_PK2), edge_PK2)
    exit_side = torch.copysign(half_P12.expand_as(direction), direction)
    enters, leaves = (-exit_side - start_PK2) / direction, (exit_side - start_PK2) / direction
    tolerance = slack_P1[:, None].expand_as(start_PK2)
    if not shared:
        is_same_direction = torch.stack([-edge_PK2[..., 1], edge_PK2[..., 0]], dim=-1) * start_PK2 < 0
        tolerance = torch.where(is_same_direction, -tolerance, tolerance)
    inside = start_PK2.abs() <= half_P12 + tolerance
    enters = torch.where(is_parallel, torch.where(inside, 0.0, 2.0).to(enters.dtype), enters).amax(-1).clamp(min=0)
    leaves = torch.where(is_parallel, torch.ones_like(leaves), leaves).amin(-1).clamp(max=1)
    return (leaves - enters).clamp(min=0)
