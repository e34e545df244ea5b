"""A predictor with random weights, and a synthetic KITTI folder; warnings of mmdet3d and its imports are ignored."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apps.driving.app import app
from apps.driving.predictor import DrivingPredictor
from apps.driving.recipes import RECIPES
from apps.driving.service import DrivingCodec
from shared.deploy.artifact import Manifest, describe_file, open_artifact, write_manifest
from shared.deploy.predictor import answer
from shared.recipe_file import save_recipe

_OF_THE_LIBRARY = (
    "ignore:torch.meshgrid",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:DeprecationWarning",
    "ignore::ImportWarning",
    "ignore:To copy construct",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in _OF_THE_LIBRARY:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def predictor(tmp_path_factory):
    artifacts = []
    for recipe_name in ("tiny", "fcos3d_tiny"):
        torch.manual_seed(3)
        recipe = RECIPES[recipe_name]()
        model = recipe.model.build(recipe.input)
        # Raised so that random weights detect something.
        model.bbox_head.conv_cls.bias.data += 4.0
        path = tmp_path_factory.mktemp(recipe.model.name)
        save_file(model.state_dict(), path / "weights.safetensors")
        save_recipe(path / "recipe.yaml", recipe, app="driving", name=recipe_name)
        manifest = Manifest(
            name=recipe.model.name, version=1, app="driving", inputs=(), outputs=(), scores={}, data={},
            calibration={"least_scores": {"car": 0.1, "pedestrian": 0.1, "cyclist": 0.1}},
            files={file.name: describe_file(file) for file in path.iterdir()},
        )  # fmt: skip
        write_manifest(path, manifest)
        artifacts.append(open_artifact(path))
    return DrivingPredictor.load(artifacts, "cpu")


@pytest.fixture(scope="session")
def codec(predictor):
    return DrivingCodec(predictor)


@pytest.fixture(scope="session")
def ask(predictor, codec):
    """The response to a request, from the predictor that every interface calls."""
    return lambda request: answer(predictor, request, codec)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """The synthetic sample of the form: a KITTI object folder."""
    sample = next(sample for sample in app.samples() if sample.name == "synthetic")
    assert sample.synthetic
    return sample.files(tmp_path_factory.mktemp("sample"))[0]
