"""Fast paths: a trained detector of mmdet3d in, one that is equal and faster out. For prediction only.

Batch normalisation is folded into the convolution before it, and convolutions run with channels last. PointPillars
also encodes the points that are there, where mmdet3d fills every pillar up to 32 points with zeros and encodes those
too, makes its anchors once, and multiplies once where the head has three convolutions of one pixel. Outputs are equal
up to the rounding of 32-bit sums.

Of a pillar with more points than its network takes, mmdet3d takes the first in the order of the file. Files are
written beam by beam, from the top one down, and a network that learnt from sweeps in random order has not seen pillars
that lack their lowest points: ``every_point`` shows it all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from apps.driving.models import structures
from apps.driving.models.library import load
from apps.driving.models.ops.voxels import group_points
from shared.deploy.programs.program import Program

_NO_LIMIT = 1 << 40


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose normalisation after convolutions, transposed or not, is folded into them."""
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
    return module.to(memory_format=torch.channels_last)


def fast_fcos3d(detector: nn.Module) -> nn.Module:
    """The detector, folded; it is called as before."""
    fast = folded(detector)
    head: Any = fast.bbox_head
    head.get_points = _remember_points(head.get_points)
    return fast


def has_fast_pillars(detector: nn.Module) -> bool:
    """Whether ``FastPointPillars`` knows this detector."""
    load()
    from mmdet3d.models.detectors import VoxelNet
    from mmdet3d.models.voxel_encoders import PillarFeatureNet

    encoder: Any = getattr(detector, "voxel_encoder", None)
    if not _takes_every_point(detector) and not (
        type(detector) is VoxelNet and type(encoder) is PillarFeatureNet and bool(encoder.legacy)
    ):
        return False
    return (
        len(encoder.pfn_layers) == 1
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


HEADS = ("scores", "boxes", "directions")
"""The outputs of the dense part of PointPillars."""


class FoldedHeads(nn.Module):
    """The dense part of PointPillars, folded: pseudo-image (B, C, rows, columns) to scores, boxes and directions."""

    head_weight: Tensor
    head_bias: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck = folded(detector.backbone), folded(detector.neck)
        head = detector.bbox_head
        branches = [head.conv_cls, head.conv_reg, head.conv_dir_cls]
        self.channels = [branch.out_channels for branch in branches]
        weight = torch.cat([branch.weight.flatten(1) for branch in branches])
        self.register_buffer("head_weight", weight.detach().t().contiguous())
        self.register_buffer("head_bias", torch.cat([branch.bias for branch in branches]).detach())

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, ...]:
        """(B, A C, H, W) scores, (B, 7 A, H, W) boxes and (B, 2 A, H, W) directions of A = 2 C anchors a cell."""
        (features_BCHW,) = self.neck(self.backbone(pseudo_image))
        batch, channels, rows, columns = features_BCHW.shape
        cells = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)
        answers = torch.addmm(self.head_bias, cells, self.head_weight)
        return torch.split(answers.view(batch, rows, columns, -1).permute(0, 3, 1, 2), self.channels, dim=1)


class FastPointPillars(nn.Module):
    """PointPillars that encodes no padding, from mmdet3d's detector with a pillar encoder of one layer.

    The dense part is computed by ``program`` where one is given. With ``every_point`` a pillar has no most points, and
    a sweep no most pillars, as in a detector of dynamic pillars.
    """

    size: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor
    rows: int
    columns: int

    def __init__(self, detector: Any, program: Program | None = None, *, every_point: bool = False) -> None:
        super().__init__()
        if not has_fast_pillars(detector):
            raise ValueError(
                "the fast path knows VoxelNet with the pillar encoder of one layer that reads x, y, z and intensity"
            )
        dynamic = _takes_every_point(detector)
        voxels = detector.data_preprocessor.voxel_layer
        size, extent = voxels.voxel_size, voxels.point_cloud_range
        # Dynamic pillars have no zeros among their points; others that are shown every point are never full.
        self.padded, self.from_middle_only = not dynamic, not dynamic
        self.most_points, self.most_pillars = int(voxels.max_num_points), int(voxels.max_voxels[1])
        if dynamic or every_point:
            self.most_points, self.most_pillars = _NO_LIMIT, _NO_LIMIT
        self.rows, self.columns = detector.middle_encoder.ny, detector.middle_encoder.nx
        self.register_buffer("size", torch.tensor(size))
        # On the host, whatever the network moves to: the shape of the grid is read off them for every sweep.
        self._grid = torch.tensor(size), torch.tensor(extent)
        encoder = detector.voxel_encoder
        self.register_buffer("offset", torch.tensor([encoder.x_offset, encoder.y_offset, encoder.z_offset]))
        layer = encoder.pfn_layers[0].eval()
        linear, norm = (layer[0], layer[1]) if dynamic else (layer.linear, layer.norm)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.register_buffer("weight", (linear.weight * scale[:, None]).detach().t().contiguous())
        self.register_buffer("bias", (norm.bias - norm.running_mean * scale).detach())
        self.heads: Callable[[Tensor], Sequence[Tensor]] = FoldedHeads(detector) if program is None else _heads(program)
        self.bbox_head = copy.deepcopy(detector.bbox_head).eval()
        self.bbox_head.prior_generator = _RememberingAnchors(self.bbox_head.prior_generator)

    def encode(self, points_N4: Tensor) -> Tensor:
        """The pseudo-image (1, C, rows, columns) of a sweep, channels last."""
        grouped = group_points(points_N4, *self._grid, self.most_points, self.most_pillars)
        points, pillar, cell, count = points_N4[grouped.source], grouped.voxel, grouped.cell, grouped.count
        xyz = points[:, :3]
        mean = xyz.new_zeros(len(cell), 3).index_add_(0, pillar, xyz) / count[:, None]
        middle = cell.flip(1).to(xyz.dtype) * self.size + self.offset
        from_middle = xyz - middle[pillar]
        # mmdet3d's encoder of padded pillars writes the offsets from the middle over the coordinates as well (its
        # "legacy" way).
        first = from_middle if self.from_middle_only else xyz
        features = torch.cat([first, points[:, 3:], xyz - mean[pillar], from_middle], dim=1)
        encoded = torch.relu(torch.addmm(self.bias, features, self.weight))
        # A padded pillar that is not full has zeros among its points, which encode to the bias.
        part_full = (count[:, None] < self.most_points) & self.padded
        least = torch.where(part_full, torch.relu(self.bias), torch.zeros_like(self.bias))
        pooled = least.expand(len(cell), -1).contiguous()
        pooled.scatter_reduce_(0, pillar[:, None].expand_as(encoded), encoded, "amax")
        canvas = pooled.new_zeros(self.rows * self.columns, pooled.shape[1])
        canvas[cell[:, 1] * self.columns + cell[:, 2]] = pooled
        return canvas.view(1, self.rows, self.columns, -1).permute(0, 3, 1, 2)

    def predict(self, points_N4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``structures.predict`` gives for one sweep with at least one point in range."""
        from mmdet3d.structures import LiDARInstance3DBoxes

        maps = [[part] for part in self.heads(self.encode(points_N4))]
        metainfo = [{"box_type_3d": LiDARInstance3DBoxes}]
        return structures.instance_tensors(
            self.bbox_head.predict_by_feat(*maps, batch_input_metas=metainfo, rescale=False)[0]
        )


def _heads(program: Program) -> Callable[[Tensor], Sequence[Tensor]]:
    def heads(pseudo_image: Tensor) -> Sequence[Tensor]:
        found = program({"pseudo_image": pseudo_image})
        return [found[name] for name in HEADS]

    return heads


class _RememberingAnchors:
    """An anchor generator that makes the anchors of a grid once."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._made = cache(lambda sizes, device: generator.grid_anchors(list(sizes), device=device))

    def grid_anchors(self, featmap_sizes: Sequence[Any], device: Any = "cpu") -> list[Tensor]:
        made: list[Tensor] = self._made(tuple(tuple(size) for size in featmap_sizes), torch.device(device))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def _remember_points(get_points: Any) -> Any:
    made = cache(lambda sizes, dtype, device: get_points([torch.Size(size) for size in sizes], dtype, device))

    def remembering(
        featmap_sizes: Sequence[Any], dtype: torch.dtype, device: torch.device, flatten: bool = False
    ) -> Any:
        return made(tuple(tuple(size) for size in featmap_sizes), dtype, device)

    return remembering
