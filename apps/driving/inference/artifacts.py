"""From an artifact to a detector: its settings, its network with the weights. Needs nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from apps.driving.inference.detect import CameraDetector, Detector, LidarDetector, PublicCameraDetector
from apps.driving.inference.examples import example_boxes, example_image, example_pseudo_image
from apps.driving.inference.second_stage import BATCH, SecondStage
from apps.driving.models import model_configs
from apps.driving.models.dense import dense_boxes, dense_camera, dense_heads, dense_pillars
from apps.driving.models.lidar_rcnn import INPUTS, OUTPUT, LidarRCNN
from apps.driving.models.pillars import ProgramPillars, pillar_encoder
from apps.driving.types import BoxInput, CameraInput, LidarInput
from shared.deploy.artifact import RECIPE, WEIGHTS, Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.program import Program
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

if TYPE_CHECKING:
    from torch import Tensor

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
        return _imported(artifact, model, public, device)
    if model.sensor == "lidar":
        seen = from_mapping(LidarInput, settings["input"])
        weights = _fitting(artifact, "voxel_encoder.")
        network = Network(
            artifact=artifact,
            build=lambda: dense_pillars(load_weights(model.build(seen), artifact, device), model, seen),
            example=lambda: {"pseudo_image": example_pseudo_image(pillar_encoder(model, seen, weights), seen)},
            varying={},
        )
        program = open_program(network, device)
        pillars = ProgramPillars(model, seen, weights, program)
        return LidarDetector(pillars.to(device), seen, device, program)
    looked_at = from_mapping(CameraInput, settings["input"])
    network = Network(
        artifact=artifact,
        build=lambda: dense_camera(load_weights(model.build(looked_at), artifact, device)),
        example=lambda: {"image": example_image(looked_at, model.colours)},
        varying={"image": (2, 3)},
    )
    return CameraDetector(open_program(network, device), looked_at, device, colours=model.colours)


def lidar_input(artifact: Artifact) -> LidarInput:
    """What the LiDAR network of an artifact sees."""
    return from_mapping(LidarInput, current_layout(artifact.recipe()["recipe"])["input"])


def earlier_sweeps(artifact: Artifact) -> int:
    """How many sweeps before a frame's own the LiDAR network of an artifact learnt from."""
    if not artifact.manifest.name.startswith("mmdet3d_"):
        return 0
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.detectors import point_layout

    return point_layout(from_mapping(MMDet3DModel, artifact.recipe()["recipe"]["model"])).earlier_sweeps


def open_second_stage(artifact: Artifact, device: str = "cpu") -> SecondStage:
    """The second stage of an artifact with its weights."""
    settings = artifact.recipe()["recipe"]
    model, input = from_mapping(LidarRCNN, settings["model"]), from_mapping(BoxInput, settings["input"])
    network = Network(
        artifact=artifact,
        build=lambda: dense_boxes(load_weights(model.build(input), artifact, device), input),
        example=lambda: example_boxes(input, BATCH),
        varying={},
        formats=("fp32", "bf16", "fp16"),
    )
    program = open_program(network, device)
    return SecondStage(_Corrections(program), input, device, program)


class _Corrections(nn.Module):
    """A program called as the second stage's network is."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.program(dict(zip(INPUTS, inputs, strict=True)))[OUTPUT]


def _fitting(artifact: Artifact, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so; refuses an artifact without them."""
    found = {name: value for name, value in artifact.weights().items() if name.startswith(prefix)}
    if not found:
        file = artifact.path / WEIGHTS
        raise InvalidInputError(f"{file} does not fit the model that {RECIPE} describes: it has no {prefix}")
    return found


def _imported(
    artifact: Artifact, model: MMDet3DModel, input: LidarInput | CameraInput, device: str
) -> LidarDetector | PublicCameraDetector:
    """The detector of an artifact that ``trivium import`` wrote; a program computes KITTI's PointPillars."""
    from apps.driving.models.detectors import point_layout
    from apps.driving.models.fast import encoder_of, has_fast_pillars

    detector = load_weights(model.build(input), artifact, device)
    if not (model.fast and has_fast_pillars(detector)):
        return imported_detector(model, input, detector, device)
    assert isinstance(input, LidarInput)
    network = Network(
        artifact=artifact,
        build=lambda: dense_heads(detector),
        example=lambda: {"pseudo_image": example_pseudo_image(encoder_of(detector), input, point_layout(model))},
        varying={},
    )
    return imported_detector(model, input, detector, device, open_program(network, device))


def imported_detector(
    model: MMDet3DModel,
    input: LidarInput | CameraInput,
    network: nn.Module,
    device: str,
    program: Program | None = None,
) -> LidarDetector | PublicCameraDetector:
    """The detector of an imported model: a configuration that mmdet3d ships, and its network with the weights."""
    from apps.driving.models.detectors import LidarNetwork, network_of

    made = network_of(model, network, program=program)
    if isinstance(made, LidarNetwork):
        assert isinstance(input, LidarInput)
        return LidarDetector(made, input, device, program)
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
