"""Layers of the fast paths on a CPU: deformable convolution, and group normalisation with the channels innermost.

Both compute what the layer in whose place they stand does, up to the rounding of 32-bit sums; where they do not know
how (a GPU, half precision or autocast to it, groups of channels, gradients, an empty map), and where a program is
exported, they call it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.driving.models.library import load

_CELLS = 1 << 21
"""So many sampled values are held at once: 8 MB."""
_SLAB_CELLS = 1 << 15
"""So many values a thread squares at once: they stay in its cache."""


def with_fast_layers(module: nn.Module) -> nn.Module:
    """The module with the layers here in the places of those that they know; changes it."""
    load()
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    made: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.GroupNorm: SlabGroupNorm,
        DeformConv2dPack: FastDeformConv,
        ModulatedDeformConv2dPack: FastDeformConv,
    }
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in made and not isinstance(parent, FastDeformConv | SlabGroupNorm):
                setattr(parent, name, made[type(child)](child))
    return module


def is_deformable(module: nn.Module) -> bool:
    """Whether it has a deformable convolution."""
    load()
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    return any(isinstance(part, DeformConv2d | ModulatedDeformConv2d) for part in module.modules())


class FastDeformConv(nn.Module):
    """mmcv's ``DCN`` or ``DCNv2`` with its own offsets, sampled by ``sampled_deform_conv``."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, image_BCHW: Tensor) -> Tensor:
        pack, taps = self.pack, self.pack.weight[0, 0].numel()
        least = min(side - kernel for side, kernel in zip(image_BCHW.shape[2:], pack.kernel_size, strict=True))
        # A map smaller than its kernel mmcv pads first.
        if pack.groups != 1 or least < 0 or not _is_computed_here(image_BCHW) or pack.weight.dtype != torch.float32:
            return pack(image_BCHW)  # type: ignore[no-any-return]
        found = pack.conv_offset(image_BCHW)
        geometry = pack.stride, pack.padding, pack.dilation
        if not hasattr(pack, "bias"):  # DCN, which has no masks either
            return sampled_deform_conv(image_BCHW, found, None, pack.weight, None, *geometry)
        last = 2 * taps * pack.deform_groups
        offsets, masks = found[:, :last], found[:, last:].sigmoid()
        return sampled_deform_conv(image_BCHW, offsets, masks, pack.weight, pack.bias, *geometry)


def sampled_deform_conv(
    image_BCHW: Tensor,
    offsets: Tensor,
    masks: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Deformable convolution (Dai et al., 2017), modulated (Zhu et al., 2019) where there are ``masks``.

    ``offsets`` (B, 2 G K, h, w) are y and x of each of K taps in G groups of channels, ``masks`` (B, G K, h, w).
    A sample is the weighted sum of the four pixels around it, a row of channels each, as ``embedding_bag`` adds them
    up with vector instructions; torchvision samples one channel after the other. Returns (B, O, h, w), channels last.
    """
    (batch, channels, height, width), (out, _, *kernel) = image_BCHW.shape, weight.shape
    taps, (rows, columns) = kernel[0] * kernel[1], offsets.shape[2:]
    groups = offsets.shape[1] // (2 * taps)
    within = channels // groups
    pixels = image_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width * groups, within)
    by_tap = weight.reshape(out, groups, within, taps).permute(1, 3, 2, 0).reshape(groups * taps * within, out)
    moved = offsets.permute(0, 2, 3, 1).reshape(batch, rows, columns, groups, taps, 2)
    masked = None if masks is None else masks.permute(0, 2, 3, 1).reshape(batch, rows, columns, groups, taps)
    tap_y, tap_x = torch.meshgrid(*(torch.arange(side) for side in kernel), indexing="ij")
    start_y = (torch.arange(rows) * stride[0] - padding[0])[:, None] + tap_y.flatten() * dilation[0]
    start_x = (torch.arange(columns) * stride[1] - padding[1])[:, None] + tap_x.flatten() * dilation[1]
    group = torch.arange(groups)[:, None]
    found = image_BCHW.new_empty(batch, rows * columns, out)
    step = max(1, _CELLS // (columns * taps * channels))
    for image in range(batch):
        for first in range(0, rows, step):
            part = slice(first, first + step)
            y_0, y_1, at_top, at_bottom = _around(moved[image, part, ..., 0] + start_y[part, None, None], height)
            x_0, x_1, at_left, at_right = _around(moved[image, part, ..., 1] + start_x[:, None], width)
            if masked is not None:
                at_top, at_bottom = at_top * masked[image, part], at_bottom * masked[image, part]
            corners = torch.stack([y * width + x for y in (y_0, y_1) for x in (x_0, x_1)], dim=-1)
            shares = torch.stack([y * x for y in (at_top, at_bottom) for x in (at_left, at_right)], dim=-1)
            samples = nn.functional.embedding_bag(
                (corners * groups + group[..., None]).flatten(0, -2),
                pixels[image],
                per_sample_weights=shares.flatten(0, -2),
                mode="sum",
            )
            done = found[image, first * columns : (first + step) * columns]
            torch.mm(samples.view(-1, by_tap.shape[0]), by_tap, out=done)
    if bias is not None:
        found += bias
    return found.view(batch, rows, columns, out).permute(0, 3, 1, 2)


def _around(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels before and after places along a side of ``size``, and the share of each: none where there is none."""
    place = place.clamp(-2, size + 1)
    floor = place.floor()
    after = place - floor
    before = floor.long()
    return (
        before.clamp(0, size - 1),
        (before + 1).clamp(0, size - 1),
        (1 - after) * ((before >= 0) & (before < size)),
        after * ((before >= -1) & (before < size - 1)),
    )


class SlabGroupNorm(nn.Module):
    """``nn.GroupNorm`` of a map with the channels innermost.

    torch adds up x and x squared over the whole of such a map one by one, and takes the one sum from the other: the
    error grows with the area, and with the mean beside the spread. Here the squares are those of the differences from
    the mean, added up slab by slab.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, map_BCHW: Tensor) -> Tensor:
        norm = self.norm
        if not norm.affine or map_BCHW.ndim != 4 or not _is_computed_here(map_BCHW):
            return norm(map_BCHW)  # type: ignore[no-any-return]
        batch, channels, height, width = map_BCHW.shape
        pixels_BPC = map_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        mean = self._of_group(pixels_BPC.mean(1))[:, None]
        step = max(1, _SLAB_CELLS * torch.get_num_threads() // channels)
        slabs = (pixels_BPC[:, start : start + step] for start in range(0, height * width, step))
        squares = torch.stack([(slab - mean).square_().sum(1) for slab in slabs]).double().sum(0)
        variance = self._of_group(squares / (height * width))
        scale = ((variance + norm.eps).rsqrt().float() * norm.weight)[:, None]
        found = torch.addcmul(norm.bias - mean * scale, pixels_BPC, scale)
        return found.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _of_group(self, means_BC: Tensor) -> Tensor:
        """(B, C) the mean of each channel's group."""
        by_group = means_BC.view(len(means_BC), self.norm.num_groups, -1)
        return by_group.mean(-1, keepdim=True).expand_as(by_group).flatten(1)


def _is_computed_here(values: Tensor) -> bool:
    """Whether they are of the kind that the layers here know; what is exported keeps the layer itself, of any size."""
    exported = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    otherwise = exported or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return not otherwise and values.device.type == "cpu" and values.dtype == torch.float32 and values.numel() > 0
