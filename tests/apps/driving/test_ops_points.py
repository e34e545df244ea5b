"""Points reduced to voxels and points in boxes, through mmcv's own functions, against explicit loops."""

import numpy as np
import pytest
import torch

from apps.driving.models.library import load
from apps.driving.models.ops import point_membership, scatter, voxels
from apps.driving.models.ops.extension import Extension

ext = Extension("mmcv._ext")


@pytest.fixture(scope="module")
def ops():
    load()
    import mmcv.ops

    return mmcv.ops


def points_and_cells(seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    if ties:
        features = features.round()
    return features, torch.randint(-1, 4, (300, 3), generator=generator, dtype=torch.int32)


def by_loop(features, cells, reduce):
    groups = {}
    for feature, cell in zip(features, cells.tolist(), strict=True):
        if min(cell) >= 0:
            groups.setdefault(tuple(cell), []).append(feature)
    order = sorted(groups)
    how = {"max": lambda v: v.amax(0), "mean": lambda v: v.mean(0), "sum": lambda v: v.sum(0)}[reduce]
    return torch.stack([how(torch.stack(groups[cell])) for cell in order]), torch.tensor(order)


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_dynamic_scatter_equals_a_loop_over_voxels(ops, reduce):
    features, cells = points_and_cells(0)
    found, found_cells = ops.dynamic_scatter(features, cells, reduce)
    expected, expected_cells = by_loop(features, cells, reduce)
    assert torch.equal(found_cells, expected_cells) and torch.allclose(found, expected, atol=1e-12)
    assert found_cells.dtype == cells.dtype
    _, _, voxel, count = ext.dynamic_point_to_voxel_forward(features, cells, reduce)
    assert voxel.dtype == count.dtype == torch.int32
    assert torch.equal(voxel < 0, (cells < 0).any(1))
    assert torch.equal(found_cells[voxel[voxel >= 0].long()], cells[voxel >= 0])
    assert torch.equal(count, torch.bincount(voxel[voxel >= 0]))


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_gradients_of_dynamic_scatter_are_the_derivatives(ops, reduce):
    features, cells = points_and_cells(1)
    features = features[:40].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.dynamic_scatter(x, cells[:40], reduce)[0], features)


def test_a_shared_maximum_gives_its_gradient_to_the_first_point(ops):
    features, cells = points_and_cells(2, ties=True)
    features.requires_grad_()
    found, found_cells = ops.dynamic_scatter(features, cells, "max")
    weights = torch.arange(found.numel(), dtype=found.dtype).view_as(found) + 1
    (found * weights).sum().backward()
    expected = torch.zeros_like(features)
    for voxel, cell in enumerate(found_cells.tolist()):
        members = (cells == torch.tensor(cell)).all(1).nonzero().squeeze(1)
        for channel in range(features.shape[1]):
            first = next(m for m in members if features[m, channel] == found[voxel, channel])
            expected[first, channel] = weights[voxel, channel]
    assert torch.equal(features.grad, expected)


def test_dynamic_scatter_of_no_points_and_of_points_without_a_cell(ops):
    features, cells = points_and_cells(3)
    for chosen in (slice(0, 0), (cells < 0).any(1)):
        inside = features[chosen].clone().requires_grad_()
        found, found_cells = ops.dynamic_scatter(inside, cells[chosen], "max")
        assert found.shape == (0, 5) and found_cells.shape == (0, 3)
        found.sum().backward()
        assert not inside.grad.any()


def test_cells_too_far_apart_for_one_key_are_distinguished(ops):
    cells = torch.tensor(
        [[2**31 - 5, 0, 7], [3, 2**31 - 9, 2**31 - 5], [2**31 - 5, 0, 7], [0, 0, 0]], dtype=torch.int32
    )
    found, found_cells = ops.dynamic_scatter(torch.tensor([[1.0], [2.0], [4.0], [8.0]]), cells, "sum")
    assert found_cells.tolist() == [[0, 0, 0], [3, 2**31 - 9, 2**31 - 5], [2**31 - 5, 0, 7]]
    assert found.flatten().tolist() == [8, 2, 5]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            scatter._unique_rows(cells[3:]), torch.unique(cells[3:], dim=0, return_inverse=True, return_counts=True),
            strict=True,
        )
    )  # fmt: skip


def membership_by_loop(points, boxes):
    """mmcv's test of a point and a box, in double precision; None where rounding may decide."""
    result = np.zeros((len(points), len(boxes)), bool)
    margin = np.zeros((len(points), len(boxes)))
    for i, (x, y, z) in enumerate(points.tolist()):
        for j, (cx, cy, cz, sx, sy, sz, yaw) in enumerate(boxes.tolist()):
            dx, dy = x - cx, y - cy
            along, across = dx * np.cos(-yaw) - dy * np.sin(-yaw), dx * np.sin(-yaw) + dy * np.cos(-yaw)
            gaps = [sz / 2 - abs(z - cz - sz / 2), sx / 2 - abs(along), sy / 2 - abs(across)]
            result[i, j], margin[i, j] = min(gaps) > 0, min(abs(gap) for gap in gaps)
    return torch.from_numpy(result), torch.from_numpy(margin) > 1e-5


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 3, generator=generator) * torch.tensor([20.0, 20, 4])
    sizes = torch.rand(9, 3, generator=generator) * torch.tensor([8.0, 6, 4]) + 0.5
    boxes = torch.cat([points[:9] - 0.3, sizes, torch.rand(9, 1, generator=generator) * 7 - 3.5], dim=1)
    return points, boxes


def test_points_in_boxes_equal_a_loop_over_pairs(ops, scene, monkeypatch):
    monkeypatch.setattr(point_membership, "_MAX_PAIRS", 1000)
    points, boxes = scene
    expected, certain = membership_by_loop(points, boxes)
    assert certain.float().mean() > 0.99 and 50 < expected.sum() < 2000
    found = ops.points_in_boxes_cpu(torch.stack([points, points.flip(0)]), torch.stack([boxes, boxes]))
    assert found.shape == (2, 400, 9) and found.dtype == torch.int32
    assert torch.equal(found[0].bool() & certain, expected & certain)
    assert torch.equal(found[1], found[0].flip(0))
    everything = torch.zeros(1, 400, 9, dtype=torch.int32)
    ext.points_in_boxes_all_forward(boxes[None], points[None], everything)
    assert torch.equal(everything[0], found[0])
    first = torch.full((1, 400), -1, dtype=torch.int32)
    ext.points_in_boxes_part_forward(boxes[None], points[None], first)
    for row, index in zip(found[0].tolist(), first[0].tolist(), strict=True):
        assert index == (row.index(1) if any(row) else -1)


def test_top_and_bottom_belong_to_a_box_and_its_sides_do_not(ops):
    box = torch.tensor([[[0.0, 0, -1, 4, 2, 2, 0]]])
    points = torch.tensor([[[0.0, 0, 1], [0, 0, -1], [2, 0, 0], [0, 1, 0], [1.9, 0.9, 0], [0, 0, 1.1]]])
    assert ops.points_in_boxes_cpu(points, box)[0, :, 0].tolist() == [1, 1, 0, 0, 1, 0]


def test_points_in_boxes_without_points_or_boxes(ops):
    assert ops.points_in_boxes_cpu(torch.zeros(1, 0, 3), torch.zeros(1, 3, 7)).shape == (1, 0, 3)
    assert ops.points_in_boxes_cpu(torch.zeros(1, 5, 3), torch.zeros(1, 0, 7)).shape == (1, 5, 0)
    first = torch.full((1, 5), -1, dtype=torch.int32)
    ext.points_in_boxes_part_forward(torch.zeros(1, 0, 7), torch.zeros(1, 5, 3), first)
    assert (first == -1).all()


@pytest.mark.realdata
def test_points_in_boxes_equal_the_compiled_operator(ops, data_root):
    with np.load(data_root / "driving/mmcv_ops/mmcv_2_1_0_cpu_ops.npz") as archive:
        points, boxes, expected = (
            torch.from_numpy(archive[f"points_in_boxes_{name}"]) for name in ("points", "boxes", "result")
        )
    assert torch.equal(ops.points_in_boxes_cpu(points, boxes), expected)


@pytest.mark.parametrize("most", [3, 1000])
def test_pillars_hold_the_first_of_their_points_in_whatever_order_they_are_kept(most):
    random = torch.Generator().manual_seed(3)
    points = torch.rand(2000, 4, generator=random) * 12 - 1
    size, extent = torch.tensor([1.0, 1.0, 10.0]), torch.tensor([0.0, 0.0, 0.0, 10.0, 8.0, 10.0])
    expected = voxels.group_points(points, size, extent, most, 1000)
    found = voxels.group_pillars(points, size, extent).first(most)

    def by_cell(grouped):
        cells = [tuple(cell) for cell in grouped.cell.tolist()]
        members = {cell: [] for cell in cells}
        for source, voxel in zip(grouped.source.tolist(), grouped.voxel.tolist(), strict=True):
            members[cells[voxel]].append(source)
        return members, dict(zip(cells, grouped.count.tolist(), strict=True))

    assert by_cell(found) == by_cell(expected) and len(found.cell) == 80
