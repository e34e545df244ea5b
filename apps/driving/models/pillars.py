"""PointPillars for prediction with a program: pillar encoder, dense network, box decoding. Imports no mmdet3d."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from apps.driving.models.decoding import LIDAR, AnchorDecoder, BoxTensors, anchors
from apps.driving.models.ops.voxels import group_pillars, group_points
from apps.driving.models.pointpillars import PointPillars
from apps.driving.types import LidarInput
from shared.deploy.programs.module import ProgramModule
from shared.deploy.programs.program import Program

HEADS = ("scores", "boxes", "directions")
"""The names of the dense network's outputs."""
NO_LIMIT = 1 << 40
_NORM_EPSILON = 1e-3
"""The epsilon of the batch normalisation in mmdet3d's pillar encoder."""


class PillarEncoder(nn.Module):
    """A pillar encoder that encodes only the points; mmdet3d pads every pillar with zeros and encodes those too.

    ``size`` and ``extent`` are a pillar's sides (3,) and the range (6,) in metres; ``weight`` (10, C) and ``bias`` (C,)
    are those of the encoder's only layer with its normalisation folded in. ``dynamic`` pillars are not padded; other
    pillars count as padded unless they hold ``max_points`` points.
    """

    size: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor
    point_weight: Tensor
    rows: int
    columns: int

    def __init__(
        self,
        size: Tensor,
        extent: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        max_points: int = NO_LIMIT,
        max_pillars: int = NO_LIMIT,
        dynamic: bool = False,
    ) -> None:
        super().__init__()
        self.max_points, self.max_pillars, self.dynamic = max_points, max_pillars, dynamic
        self.columns, self.rows = (round(float((extent[n + 3] - extent[n]) / size[n])) for n in (0, 1))
        self.register_buffer("size", size)
        self.register_buffer("offset", size / 2 + extent[:3])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        # The weight of a point's offset from the pillar centre, which enters three of the features, and of its
        # intensity. mmdet3d's encoder of padded pillars also replaces the coordinates by this offset ("legacy").
        self.register_buffer("point_weight", torch.cat([weight[:3] + weight[4:7] + weight[7:10], weight[3:4]]))
        # Kept on the host on any device: the shape of the grid is computed from them for every sweep.
        self._grid = size, extent

    def forward(self, points_N4: Tensor) -> Tensor:
        """The pseudo-image (1, C, rows, columns) of a sweep."""
        grouped = group_pillars(points_N4, *self._grid)
        if len(grouped.cell) > self.max_pillars:
            grouped = group_points(points_N4, *self._grid, self.max_points, self.max_pillars)
        grouped = grouped.first(self.max_points)
        pillar, cell, count = grouped.voxel, grouped.cell, grouped.count
        points = points_N4.index_select(0, grouped.source)
        pillar_centre = cell.flip(1).to(points.dtype) * self.size + self.offset
        points[:, :3] -= pillar_centre.index_select(0, pillar)
        mean = points.new_zeros(len(cell), 3).index_add_(0, pillar, points[:, :3]) / count[:, None]
        # The part that all points of a pillar share is added once, after the maximum over the part that differs.
        shared_part = self.bias - mean @ self.weight[4:7]
        if self.dynamic:
            shared_part = shared_part + pillar_centre @ self.weight[:3]
        encoded = points @ self.point_weight
        maximum = encoded.new_full((len(cell), encoded.shape[1]), -torch.inf)
        maximum.scatter_reduce_(0, pillar[:, None].expand_as(encoded), encoded, "amax")
        pooled = (maximum + shared_part).relu_()
        if not self.dynamic:
            # A pillar that is not full is padded with zeros, which encode to the bias.
            pooled = torch.where(count[:, None] < self.max_points, torch.maximum(pooled, self.bias), pooled)
        canvas = pooled.new_zeros(pooled.shape[1], self.rows * self.columns)
        canvas[:, cell[:, 1] * self.columns + cell[:, 2]] = pooled.t()
        return canvas.view(1, -1, self.rows, self.columns)


def program_heads(program: Program) -> ProgramModule:
    """A program in the place of ``FoldedHeads``: the outputs ``HEADS`` for a pseudo-image (B, C, rows, columns)."""
    return ProgramModule(program, ("pseudo_image",), HEADS)


def fold_layer(weight: Tensor, norm: Mapping[str, Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Weight (in, out) and bias (out,) of a linear layer (out, in) with the following batch normalisation folded in."""
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + epsilon)
    return (weight * scale[:, None]).detach().t().contiguous(), (norm["bias"] - norm["running_mean"] * scale).detach()


def pillar_encoder(model: PointPillars, input: LidarInput, weights: Mapping[str, Tensor]) -> PillarEncoder:
    """A model's pillar encoder with the weights of an artifact."""
    x0, y0, z0, x1, y1, z1 = input.range_m
    size, extent = torch.tensor([model.pillar_m, model.pillar_m, z1 - z0]), torch.tensor([x0, y0, z0, x1, y1, z1])
    layer = "voxel_encoder.pfn_layers.0."
    linear_prefix, norm_prefix = ("0.", "1.") if model.dynamic else ("linear.", "norm.")
    norm = {name: weights[f"{layer}{norm_prefix}{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    weight, bias = fold_layer(weights[f"{layer}{linear_prefix}weight"], norm, _NORM_EPSILON)
    return PillarEncoder(size, extent, weight, bias, dynamic=model.dynamic)


class ProgramPillars(nn.Module):
    """PointPillars whose dense network is a program, from the settings and weights of an artifact.

    It encodes every point of a pillar. mmdet3d takes the first ones in the order of the file, and files are written
    beam by beam, from the top one down: a network trained on sweeps in random order has not seen pillars without their
    lowest points.
    """

    def __init__(self, model: PointPillars, input: LidarInput, weights: Mapping[str, Tensor], program: Program) -> None:
        super().__init__()
        self.encoder = pillar_encoder(model, input, weights)
        self.heads = program_heads(program)
        self.input = input
        self.suppression = replace(
            LIDAR, candidates=model.candidates, min_score=model.least_score, boxes=model.most_boxes
        )
        self._decoders: dict[tuple[int, int], AnchorDecoder] = {}

    def predict(self, points_N4: Tensor) -> BoxTensors:
        """The detections, as from ``structures.predict``, in a sweep with at least one point in range."""
        maps = self.heads(self.encoder(points_N4))
        rows, columns = maps[0].shape[2:]
        if (rows, columns) not in self._decoders:
            anchor_grid = anchors(self.input, rows, columns).to(maps[0].device)
            self._decoders[rows, columns] = AnchorDecoder(anchor_grid, len(self.input.classes), self.suppression)
        return self._decoders[rows, columns](*maps)
