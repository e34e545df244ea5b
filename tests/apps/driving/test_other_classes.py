"""Networks with new classes start with the shipped weights' knowledge of the classes that both have."""

from dataclasses import replace

import pytest
import torch

from apps.driving.models import fcos3d, pointpillars
from apps.driving.models.lidar_rcnn import FEATURE_COUNT
from apps.driving.predictor import WEIGHTS
from apps.driving.recipes import RECIPES
from apps.driving.types import ObjectClass
from shared.engine.initial_weights import load_initial_weights, new_classes, shared_classes
from shared.recipe_file import from_mapping, read_recipe_file

TRUCK = ObjectClass(name="truck", size_m=(8.0, 2.6, 3.0), bottom_m=-1.78)


@pytest.fixture
def both(request):
    """Networks with the shipped weights: one with their classes, one with car, truck and the first of their classes.

    Returned with the names of the classes, the settings, and the reports on what was loaded, for each network.
    """
    recipe_name, version = request.param
    path, recipe = WEIGHTS / version, RECIPES[recipe_name]()
    recorded = read_recipe_file(path / "recipe.yaml")["recipe"]
    model = from_mapping(type(recipe.model), recorded["model"])
    input = from_mapping(type(recipe.input), recorded["input"])
    by_name = {kind.name: kind for kind in input.classes}
    networks, names, reports = [], [], []
    for classes in (input.classes, (by_name["car"], TRUCK, input.classes[0])):
        network_input = replace(input, classes=classes)
        network = model.build(network_input)
        found = load_initial_weights(network, path, shared_classes(path, model, network_input))
        assert not found.missing + found.extra + found.other_shape
        networks.append(network.eval())
        names.append([kind.name for kind in classes])
        reports.append(new_classes(path, network_input, by_name=bool(found.by_class)))
    assert reports[0] is None and "keeps car, pedestrian; learns truck from scratch; drops cyclist" in reports[1]
    return networks, names, model, input


@pytest.mark.parametrize("both", [("medium", "pointpillars/4")], indirect=True)
def test_pointpillars_keeps_its_anchor_scores_for_a_known_class(both):
    networks, names, model, input = both
    image = pointpillars.example_input(model, input)[:1]
    with torch.inference_mode():
        scores, boxes, directions = zip(
            *(pointpillars.PillarsToHeads(network)(image) for network in networks), strict=True
        )
    rows, columns = scores[0].shape[2:]
    for kind in ("pedestrian", "car"):
        # mmdet3d's layout of a cell: by anchor (two headings per class), then by value.
        cells = [
            torch.cat([
                part[0].permute(1, 2, 0).reshape(rows, columns, len(own), 2, -1)[:, :, own.index(kind)][..., chosen]
                for part, chosen in (
                    (score, [own.index("pedestrian"), own.index("car")]), (box, range(7)), (direction, range(2))
                )
            ], -1)
            for score, box, direction, own in zip(scores, boxes, directions, names, strict=True)
        ]  # fmt: skip
        torch.testing.assert_close(*cells)
    anchors = networks[1].bbox_head.prior_generator.single_level_grid_anchors((rows, columns), 1, device="cpu")
    lengths = [kind.size_m[0] for kind in (input.classes[names[0].index("car")], TRUCK, input.classes[0])]
    assert anchors.reshape(rows, columns, 3, 2, 7)[0, 0, :, 0, 3].tolist() == pytest.approx(lengths)


@pytest.mark.parametrize("both", [("fcos3d_small", "fcos3d/1")], indirect=True)
def test_fcos3d_keeps_its_scores_for_a_known_class(both):
    networks, names, _, _ = both
    image = fcos3d.example_image(64, 128)[:1]
    with torch.inference_mode():
        before, after = (fcos3d.ImageToHeads(network)(image) for network in networks)
    for name, before_map, after_map in zip(fcos3d.OUTPUTS, before, after, strict=True):
        if name.startswith("scores"):
            before_map, after_map = (
                part[:, [own.index("pedestrian"), own.index("car")]]
                for part, own in zip((before_map, after_map), names, strict=True)
            )
        if not name.startswith(
            "boxes"
        ):  # sizes are relative to those of the most likely class, which may be a new class
            torch.testing.assert_close(before_map, after_map)


@pytest.mark.parametrize("both", [("second_stage", "lidar_rcnn/2")], indirect=True)
def test_the_second_stage_keeps_its_corrections_for_a_known_class(both):
    networks, names, _, input = both
    torch.manual_seed(0)
    points, size, facts = torch.randn(2, input.points, 3), torch.rand(2, 3) + 1, torch.randn(2, FEATURE_COUNT)
    answers = []
    for network, own in zip(networks, names, strict=True):
        kinds = torch.eye(3)[[own.index("pedestrian"), own.index("car")]]
        with torch.inference_mode():
            answers.append(network(points, size, torch.cat([facts, kinds], 1)))
    torch.testing.assert_close(*answers)
