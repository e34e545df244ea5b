"""Fast paths: a trained detector of mmdet3d in, one that is equal and faster out. For prediction only.

Batch normalisation is folded into the convolution before it, convolutions run with channels last, and on a CPU
deformable ones sample all channels at once. PointPillars
also encodes the points that are there, where mmdet3d fills every pillar up to 32 points with zeros and encodes those
too, and makes its anchors once. Outputs are equal up to the rounding of 32-bit sums.

Of a pillar with more points than its network takes, mmdet3d takes the first in the order of the file. Files are
written beam by beam, from the top one down, and a network that learnt from sweeps in random order has not seen pillars
that lack their lowest points: ``every_point`` shows it all of them.
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
from apps.driving.models.pillars import NO_LIMIT, PillarEncoder, ProgramHeads, fold_layer
from shared.deploy.programs.program import Program

_FEATURES = 10
"""Of a point: x, y, z and intensity, its offset from the mean of its pillar, and that from the pillar's middle."""


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch normalisation after convolutions, transposed or not, is folded into them,
    with the layers of ``fast_layers``."""
    load()
    from mmcv.cnn import fuse_conv_bn

    module = fuse_conv_bn(copy.deepcopy(module).eval())
    for parent in list(module.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for (first, one), (second, other) in zip(
            list(parent.named_children()), list(parent.named_children())[1:], strict=False
        ):
            if isinstance(one, nn.ConvTranspose2d) and isinstance(other, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(one, other, transpose=True))
                setattr(parent, second, nn.Identity())
    return with_fast_layers(module).to(memory_format=torch.channels_last)


def fast_fcos3d(detector: nn.Module) -> nn.Module:
    """The detector, folded; it is called as before."""
    fast = folded(detector)
    head: Any = fast.bbox_head
    head.get_points = _remember_points(head.get_points)
    return fast


def fast_camera(detector: nn.Module) -> nn.Module:
    """A camera detector of mmdet3d, folded; it is called as before."""
    fast = folded(detector)
    from mmdet3d.models.dense_heads import SMOKEMono3DHead

    head: Any = fast.bbox_head
    if isinstance(head, SMOKEMono3DHead):
        # mmdet looks for the best places in a view of the scores, which there is none of with the channels last.
        forward = head.forward
        head.forward = lambda *maps: tuple([level.contiguous() for level in levels] for levels in forward(*maps))
    return fast


def has_fast_pillars(detector: nn.Module) -> bool:
    """Whether ``FastPointPillars`` knows this detector."""
    load()
    from mmdet3d.models.dense_heads import Anchor3DHead
    from mmdet3d.models.detectors import VoxelNet
    from mmdet3d.models.necks import SECONDFPN
    from mmdet3d.models.voxel_encoders import PillarFeatureNet

    encoder: Any = getattr(detector, "voxel_encoder", None)
    if not _takes_every_point(detector) and not (
        type(detector) is VoxelNet and type(encoder) is PillarFeatureNet and bool(encoder.legacy)
    ):
        return False
    network: Any = detector
    voxels, head = network.data_preprocessor.voxel_layer, network.bbox_head
    extent, size = voxels.point_cloud_range, voxels.voxel_size
    middle = torch.tensor([size[axis] / 2 + extent[axis] for axis in range(3)])
    return (
        type(head) is Anchor3DHead
        and type(network.neck) is SECONDFPN
        and head.use_direction_classifier
        # In a configuration of one's own the encoder may have been left at another grid than the pillars are of.
        and torch.allclose(torch.tensor([encoder.x_offset, encoder.y_offset, encoder.z_offset]), middle, atol=1e-4)
        and encoder.in_channels == _FEATURES
        and getattr(encoder.pfn_layers[0], "mode", "max") == "max"
        and len(encoder.pfn_layers) == 1
        and not encoder._with_distance
        and encoder._with_cluster_center
        and encoder._with_voxel_center
    )


def _takes_every_point(detector: nn.Module) -> bool:
    """Whether its pillars are dynamic: they have no most points."""
    from mmdet3d.models.detectors import DynamicVoxelNet
    from mmdet3d.models.voxel_encoders import DynamicPillarFeatureNet

    encoder: Any = getattr(detector, "voxel_encoder", None)
    return (
        type(detector) is DynamicVoxelNet
        and type(encoder) is DynamicPillarFeatureNet
        and not encoder.pfn_scatter.average_points
    )


class FoldedHeads(nn.Module):
    """The dense part of PointPillars, folded: pseudo-image (B, C, rows, columns) to scores, boxes and directions."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck = folded(detector.backbone), folded(detector.neck)
        head = detector.bbox_head
        self.branches = nn.ModuleList(folded(branch) for branch in (head.conv_cls, head.conv_reg, head.conv_dir_cls))

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, ...]:
        """(B, A C, H, W) scores, (B, 7 A, H, W) boxes and (B, 2 A, H, W) directions of A = 2 C anchors a cell."""
        (features,) = self.neck(self.backbone(pseudo_image))
        return tuple(branch(features) for branch in self.branches)


def encoder_of(detector: Any, *, every_point: bool = False) -> PillarEncoder:
    """The pillar encoder of a detector that ``has_fast_pillars``."""
    dynamic = _takes_every_point(detector)
    voxels = detector.data_preprocessor.voxel_layer
    layer = detector.voxel_encoder.pfn_layers[0].eval()
    linear, norm = (layer[0], layer[1]) if dynamic else (layer.linear, layer.norm)
    weight, bias = fold_layer(linear.weight, norm.state_dict(), norm.eps)
    unlimited = dynamic or every_point
    return PillarEncoder(
        torch.tensor(voxels.voxel_size),
        torch.tensor(voxels.point_cloud_range),
        weight,
        bias,
        most_points=NO_LIMIT if unlimited else int(voxels.max_num_points),
        most_pillars=NO_LIMIT if unlimited else int(voxels.max_voxels[1]),
        dynamic=dynamic,
    )


class FastPointPillars(nn.Module):
    """PointPillars that encodes no padding, from mmdet3d's detector with a pillar encoder of one layer.

    With ``every_point`` a pillar has no most points, and a sweep no most pillars, as in a detector of dynamic pillars.
    ``program`` computes the dense part; without one torch does.
    """

    def __init__(self, detector: Any, *, every_point: bool = False, program: Program | None = None) -> None:
        super().__init__()
        if not has_fast_pillars(detector):
            raise ValueError(
                "the fast path knows VoxelNet with the pillar encoder of one layer that reads x, y, z and intensity"
            )
        self.encode = encoder_of(detector, every_point=every_point)
        self.heads: nn.Module = FoldedHeads(detector) if program is None else ProgramHeads(program)
        self.bbox_head = copy.deepcopy(detector.bbox_head).eval()
        self.bbox_head.prior_generator = RememberingAnchors(self.bbox_head.prior_generator)

    def predict(self, points_N4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``structures.predict`` gives for one sweep with at least one point in range."""
        from mmdet3d.structures import LiDARInstance3DBoxes

        maps = [[part] for part in self.heads(self.encode(points_N4))]
        metainfo = [{"box_type_3d": LiDARInstance3DBoxes}]
        return structures.instance_tensors(
            self.bbox_head.predict_by_feat(*maps, batch_input_metas=metainfo, rescale=False)[0]
        )


class RememberingAnchors:
    """An anchor generator that makes the anchors of a grid once."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._made = cache(lambda sizes, device: generator.grid_anchors(list(sizes), device=device))

    def grid_anchors(self, featmap_sizes: Sequence[Any], device: Any = "cpu") -> list[Tensor]:
        made: list[Tensor] = self._made(tuple(tuple(size) for size in featmap_sizes), torch.device(device))
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as copying asks for before there is a generator
            raise AttributeError(name)
        return getattr(self._generator, name)


def _remember_points(get_points: Any) -> Any:
    made = cache(lambda sizes, dtype, device: get_points([torch.Size(size) for size in sizes], dtype, device))

    def remembering(
        featmap_sizes: Sequence[Any], dtype: torch.dtype, device: torch.device, flatten: bool = False
    ) -> Any:
        return made(tuple(tuple(size) for size in featmap_sizes), dtype, device)

    return remembering
