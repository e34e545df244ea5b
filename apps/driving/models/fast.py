"""Fast paths: they take a trained mmdet3d detector and return an equivalent, faster one. For prediction only.

Batch normalisation is folded into the preceding convolution, convolutions run with channels last, and on a CPU
deformable convolutions sample all channels at once. PointPillars also encodes only the points, where mmdet3d pads every
pillar to 32 points with zeros and encodes those too, and it computes its anchors once. Outputs are equal up to the
rounding of 32-bit sums.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from apps.driving.models import structures
from apps.driving.models.fast_layers import with_fast_layers
from apps.driving.models.library import load
from apps.driving.models.pillars import NO_LIMIT, PillarEncoder, fold_layer, program_heads
from shared.deploy.programs.program import Program

_POINT_FEATURES = 10
"""The features of a point: x, y, z, intensity, its offset from the pillar's mean, and that from the pillar's centre."""


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with batch normalisation folded into the preceding convolutions, transposed or not,
    and with the layers of ``fast_layers``."""
    load()
    from mmcv.cnn import fuse_conv_bn

    module = fuse_conv_bn(copy.deepcopy(module).eval())
    for parent in list(module.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for (convolution_name, convolution), (norm_name, norm) in zip(
            list(parent.named_children()), list(parent.named_children())[1:], strict=False
        ):
            if isinstance(convolution, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, convolution_name, fuse_conv_bn_eval(convolution, norm, transpose=True))
                setattr(parent, norm_name, nn.Identity())
    return with_fast_layers(module).to(memory_format=torch.channels_last)


def fast_fcos3d(detector: nn.Module) -> nn.Module:
    """A copy of an FCOS3D with folded batch normalisation and cached points; the call signature is the same."""
    fast = fold_batch_norms(detector)
    head: Any = fast.bbox_head
    head.get_points = _cache_points(head.get_points)
    return fast


def fast_camera(detector: nn.Module) -> nn.Module:
    """A copy of a camera detector with folded batch normalisation; the call signature is the same."""
    fast = fold_batch_norms(detector)
    from mmdet3d.models.dense_heads import SMOKEMono3DHead

    head: Any = fast.bbox_head
    if isinstance(head, SMOKEMono3DHead):
        # mmdet takes a view of the scores to find the best locations, which is impossible with channels last.
        forward = head.forward
        head.forward = lambda *maps: tuple([level.contiguous() for level in levels] for levels in forward(*maps))
    return fast


def has_fast_pillars(detector: nn.Module) -> bool:
    """Whether ``FastPointPillars`` supports this detector."""
    load()
    from mmdet3d.models.dense_heads import Anchor3DHead
    from mmdet3d.models.detectors import VoxelNet
    from mmdet3d.models.necks import SECONDFPN
    from mmdet3d.models.voxel_encoders import PillarFeatureNet

    encoder: Any = getattr(detector, "voxel_encoder", None)
    if not _has_dynamic_pillars(detector) and not (
        type(detector) is VoxelNet and type(encoder) is PillarFeatureNet and bool(encoder.legacy)
    ):
        return False
    network: Any = detector
    voxels, head = network.data_preprocessor.voxel_layer, network.bbox_head
    extent, size = voxels.point_cloud_range, voxels.voxel_size
    pillar_centre = torch.tensor([size[axis] / 2 + extent[axis] for axis in range(3)])
    return (
        type(head) is Anchor3DHead
        and type(network.neck) is SECONDFPN
        and head.use_direction_classifier
        # In a user's own configuration the encoder's grid may differ from that of the pillars.
        and torch.allclose(
            torch.tensor([encoder.x_offset, encoder.y_offset, encoder.z_offset]), pillar_centre, atol=1e-4
        )
        and encoder.in_channels == _POINT_FEATURES
        and getattr(encoder.pfn_layers[0], "mode", "max") == "max"
        and len(encoder.pfn_layers) == 1
        and not encoder._with_distance
        and encoder._with_cluster_center
        and encoder._with_voxel_center
    )


def _has_dynamic_pillars(detector: nn.Module) -> bool:
    """Whether its pillars are dynamic: they have no maximum number of points."""
    from mmdet3d.models.detectors import DynamicVoxelNet
    from mmdet3d.models.voxel_encoders import DynamicPillarFeatureNet

    encoder: Any = getattr(detector, "voxel_encoder", None)
    return (
        type(detector) is DynamicVoxelNet
        and type(encoder) is DynamicPillarFeatureNet
        and not encoder.pfn_scatter.average_points
    )


class FoldedHeads(nn.Module):
    """The dense network of PointPillars with folded batch normalisation, from pseudo-images (B, C, rows, columns)."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck = fold_batch_norms(detector.backbone), fold_batch_norms(detector.neck)
        head = detector.bbox_head
        self.branches = nn.ModuleList(
            fold_batch_norms(branch) for branch in (head.conv_cls, head.conv_reg, head.conv_dir_cls)
        )

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, ...]:
        """Scores (B, A C, H, W), boxes (B, 7 A, H, W) and directions (B, 2 A, H, W) of A = 2 C anchors per cell."""
        (features,) = self.neck(self.backbone(pseudo_image))
        return tuple(branch(features) for branch in self.branches)


def pillar_encoder_from_detector(detector: Any) -> PillarEncoder:
    """The pillar encoder of a detector for which ``has_fast_pillars`` is true."""
    dynamic = _has_dynamic_pillars(detector)
    voxels = detector.data_preprocessor.voxel_layer
    layer = detector.voxel_encoder.pfn_layers[0].eval()
    linear, norm = (layer[0], layer[1]) if dynamic else (layer.linear, layer.norm)
    weight, bias = fold_layer(linear.weight, norm.state_dict(), norm.eps)
    return PillarEncoder(
        torch.tensor(voxels.voxel_size),
        torch.tensor(voxels.point_cloud_range),
        weight,
        bias,
        max_points=NO_LIMIT if dynamic else int(voxels.max_num_points),
        max_pillars=NO_LIMIT if dynamic else int(voxels.max_voxels[1]),
        dynamic=dynamic,
    )


class FastPointPillars(nn.Module):
    """PointPillars that encodes no padding, from an mmdet3d detector whose pillar encoder has one layer.

    ``program`` computes the dense network; without it torch does.
    """

    def __init__(self, detector: Any, *, program: Program | None = None) -> None:
        super().__init__()
        if not has_fast_pillars(detector):
            raise ValueError(
                "the fast path supports VoxelNet only with a pillar encoder of one layer over x, y, z and intensity"
            )
        self.encode = pillar_encoder_from_detector(detector)
        self.heads: nn.Module = FoldedHeads(detector) if program is None else program_heads(program)
        self.bbox_head = copy.deepcopy(detector.bbox_head).eval()
        self.bbox_head.prior_generator = CachedAnchors(self.bbox_head.prior_generator)

    def predict(self, points_N4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The detections, as from ``structures.predict``, in a sweep with at least one point in range."""
        from mmdet3d.structures import LiDARInstance3DBoxes

        maps = [[part] for part in self.heads(self.encode(points_N4))]
        metainfo = [{"box_type_3d": LiDARInstance3DBoxes}]
        return structures.instance_tensors(
            self.bbox_head.predict_by_feat(*maps, batch_input_metas=metainfo, rescale=False)[0]
        )


class CachedAnchors:
    """An anchor generator that computes the anchors of each grid once."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._anchors_by_size = cache(lambda sizes, device: generator.grid_anchors(list(sizes), device=device))

    def grid_anchors(self, featmap_sizes: Sequence[Any], device: Any = "cpu") -> list[Tensor]:
        anchors: list[Tensor] = self._anchors_by_size(
            tuple(tuple(size) for size in featmap_sizes), torch.device(device)
        )
        return anchors

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before ``_generator`` is set
            raise AttributeError(name)
        return getattr(self._generator, name)


def _cache_points(get_points: Any) -> Any:
    cached = cache(lambda sizes, dtype, device: get_points([torch.Size(size) for size in sizes], dtype, device))

    def get_cached_points(
        featmap_sizes: Sequence[Any], dtype: torch.dtype, device: torch.device, flatten: bool = False
    ) -> Any:
        return cached(tuple(tuple(size) for size in featmap_sizes), dtype, device)

    return get_cached_points
