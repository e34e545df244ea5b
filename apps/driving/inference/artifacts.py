"""Opens the detector in an artifact: its settings, and its network with the weights. Imports no training code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from apps.driving.inference.detect import CameraDetector, Detector, ImportedCameraDetector, LidarDetector
from apps.driving.inference.examples import example_boxes, example_canvas, example_image, example_pseudo_image
from apps.driving.inference.second_stage import BATCH, SecondStage
from apps.driving.models import model_configs
from apps.driving.models.decoding import CameraDecoder
from apps.driving.models.dense import dense_boxes, dense_camera, dense_imported, dense_pillars
from apps.driving.models.head_maps import PSEUDO_IMAGE
from apps.driving.models.lidar_rcnn import INPUTS, OUTPUT, LidarRCNN
from apps.driving.models.pillars import ProgramPillars, pillar_encoder
from apps.driving.types import BoxInput, CameraInput, LidarInput
from shared.deploy.artifact import RECIPE, WEIGHTS, Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.module import ProgramModule
from shared.deploy.programs.program import Program
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

if TYPE_CHECKING:
    from torch import Tensor

    from apps.driving.models.configurations import MMDet3DModel


def open_detector(artifact: Artifact, device: str) -> Detector:
    """The detector of an artifact with its weights; raises InvalidInputError for a model that driving does not have."""
    name, configs = artifact.manifest.name, model_configs()
    if name not in configs:
        raise InvalidInputError(f"{artifact.path} is the model {name}; driving has {', '.join(configs)}")
    settings = current_layout(artifact.recipe()["recipe"])
    config: type[Any] = configs[name]
    model: Any = from_mapping(config, settings["model"])
    if name.startswith("mmdet3d_"):
        return _open_imported(artifact, model, model.read_input(settings["input"]), device)
    if model.sensor == "lidar":
        lidar_settings = from_mapping(LidarInput, settings["input"])
        weights = _weights_with_prefix(artifact, "voxel_encoder.")
        network = Network(
            artifact=artifact,
            build=lambda: dense_pillars(
                load_weights(model.build(lidar_settings), artifact, device), model, lidar_settings
            ),
            example=lambda: {
                "pseudo_image": example_pseudo_image(pillar_encoder(model, lidar_settings, weights), lidar_settings)
            },
        )
        program = open_program(network, device)
        pillars = ProgramPillars(model, lidar_settings, weights, program)
        return LidarDetector(pillars.to(device), lidar_settings, device, program)
    camera_settings = from_mapping(CameraInput, settings["input"])
    network = Network(
        artifact=artifact,
        build=lambda: dense_camera(load_weights(model.build(camera_settings), artifact, device)),
        example=lambda: {"image": example_image(camera_settings, model.colours)},
    )
    return CameraDetector(
        open_program(network, device),
        camera_settings,
        device,
        colours=model.colours,
        decode=CameraDecoder(direction_offset=model.direction_offset),
    )


def lidar_input(artifact: Artifact) -> LidarInput:
    """The input settings of an artifact's LiDAR network."""
    return from_mapping(LidarInput, current_layout(artifact.recipe()["recipe"])["input"])


def earlier_sweeps(artifact: Artifact) -> int:
    """The number of earlier sweeps, besides the frame's own, that an artifact's LiDAR network was trained on."""
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
        formats=("fp32", "bf16", "fp16"),
    )
    program = open_program(network, device)
    return SecondStage(ProgramModule(program, INPUTS, (OUTPUT,)), input, device, program)


def _weights_with_prefix(artifact: Artifact, prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with ``prefix``; raises InvalidInputError if there are none."""
    weights = {name: value for name, value in artifact.weights().items() if name.startswith(prefix)}
    if not weights:
        file = artifact.path / WEIGHTS
        raise InvalidInputError(f"{file} does not match the model in {RECIPE}: it has no weights named {prefix}*")
    return weights


def _open_imported(
    artifact: Artifact, model: MMDet3DModel, input: LidarInput | CameraInput, device: str
) -> LidarDetector | ImportedCameraDetector:
    """The detector of an artifact that ``trivium import`` wrote; a program computes a LiDAR network's dense part."""
    from apps.driving.models.detectors import point_layout
    from apps.driving.models.fast import has_fast_pillars, pillar_encoder_from_detector

    detector = load_weights(model.build(input), artifact, device)
    if not model.fast or not isinstance(input, LidarInput):
        return imported_detector(model, input, detector, device)
    has_encoder = has_fast_pillars(detector)

    def example() -> dict[str, Tensor]:
        if has_encoder:
            encoder = pillar_encoder_from_detector(detector)
            return {PSEUDO_IMAGE: example_pseudo_image(encoder, input, point_layout(model))}
        opened = imported_detector(model, input, copy.deepcopy(detector).cpu(), "cpu")
        assert isinstance(opened, LidarDetector)
        return {PSEUDO_IMAGE: example_canvas(opened)}

    network = Network(
        artifact=artifact,
        build=lambda: dense_imported(model, detector),
        example=example,
        # What rounding to 16 bits costs was measured for KITTI's PointPillars only.
        formats=("fp32", "bf16", "fp16", "int8") if has_encoder else ("fp32", "int8"),
    )
    return imported_detector(model, input, detector, device, open_program(network, device))


def imported_detector(
    model: MMDet3DModel,
    input: LidarInput | CameraInput,
    network: nn.Module,
    device: str,
    program: Program | None = None,
) -> LidarDetector | ImportedCameraDetector:
    """The detector of an imported model: its configuration, and mmdet3d's network with the weights."""
    from apps.driving.models.detectors import LidarNetwork, network_of

    opened = network_of(model, network, program=program)
    if isinstance(opened, LidarNetwork):
        assert isinstance(input, LidarInput)
        return LidarDetector(opened, input, device, program)
    assert isinstance(input, CameraInput)
    return ImportedCameraDetector(opened, input, device)


def current_layout(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe. Older artifacts have no ``input``: their settings of it are moved there."""
    model, data = dict(settings["model"]), dict(settings.get("data") or {})
    input = dict(settings.get("input") or {})
    if model.get("backbone") == "resnext101":
        model["backbone"] = "resnext101_32x8d"
    moved = {"range_m": model, "intensity": data, "image": model, "focal_px": model}
    input |= {name: source.pop(name) for name, source in moved.items() if name in source}
    return {**settings, "model": model, "input": input}
