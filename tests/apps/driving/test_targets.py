"""The targets of the anchors near objects equal those of mmdet3d, which searches all anchors."""

import copy
from dataclasses import replace

import pytest
import torch

from apps.driving.models import structures
from apps.driving.models.targets import is_supported, use_nearby_targets
from apps.driving.recipes import medium, small, tiny
from apps.driving.types import KITTI_CLASSES
from shared.recipe import Limits


def objects(recipe, numbers, seed=0):
    """Boxes and labels of each image, some out of range and some on top of another."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    sizes = torch.tensor([kind.size_m for kind in recipe.input.classes])
    for number in numbers:
        label = torch.randint(0, len(sizes), (number,), generator=generator)
        place = torch.rand(number, 2, generator=generator) * torch.tensor([80.0, 90.0]) - torch.tensor([5.0, 45.0])
        place[number // 2 :] = place[: number - number // 2] + 0.4
        size = sizes[label] * (0.8 + 0.4 * torch.rand(number, 3, generator=generator))
        turn = torch.rand(number, 1, generator=generator) * 8 - 4
        boxes.append(torch.cat([place, torch.full((number, 1), -1.0), size, turn], dim=1))
        labels.append(label)
    return boxes, labels


def targets(head, boxes, labels):
    data = structures.lidar_data([torch.zeros(1, 4)] * len(boxes), boxes, labels)["data_samples"]
    grid = head.get_anchors([torch.Size((124, 108))], [{}] * len(boxes), device=torch.device("cpu"))
    return head.anchor_target_3d(
        grid,
        [item.gt_instances_3d for item in data],
        [{}] * len(boxes),
        num_classes=3,
        label_channels=3,
        sampling=False,
    )


@pytest.mark.parametrize("recipe", [small(), medium()], ids=["small", "medium"])
@pytest.mark.parametrize("numbers", [(0, 0), (1, 0), (40, 20), (200, 3)])
def test_the_targets_are_the_librarys_own(recipe, numbers):
    head = recipe.model.build(recipe.input).bbox_head
    faster = copy.deepcopy(head)
    use_nearby_targets(faster)
    for seed in range(2):  # the second time with cached anchors
        expected, found = (targets(box_head, *objects(recipe, numbers, seed)) for box_head in (head, faster))
        assert found[6:] == expected[6:]
        for (found_target,), (expected_target,) in zip(found[:6], expected[:6], strict=True):
            assert found_target.dtype == expected_target.dtype
            assert torch.equal(found_target, expected_target)
    assert int(expected[0][0].min()) < 3 or not any(numbers)


def test_an_anchor_that_may_be_positive_without_overlap_is_left_to_the_library():
    recipe = small()
    head = recipe.model.build(recipe.input).bbox_head
    assert is_supported(head)
    head.bbox_assigner[0].min_pos_iou = 0.0
    assert not is_supported(head)
    before = head.anchor_target_3d
    use_nearby_targets(head)
    assert head.anchor_target_3d == before


def test_a_detector_that_trains_can_be_copied_and_computes_the_librarys_losses():
    recipe = replace(tiny(), limits=Limits(batch=2))
    torch.manual_seed(3)
    model = recipe.model.build(recipe.input).train()
    plain, task = copy.deepcopy(model), recipe.task.build()
    task.prepare(model)
    boxes = [torch.tensor([[8.0, 1.0, -1.0, *KITTI_CLASSES[2].size_m, 0.3]]), torch.zeros(0, 7)]
    batch = {
        "points": [torch.rand(500, 4) * torch.tensor([20.0, 20.0, 3.0, 0.0]) - torch.tensor([0.0, 10.0, 2.5, 0.0])] * 2,
        "boxes": boxes,
        "labels": [torch.tensor([2]), torch.zeros(0, dtype=torch.long)],
    }
    expected = recipe.task.build().loss(plain, batch)
    for network in (copy.deepcopy(model), model):
        found = task.loss(network, batch)
        for name, loss in expected.items():
            # Convolutions in the channels-last format add in another order.
            torch.testing.assert_close(found[name].mean, loss.mean, rtol=1e-5, atol=1e-6)
            assert float(found[name].weight) == float(loss.weight)
    assert model.backbone.blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
