"""Imports public checkpoints of the nodule detector: weights only, by parameter name.

``monai-bundle`` takes the bundle lung_nodule_ct_detection of MONAI's model zoo (version 0.6.8, Apache-2.0;
github.com/Project-MONAI/model-zoo, also on huggingface.co/MONAI), or only its ``models/model.pt``: the state dict of a
RetinaNet over a ResNet-50, trained on LUNA16. Preprocessing and decoding follow the bundle's
``configs/inference.json``. The bundle's configurations are not read because they contain expressions that MONAI would
evaluate. Checkpoints of the same detector over a ResNet of another depth or width are accepted too; the sizes are
inferred from the tensors.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.medical.adapters.members import first_few
from shared.app import Imported, Importer
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from apps.medical.models.retinanet import RetinaNet3D
    from shared.recipe import DataConfig

WEIGHTS = "models/model.pt"
"""The weights in the folder of a bundle."""

PREFIXES = ("module.", "network.", "detector.network.", "model.")
"""Prefixes that data parallelism and the detector around the network add to parameter names."""

BUNDLE_FEATURES = 256
PARITY_PATCH = (32, 32, 16)
TOLERANCE = 1e-4
"""Largest difference of the two forward passes relative to the largest output; their memory layouts differ."""


def find_weights(path: Path) -> Path:
    """The file of weights: ``path``, or ``models/model.pt`` if ``path`` is the folder of a bundle.

    Raises InvalidInputError if there is no such file, and for the archive in which the model zoo distributes a bundle.
    """
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise InvalidInputError(f"the folder {path} has no {WEIGHTS}; give the bundle's folder or its {WEIGHTS}")
        return path / WEIGHTS
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist; give the bundle's folder or its {WEIGHTS}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(WEIGHTS) for name in archive.namelist()):
                raise InvalidInputError(f"{path.name} is the archive of a bundle; unpack it and give its folder")
    return path


def read_network(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the network's own parameter names, without the prefixes in ``PREFIXES``.

    Only tensors are restored (``shared.checkpoint_file``). Raises InvalidInputError if there are none.
    """
    from shared.checkpoint_file import read_state_dict

    tensors = read_state_dict(path)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def load_by_name(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor by name. Raises InvalidInputError if one is missing, unknown or has another shape.

    ``source`` names the file in the message.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    faults = (("lacks", missing), ("has unknown", unknown), ("has other shapes:", shapes))
    problems = "; ".join(f"{verb} {first_few(names)}" for verb, names in faults if names)
    if problems:
        raise InvalidInputError(f"{source} is not the network of lung_nodule_ct_detection: it {problems}")
    network.load_state_dict(dict(tensors), strict=False)


def settings_of(tensors: Mapping[str, Tensor], source: str) -> RetinaNet3D:
    """Depth and width of the ResNet and of the pyramid, inferred from the names and shapes of the tensors."""
    from apps.medical.models.retinanet import RetinaNet3D, full

    body, pyramid = "feature_extractor.body.", "feature_extractor.fpn.layer_blocks.0.weight"
    depth = [len({name.split(".")[3] for name in tensors if name.startswith(f"{body}layer{n}.")}) for n in (1, 2)]
    if not all(depth) or f"{body}conv1.weight" not in tensors or pyramid not in tensors:
        raise InvalidInputError(
            f"{source} is not a RetinaNet of MONAI: it lacks {body}conv1, layer1, layer2 or {pyramid}; it has "
            f"{first_few(list(tensors))}"
        )
    stem = tensors[f"{body}conv1.weight"]
    settings = RetinaNet3D(
        block="bottleneck" if f"{body}layer1.0.conv3.weight" in tensors else "basic",
        layers=(depth[0], depth[1], 1, 1),
        planes=int(stem.shape[0]),
        features=int(tensors[pyramid].shape[0]),
        stem=int(stem.shape[-1]),
    )
    # The stages after the second are not used, so their depths may be stated as in the bundle.
    is_bundle = replace(settings, layers=full().layers) == full() and depth == list(full().layers[:2])
    return full() if is_bundle else settings


def monai_network(settings: RetinaNet3D) -> nn.Module:
    """The network built by MONAI's own functions with the arguments of the bundle's ``configs/inference.json``."""
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
    from monai.networks.nets.resnet import ResNet

    backbone = ResNet(
        block=settings.block,
        layers=list(settings.layers),
        block_inplanes=[settings.planes * 2**n for n in range(4)],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=[2, 2, 1],
        conv1_t_size=[settings.stem] * 3,
    )
    if settings.features == BUNDLE_FEATURES:
        pyramid = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
    else:
        width = settings.planes * (4 if settings.block == "bottleneck" else 1)
        stages = {"layer1": "0", "layer2": "1"}
        pyramid = BackboneWithFPN(backbone, stages, [width, 2 * width], settings.features, spatial_dims=3)
    network: nn.Module = RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=len(settings.anchors_voxels),
        feature_extractor=pyramid,
        size_divisible=[16, 16, 8],
    )
    return network


def load_monai_bundle(arguments: Sequence[str], data: DataConfig | None = None) -> Imported:
    """Imports the weights of a bundle's folder or file, and compares them with MONAI's own network on a patch of noise.

    The checkpoint has no operating score, so it is 0.5 until ``trivium calibrate`` sets it on annotated scans. Raises
    ``ArithmeticError`` if the outputs of the two networks differ by more than rounding.
    """
    import monai
    import torch

    from apps.medical.recipes import full
    from apps.medical.types import ChestInput

    path = find_weights(Path(arguments[0]))
    tensors = read_network(path)
    settings = settings_of(tensors, path.name)
    recipe = replace(full(), model=settings, input=ChestInput(tile_size=full().input.tile_size))
    with torch.random.fork_rng():
        detector: Any = recipe.model.build(recipe.input)
        monai_model = monai_network(settings)
    load_by_name(detector.network, tensors, path.name)
    load_by_name(monai_model, tensors, path.name)
    difference = largest_difference(monai_model, detector.network)
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"the imported network differs from MONAI's by {difference:.2e} of the largest output")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Imported(
        recipe=recipe,
        network=detector,
        source={
            "file": path.name,
            "sha256": sha256,
            "model": "RetinaNet, as in MONAI's bundle lung_nodule_ct_detection",
            "library": f"monai {monai.__version__}",
            "compared": f"outputs of MONAI's own RetinaNet on a patch of noise, {PARITY_PATCH} voxels, fp32",
            "largest_relative_difference": difference,
        },
        calibration={"operating_score": 0.5, "calibrated": False, "reason": "the checkpoint does not state one"},
    )


def largest_difference(reference: nn.Module, network: nn.Module) -> float:
    """Largest difference of the outputs of two RetinaNets on the same noise, relative to the largest output."""
    import torch

    noise = torch.rand((1, 1, *PARITY_PATCH), generator=torch.Generator().manual_seed(0))
    largest = 0.0
    with torch.no_grad():
        expected, actual = reference.eval()(noise), network.eval()(noise)
    for key, levels in expected.items():
        for expected_map, actual_map in zip(levels, actual[key], strict=True):
            difference = float((expected_map - actual_map).abs().max())
            largest = max(largest, difference / max(float(expected_map.abs().max()), 1e-6))
    return largest


IMPORTERS: Mapping[str, Importer] = {
    "monai-bundle": Importer(
        summary="MONAI's bundle lung_nodule_ct_detection, or its models/model.pt: a RetinaNet trained on LUNA16",
        arguments=("MODEL.PT|FOLDER",),
        load=load_monai_bundle,
    )
}
