"""MONAI's RetinaNet for lung nodules, unmodified, in sizes from one for laptops to that of the LUNA16 bundle.

Lin et al., Focal Loss for Dense Object Detection, 2017; the configuration of MONAI's model zoo,
``lung_nodule_ct_detection``. Importing this module imports neither torch nor MONAI's detection code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from torch import nn

    from apps.medical.types import ChestInput

ANCHOR_SCALES = (1, 2, 4)
RETURNED_LAYERS = (1, 2)
STRIDE = (2, 2, 1)
"""Stride of the first convolution."""
CANDIDATES, DETECTIONS = 1000, 300
"""Maximum number of candidates decoded per level, and of boxes per image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNet3D:
    """Settings of the detector.

    ``planes`` is the number of channels of the backbone's first stage, ``features`` that of the pyramid.
    ``anchors_voxels`` are anchor sizes along x, y, z on the finest level; they double on each of the next two levels.
    Anchors, sampler and box selection use the bundle's values.
    """

    block: Literal["basic", "bottleneck"] = "basic"
    layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    planes: int = 32
    features: int = 64
    stem: int = 7
    anchors_voxels: tuple[tuple[int, int, int], ...] = ((6, 8, 4), (8, 6, 5), (10, 10, 6))
    samples_per_image: int = 64
    positive_fraction: float = 0.3
    pool_size: int = 20
    least_negatives: int = 16
    score_threshold: float = 0.02
    nms_threshold: float = 0.22

    def build(self, input: ChestInput) -> RetinaNetDetector:
        """The detector with random weights and one output for each class of ``input``."""
        return build(self, len(input.classes))

    def compiled_parts(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The network; anchors and matching cannot be compiled."""
        return (model.get_submodule("network"),)


def full() -> RetinaNet3D:
    """The bundle's network: ResNet-50 with 256 features. Its published weights load by name."""
    return RetinaNet3D(block="bottleneck", layers=(3, 4, 6, 3), planes=64, features=256)


def build_network(settings: RetinaNet3D, classes: int = 1) -> RetinaNet:
    """MONAI's network, unmodified, without the detector that ``build`` adds."""
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
    from monai.networks.nets.resnet import ResNet

    logging.getLogger("monai").setLevel(logging.WARNING)
    planes = [settings.planes * 2**n for n in range(4)]
    backbone = ResNet(
        block=settings.block,
        layers=list(settings.layers),
        block_inplanes=planes,
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=(settings.stem,) * 3,
        conv1_t_stride=STRIDE,
        feed_forward=False,
    )
    expansion = 4 if settings.block == "bottleneck" else 1
    pyramid = BackboneWithFPN(
        backbone,
        return_layers={f"layer{layer}": str(n) for n, layer in enumerate(RETURNED_LAYERS)},
        in_channels_list=[planes[layer - 1] * expansion for layer in RETURNED_LAYERS],
        out_channels=settings.features,
        spatial_dims=3,
    )
    return RetinaNet(
        spatial_dims=3,
        num_classes=classes,
        num_anchors=len(settings.anchors_voxels),
        feature_extractor=pyramid,
        size_divisible=[2 * s * 2 ** max(RETURNED_LAYERS) for s in STRIDE],
    )


def build(settings: RetinaNet3D, classes: int = 1) -> RetinaNetDetector:
    """The detector, ready for training and inference; all of its parameters are in ``detector.network``."""
    import torch
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    from apps.medical.models.group_norm import use_fast_group_norm

    network = build_network(settings, classes)
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=ANCHOR_SCALES, base_anchor_shapes=settings.anchors_voxels
    )
    detector = RetinaNetDetector(network=network, anchor_generator=anchors)
    _configure_training(detector, settings)
    # channels_last makes 3D convolutions and pooling a third faster; the values are the same.
    detector.to(memory_format=torch.channels_last_3d)
    use_fast_group_norm(detector)
    detector.set_target_keys(box_key="box", label_key="label")
    detector.set_box_selector_parameters(
        score_thresh=settings.score_threshold,
        topk_candidates_per_level=CANDIDATES,
        nms_thresh=settings.nms_threshold,
        detections_per_img=DETECTIONS,
    )
    return detector


def _configure_training(detector: RetinaNetDetector, settings: RetinaNet3D) -> None:
    import torch
    from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher

    class OnDevice(ATSSMatcher):  # type: ignore[misc]
        """MONAI's matcher leaves the result for an image without boxes on the CPU (monai 1.6.1)."""

        def __call__(self, boxes, anchors, *sizes):  # type: ignore[no-untyped-def] # noqa: ANN001
            quality, matches = super().__call__(boxes, anchors, *sizes)
            return quality, matches.to(anchors.device)

    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.proposal_matcher = OnDevice(4, detector.box_overlap_metric, center_in_gt=False)
    detector.set_hard_negative_sampler(
        batch_size_per_image=settings.samples_per_image,
        positive_fraction=settings.positive_fraction,
        pool_size=settings.pool_size,
        min_neg=settings.least_negatives,
    )
    detector.set_cls_loss(torch.nn.BCEWithLogitsLoss(reduction="mean"))
    detector.set_box_regression_loss(
        torch.nn.SmoothL1Loss(beta=1 / 9, reduction="mean"), encode_gt=True, decode_pred=False
    )
