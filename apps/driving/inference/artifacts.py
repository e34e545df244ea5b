"""From an artifact to a detector: its settings, its network with the weights. Needs nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.driving.inference.detect import CameraDetector, Detector, LidarDetector, PublicCameraDetector
from apps.driving.models.builders import model_configs
from apps.driving.models.dense import dense_pillars
from apps.driving.models.fast import FastPointPillars, fast_fcos3d
from apps.driving.models.pointpillars import example_input
from apps.driving.types import CameraInput, LidarInput
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

if TYPE_CHECKING:
    from torch import nn

    from apps.driving.models.configurations import MMDet3DModel


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
        network = load_weights(model.build(seen), artifact, device)
        program = open_program(
            Network(
                artifact=artifact,
                build=lambda: dense_pillars(network, model, seen),
                example=lambda: {"pseudo_image": example_input(model, seen)[:1]},
                varying={},
            ),
            device,
        )
        fast = FastPointPillars(network, program, every_point=True)
        return LidarDetector(fast.to(device), seen, device, program)
    looked_at = from_mapping(CameraInput, settings["input"])
    return CameraDetector(fast_fcos3d(load_weights(model.build(looked_at), artifact, device)), looked_at, device)


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
