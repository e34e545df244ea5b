"""Artifacts are opened without training code, also those written before settings moved into the input."""

import pytest
import torch
from safetensors.torch import save_file

from apps.driving.inference.artifacts import current_layout, open_detector
from apps.driving.recipes import RECIPES
from apps.driving.types import CameraInput, LidarInput
from shared.deploy.artifact import Manifest, describe_file, open_artifact, write_manifest
from shared.errors import InvalidInputError
from shared.recipe_file import save_recipe, to_mapping


def artifact(path, name, recipe_name):
    torch.manual_seed(3)
    recipe = RECIPES[recipe_name]()
    path.mkdir()
    save_file(recipe.model.build(recipe.input).state_dict(), path / "weights.safetensors")
    save_recipe(path / "recipe.yaml", recipe, app="driving", name=recipe_name)
    files = {file.name: describe_file(file) for file in path.iterdir()}
    manifest = Manifest(name=name, version=1, app="driving", inputs=(), outputs=(), scores={}, data={}, files=files)
    write_manifest(path, manifest)
    return open_artifact(path)


@pytest.mark.parametrize(
    ("recipe_name", "of_model", "of_data"),
    [("tiny", ("range_m",), ("intensity",)), ("fcos3d_tiny", ("image", "focal_px"), ())],
)
def test_settings_of_the_former_layout_are_moved_to_the_current_one(recipe_name, of_model, of_data):
    settings = to_mapping(RECIPES[recipe_name]())
    before = {**settings, "model": dict(settings["model"]), "data": dict(settings["data"])}
    kept = before.pop("input")
    before["model"] |= {name: kept[name] for name in of_model}
    before["data"] |= {name: kept[name] for name in of_data}
    now = current_layout(before)
    assert now["model"] == settings["model"]
    assert now["input"] == {name: kept[name] for name in (*of_model, *of_data)}
    assert current_layout(settings) == settings


def test_a_detector_has_the_input_of_the_artifact(tmp_path):
    lidar = open_detector(artifact(tmp_path / "l", "pointpillars", "tiny"), "cpu")
    camera = open_detector(artifact(tmp_path / "c", "fcos3d", "fcos3d_tiny"), "cpu")
    assert isinstance(lidar.input, LidarInput) and lidar.input == RECIPES["tiny"]().input
    assert isinstance(camera.input, CameraInput) and camera.input == RECIPES["fcos3d_tiny"]().input
    with pytest.raises(InvalidInputError, match="is the model yolo; driving has pointpillars"):
        open_detector(artifact(tmp_path / "y", "yolo", "tiny"), "cpu")


def test_a_range_that_pillars_do_not_fill_is_refused_with_a_valid_one():
    recipe = RECIPES["small"]()
    with pytest.raises(InvalidInputError, match=r"covers 70 m in x; .* multiple of 2.56 m, such as 69.12"):
        recipe.model.build(LidarInput(range_m=(0.0, -39.68, -3.0, 70.0, 39.68, 1.0)))
