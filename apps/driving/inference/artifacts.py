"""From an artifact to a detector: its settings, its network with the weights. Needs nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.driving.inference.detect import CameraDetector, Detector, LidarDetector, PublicCameraDetector
from apps.driving.models.builders import model_configs
from apps.driving.models.dense import dense_camera, dense_pillars
from apps.driving.models.fcos3d import example_image
from apps.driving.models.pillars import ProgramPillars
from apps.driving.models.pointpillars import example_input
from apps.driving.types import CameraInput, LidarInput
from shared.deploy.artifact import RECIPE, WEIGHTS, Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

if TYPE_CHECKING:
    from torch import Tensor, nn

    from apps.driving.models.configurations import MMDet3DModel

_STRIDE = 32


def open_detector(artifact: Artifact, device: str) -> Detector:
    """The network of an artifact with its weights, ready to detect; refuses a model that driving does not have."""
    name, configs = artifact.manifest.name, model_configs()
    if name not in configs:
        raise InvalidInputError(f"{artifact.path} is the model {name}; driving has {', '.join(configs)}")
    settings = current_layout(artifact.recipe()["recipe"])
    config: type[Any] = configs[name]
    model: Any = from_mapping(config, settings["model"])
    if name.startswith("mmdet3d_"):
        public: LidarInput | CameraInput = (
            from_mapping(LidarInput, settings["input"])
            if model.sensor == "lidar"
            else from_mapping(CameraInput, settings["input"])
        )
        return imported_detector(model, public, load_weights(model.build(public), artifact, device), device)
    if model.sensor == "lidar":
        seen = from_mapping(LidarInput, settings["input"])
        network = Network(
            artifact=artifact,
            build=lambda: dense_pillars(load_weights(model.build(seen), artifact, device), model, seen),
            example=lambda: {"pseudo_image": example_input(model, seen)[:1]},
            varying={},
        )
        program = open_program(network, device)
        pillars = ProgramPillars(model, seen, _fitting(artifact, "voxel_encoder."), program)
        return LidarDetector(pillars.to(device), seen, device, program)
    looked_at = from_mapping(CameraInput, settings["input"])
    height, width = (-(-size // _STRIDE) * _STRIDE for size in looked_at.image)
    network = Network(
        artifact=artifact,
        build=lambda: dense_camera(load_weights(model.build(looked_at), artifact, device)),
        example=lambda: {"image": example_image(height, width)},
        varying={"image": (2, 3)},
    )
    return CameraDetector(open_program(network, device), looked_at, device, colours=model.colours)


def _fitting(artifact: Artifact, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so; refuses an artifact without them."""
    found = {name: value for name, value in artifact.weights().items() if name.startswith(prefix)}
    if not found:
        file = artifact.path / WEIGHTS
        raise InvalidInputError(f"{file} does not fit the model that {RECIPE} describes: it has no {prefix}")
    return found


def imported_detector(
    model: MMDet3DModel, input: LidarInput | CameraInput, network: nn.Module, device: str
) -> LidarDetector | PublicCameraDetector:
    """The detector of an imported model: a configuration that mmdet3d ships, and its network with the weights."""
    from apps.driving.models.detectors import LidarNetwork, network_of

    made = network_of(model, network)
    if isinstance(made, LidarNetwork):
        assert isinstance(input, LidarInput)
        return LidarDetector(made, input, device)
    assert isinstance(input, CameraInput)
    return PublicCameraDetector(made, input, device)


def current_layout(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, those of artifacts made before there was an ``input`` moved into it."""
    model, data = dict(settings["model"]), dict(settings.get("data") or {})
    seen = dict(settings.get("input") or {})
    if model.get("backbone") == "resnext101":
        model["backbone"] = "resnext101_32x8d"
    moved = {"range_m": model, "intensity": data, "image": model, "focal_px": model}
    seen |= {name: source.pop(name) for name, source in moved.items() if name in source}
    return {**settings, "model": model, "input": seen}
