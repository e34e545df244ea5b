"""The replacement of mmcv's compiled operators, against outputs of the compiled ones."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.driving.models.library import load
from apps.driving.models.ops import boxes, voxels
from apps.driving.models.ops.extension import Extension

ext = Extension("mmcv._ext")


@pytest.fixture(scope="module")
def oracle():
    path = Path(os.environ.get("TRIVIUM_DATA", "")) / "driving/mmcv_ops/mmcv_2_1_0_cpu_ops.npz"
    if "TRIVIUM_DATA" not in os.environ or not path.is_file():
        pytest.skip("set TRIVIUM_DATA to a folder that holds driving/mmcv_ops/mmcv_2_1_0_cpu_ops.npz")
    with np.load(path) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.mark.realdata
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_equals_the_compiled_operator(oracle, threshold, offset):
    indices = ext.nms(oracle["nms_boxes"], oracle["nms_scores"], iou_threshold=threshold, offset=offset)
    assert torch.equal(indices, oracle[f"nms_keep_{threshold}_offset{offset}"])


@pytest.mark.realdata
@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("density", ["near", "far"])
def test_rotated_nms_equals_the_compiled_operator(oracle, density, threshold):
    found, scores = (oracle[f"nms_rotated_{density}_{what}"] for what in ("boxes", "scores"))
    indices = ext.nms_rotated(found, scores, torch.empty(0), found, torch.empty(0), threshold, False)
    assert torch.equal(indices, oracle[f"nms_rotated_{density}_keep_{threshold}"])


@pytest.mark.realdata
@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("density", ["near", "far"])
def test_rotated_nms_with_labels_equals_the_compiled_operator(oracle, density, threshold):
    found, scores, labels = (oracle[f"nms_rotated_{density}_{what}"] for what in ("boxes", "scores", "labels"))
    labelled = torch.cat([found, labels[:, None]], 1)
    indices = ext.nms_rotated(labelled, scores, torch.empty(0), labelled, labels, threshold, True)
    assert torch.equal(indices, oracle[f"nms_rotated_{density}_keep_multilabel_{threshold}"])


@pytest.mark.realdata
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("density", ["near", "far"])
def test_rotated_overlap_equals_the_compiled_operator(oracle, density, mode):
    a, b, expected = (oracle[f"iou_{density}_{what}"] for what in ("a", "b", mode))
    out = torch.zeros(len(a) * len(b))
    ext.box_iou_rotated(a, b, out, mode_flag=int(mode == "iof"), aligned=False)
    assert (out.view_as(expected) - expected).abs().max() < 1e-5
    count = min(len(a), len(b))
    pairs = torch.zeros(count)
    ext.box_iou_rotated(a[:count], b[:count], pairs, mode_flag=int(mode == "iof"), aligned=True)
    assert torch.equal(pairs, out.view_as(expected)[:count, :count].diagonal())


@pytest.mark.realdata
@pytest.mark.parametrize(("max_points", "max_voxels"), [(32, 4000), (2, 300)])
def test_hard_voxelisation_equals_the_compiled_operator(oracle, max_points, max_voxels):
    points = oracle["vox_points"]
    voxels, coors = torch.zeros(max_voxels, max_points, 4), torch.zeros(max_voxels, 3, dtype=torch.int)
    number, count = torch.zeros(max_voxels, dtype=torch.int), torch.zeros((), dtype=torch.long)
    ext.hard_voxelize_forward(
        points, oracle["vox_size"], oracle["vox_range"], voxels, coors, number, count, max_points, max_voxels
    )
    name = f"hard_voxelize_{max_points}_{max_voxels}"
    assert count == len(oracle[f"{name}_num"])
    assert torch.equal(voxels[:count], oracle[f"{name}_voxels"])
    assert torch.equal(coors[:count], oracle[f"{name}_coors"])
    assert torch.equal(number[:count], oracle[f"{name}_num"])


@pytest.mark.realdata
def test_dynamic_voxelisation_equals_the_compiled_operator(oracle):
    coors = torch.zeros(6000, 3, dtype=torch.int)
    ext.dynamic_voxelize_forward(oracle["vox_points"], oracle["vox_size"], oracle["vox_range"], coors, NDim=3)
    assert torch.equal(coors, oracle["dynamic_voxelize_coors"])


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("case", "stride", "padding", "dilation", "groups", "deform_groups"),
    [("a", 2, 1, 1, 2, 2), ("b", 1, 1, 1, 1, 1)],
)
def test_deformable_convolution_equals_the_compiled_operator(
    oracle, case, stride, padding, dilation, groups, deform_groups
):
    x, offset, mask, weight, gradient = (
        oracle[f"dcn_{case}_{n}"] for n in ("x", "offset", "mask", "weight", "grad_out")
    )
    sizes = {"stride": stride, "pad": padding, "dilation": dilation}
    bias = oracle.get(f"dcn_{case}_bias", torch.empty(0))
    settings = {"kernel_h": 3, "kernel_w": 3, "group": groups, "deformable_group": deform_groups}
    settings |= {f"{name}_{side}": value for name, value in sizes.items() for side in "hw"}
    settings["with_bias"] = len(bias) > 0
    out, unused = torch.empty_like(gradient), torch.empty(0)
    ext.modulated_deform_conv_forward(x, weight, bias, unused, offset, mask, out, unused, **settings)
    # Equal in every bit with the oracle's two threads; with another number of them or another processor the matrix
    # product inside rounds differently.
    assert distance(out, oracle[f"dcn_{case}_out"]) < 1e-6
    tensors = {"x": x, "weight": weight, "bias": bias, "offset": offset, "mask": mask}
    grads = {name: torch.zeros_like(value) for name, value in tensors.items()}
    ext.modulated_deform_conv_backward(
        x, weight, bias, unused, offset, mask, unused, *grads.values(), gradient, **settings
    )
    for name, value in grads.items():
        if name != "bias" or len(bias):
            assert distance(value, oracle[f"dcn_{case}_grad_{name}"]) < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_convolution_in_half_precision_is_that_of_float32(dtype):
    generator = torch.Generator().manual_seed(1)
    shapes = {"x": (2, 4, 6, 6), "weight": (4, 4, 3, 3), "bias": (4,), "offset": (2, 18, 6, 6), "mask": (2, 9, 6, 6)}
    tensors = {name: torch.rand(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    settings = {
        f"{name}_{side}": value for name, value in (("stride", 1), ("pad", 1), ("dilation", 1)) for side in "hw"
    }
    settings |= {"kernel_h": 3, "kernel_w": 3, "group": 1, "deformable_group": 1, "with_bias": True}
    unused = torch.empty(0)

    def both_ways(kind):
        x, weight, bias, offset, mask = (value.to(kind) for value in tensors.values())
        out = torch.empty_like(x)
        ext.modulated_deform_conv_forward(x, weight, bias, unused, offset, mask, out, unused, **settings)
        grads = [torch.zeros_like(value) for value in (x, weight, bias, offset, mask)]
        ext.modulated_deform_conv_backward(
            x, weight, bias, unused, offset, mask, unused, *grads, torch.ones_like(out), **settings
        )
        return [out, *grads]

    for value, expected in zip(both_ways(dtype), both_ways(torch.float32), strict=True):
        assert torch.equal(value, expected.to(dtype))


def test_the_shape_of_the_grid_is_not_read_from_the_device():
    """A tensor on "meta" has no values, so reading one fails; on a GPU, reading one makes the host wait."""
    points = torch.empty(5, 4, device="meta")
    size, extent = torch.tensor([0.16, 0.16, 4]), torch.tensor([0, -39.68, -3, 69.12, 39.68, 1])
    assert voxels._voxel_coordinates(points, size, extent)[2] == [1, 496, 432]


def distance(value, expected):
    """Largest difference, relative to the largest value."""
    return ((value - expected).abs().max() / expected.abs().max()).item()


def overlap(a, b):
    out = torch.zeros(1)
    ext.box_iou_rotated(torch.tensor([a]), torch.tensor([b]), out)
    return out.item()


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, torch.pi / 2, 3.0])
@pytest.mark.parametrize("x", [0.0, 57.3, 4.0e4])
def test_identical_boxes_overlap_fully(angle, x):
    box = [x, -12.5, 3.9, 1.6, angle]
    assert overlap(box, box) == pytest.approx(1, abs=1e-6)
    turned = [x, -12.5, 1.6, 3.9, angle + torch.pi / 2]
    assert overlap(box, turned) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("turn", [0.0, 1e-15, 1e-12, 1e-7, 0.3])
def test_boxes_that_share_edges_overlap_by_what_they_share(turn):
    """Edges that coincide, in either direction, and edges that are parallel except for rounding."""
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(4), torch.arange(1, 4), torch.arange(1, 4)).double()
    low, size = cells[:, :2], cells[:, 2:]
    first, second = (part.flatten() for part in torch.meshgrid(*[torch.arange(len(cells))] * 2, indexing="ij"))
    reach = torch.minimum(low[first] + size[first], low[second] + size[second]) - torch.maximum(low[first], low[second])
    shared = reach.clamp(min=0).prod(1)
    expected = shared / (size[first].prod(1) + size[second].prod(1) - shared)
    middle = low + size / 2
    for quarter in (0, 1):
        upright = torch.cat([middle, size, torch.zeros(len(cells), 1, dtype=torch.float64)], dim=1)
        lying = torch.cat([middle, size.flip(1) if quarter else size, torch.full((len(cells), 1), turn)], dim=1)
        lying[:, 4] += quarter * torch.pi / 2
        if turn == 0.3:  # both
            rotation = torch.tensor([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            upright[:, :2] = lying[:, :2] = middle @ rotation
            upright[:, 4] += turn
        out = torch.zeros(len(first), dtype=torch.float64)
        boxes.box_iou_rotated(upright[first], lying[second], out, aligned=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_degenerate_overlaps():
    box = [0.0, 0.0, 4.0, 2.0, 0.0]
    assert overlap(box, [4.0, 0.0, 4.0, 2.0, 0.0]) == pytest.approx(0, abs=1e-6)
    assert overlap(box, [2.0, 0.0, 4.0, 2.0, 0.0]) == pytest.approx(1 / 3, abs=1e-6)
    assert overlap(box, [0.0, 0.0, 2.0, 1.0, 0.0]) == pytest.approx(1 / 4, abs=1e-6)
    assert overlap(box, [0.0, 0.0, 0.0, 0.0, 0.0]) == 0
    assert overlap([0.0] * 5, [0.0] * 5) == 0


@pytest.mark.parametrize("spread", [100.0, 5.0])
def test_rotated_suppression_in_the_thousands_takes_seconds_at_most(spread):
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(2500, 5, generator=generator) * torch.tensor([spread, spread, 5, 5, 6.28])
    scores = torch.rand(2500, generator=generator)
    began = time.process_time()
    indices = ext.nms_rotated(found, scores, torch.empty(0), found, torch.empty(0), 0.3, False)
    assert time.process_time() - began < 10
    overlaps = torch.ones(len(indices) ** 2)
    boxes.box_iou_rotated(found[indices], found[indices], overlaps)
    overlaps = overlaps.view(len(indices), -1).fill_diagonal_(0)
    assert 0 < len(indices) < 2500 and overlaps.max() < 0.3
    assert (scores[indices].diff() <= 0).all()


@pytest.mark.parametrize("most", [1, 7, 130, 2500])
def test_rotated_suppression_stops_at_the_maximum_number_of_boxes(most):
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(1000, 5, generator=generator) * torch.tensor([60, 60, 5, 5, 6.28])
    scores, none = torch.rand(1000, generator=generator), torch.empty(0)
    indices = boxes.nms_rotated(found, scores, none, found, none, 0.3, False)
    assert 130 < len(indices) < 1000
    assert torch.equal(boxes.nms_rotated(found, scores, none, found, none, 0.3, False, most), indices[:most])


@pytest.mark.parametrize("side", [4.0, 0.16, 0.002], ids=["hundreds of cells", "a million", "billions"])
def test_points_are_sorted_by_voxel_and_keep_their_order(side):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20_000, 4, generator=generator).round(decimals=3) * torch.tensor([160.0, 160.0, 3.0, 1.0])
    grouped = voxels.group_pillars(points, torch.tensor([side, side, 4.0]), torch.tensor([0.0, 0, 0, 160, 160, 4]))
    x, y = (points[:, :2] / side).floor().long().unbind(1)
    place = y * round(160 / side) + x
    inside = (points[:, :2] < 160).all(1).nonzero().squeeze(1)
    assert torch.equal(grouped.source, inside[place[inside].argsort(stable=True)])
    assert int(grouped.count.sum()) == len(inside) and bool((place[grouped.source].diff() >= 0).all())


def test_empty_inputs():
    none = torch.empty(0, 5)
    assert len(ext.nms_rotated(none, torch.empty(0), torch.empty(0), none, torch.empty(0), 0.3, False)) == 0
    voxels, coors = torch.zeros(10, 4, 4), torch.zeros(10, 3, dtype=torch.int)
    number, count = torch.zeros(10, dtype=torch.int), torch.ones((), dtype=torch.long)
    far = torch.tensor([[1e30, 0, 0, 0], [float("nan"), 0, 0, 0]])
    for points in (torch.empty(0, 4), far):
        ext.hard_voxelize_forward(
            points, torch.ones(3), torch.tensor([0.0, 0, 0, 5, 5, 5]), voxels, coors, number, count, 4, 10
        )
        assert count == 0 and not number.any()


def test_voxelisation_of_a_whole_sweep_takes_milliseconds():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(120_000, 4, generator=generator) * torch.tensor([70, 80, 3, 1]) - torch.tensor([0, 40, 2.9, 0])
    voxels, coors = torch.zeros(40_000, 32, 4), torch.zeros(40_000, 3, dtype=torch.int)
    number, count = torch.zeros(40_000, dtype=torch.int), torch.zeros((), dtype=torch.long)
    extent = torch.tensor([0, -39.68, -3, 69.12, 39.68, 1])
    times = []
    for _ in range(3):
        began = time.process_time()
        ext.hard_voxelize_forward(
            points, torch.tensor([0.16, 0.16, 4]), extent, voxels, coors, number, count, 32, 40_000
        )
        times.append(time.process_time() - began)
    assert count == 40_000
    assert min(times) < 0.5


def test_an_operator_without_stand_in_raises_when_called_and_not_when_imported():
    load()
    from mmcv.ops import roi_align  # noqa: F401

    with pytest.raises(NotImplementedError, match="three_nn_forward"):
        ext.three_nn_forward()
