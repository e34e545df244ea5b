"""Layers of the fast paths on a CPU: deformable convolution, and group normalisation with channels last.

Both compute the same as the layer that they replace, up to the rounding of 32-bit sums. They call the original layer
for what they do not support (a GPU, half precision or autocast, grouped convolutions, gradients, an empty map), and
while a program is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.driving.models.library import load

_MAX_SAMPLES = 1 << 21
"""Maximum number of sampled values held at once: 8 MB."""
_SLAB_VALUES = 1 << 15
"""Number of values that a thread squares at once, so that they stay in its cache."""


def with_fast_layers(module: nn.Module) -> nn.Module:
    """Replaces the supported layers in ``module`` by those of this file, in place, and returns it."""
    load()
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    replacements: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.GroupNorm: SlabGroupNorm,
        DeformConv2dPack: FastDeformConv,
        ModulatedDeformConv2dPack: FastDeformConv,
    }
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in replacements and not isinstance(parent, FastDeformConv | SlabGroupNorm):
                setattr(parent, name, replacements[type(child)](child))
    return module


def is_deformable(module: nn.Module) -> bool:
    """Whether the module contains a deformable convolution."""
    load()
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    return any(isinstance(part, DeformConv2d | ModulatedDeformConv2d) for part in module.modules())


class FastDeformConv(nn.Module):
    """mmcv's ``DCN`` or ``DCNv2``, which predicts its offsets, sampled by ``sampled_deform_conv``."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, image_BCHW: Tensor) -> Tensor:
        pack, taps = self.pack, self.pack.weight[0, 0].numel()
        is_exported = torch.compiler.is_exporting()
        if not is_exported and not self._can_sample(image_BCHW):
            return pack(image_BCHW)  # type: ignore[no-any-return]
        # The exporter would fix the batch in mmcv's own operator, but knows torchvision's.
        convolve = _torchvision_deform_conv if is_exported else sampled_deform_conv
        offsets_and_masks = pack.conv_offset(image_BCHW)
        geometry = pack.stride, pack.padding, pack.dilation
        if not hasattr(pack, "bias"):  # DCN, which has no masks either
            return convolve(image_BCHW, offsets_and_masks, None, pack.weight, None, *geometry)
        offset_channels = 2 * taps * pack.deform_groups
        offsets, masks = offsets_and_masks[:, :offset_channels], offsets_and_masks[:, offset_channels:].sigmoid()
        return convolve(image_BCHW, offsets, masks, pack.weight, pack.bias, *geometry)

    def _can_sample(self, image_BCHW: Tensor) -> bool:
        pack = self.pack
        margins = [side - kernel for side, kernel in zip(image_BCHW.shape[2:], pack.kernel_size, strict=True)]
        # mmcv pads a map that is smaller than the kernel.
        is_plain = pack.groups == 1 and min(margins) >= 0 and pack.weight.dtype == torch.float32
        return is_plain and _is_supported(image_BCHW)


def _torchvision_deform_conv(
    image_BCHW: Tensor,
    offsets: Tensor,
    masks: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``sampled_deform_conv`` by torchvision's operator, which is exported as ONNX's DeformConv."""
    import torchvision

    return torchvision.ops.deform_conv2d(  # type: ignore[no-any-return]
        image_BCHW, offsets, weight, bias, tuple(stride), tuple(padding), tuple(dilation), masks
    )


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
    """Deformable convolution (Dai et al., 2017), modulated (Zhu et al., 2019) if there are ``masks``.

    ``offsets`` (B, 2 G K, h, w) are y and x of each of K taps in G groups of channels, ``masks`` (B, G K, h, w).
    A sample is the weighted sum of the four pixels around it. ``embedding_bag`` adds up their rows of channels with
    vector instructions, whereas torchvision samples one channel at a time. Returns (B, O, h, w), channels last.
    """
    (batch, channels, height, width), (out_channels, _, *kernel) = image_BCHW.shape, weight.shape
    taps, (rows, columns) = kernel[0] * kernel[1], offsets.shape[2:]
    groups = offsets.shape[1] // (2 * taps)
    group_channels = channels // groups
    pixels = image_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width * groups, group_channels)
    weight_by_tap = (
        weight.reshape(out_channels, groups, group_channels, taps)
        .permute(1, 3, 2, 0)
        .reshape(groups * taps * group_channels, out_channels)
    )
    offset_by_tap = offsets.permute(0, 2, 3, 1).reshape(batch, rows, columns, groups, taps, 2)
    mask_by_tap = None if masks is None else masks.permute(0, 2, 3, 1).reshape(batch, rows, columns, groups, taps)
    tap_y, tap_x = torch.meshgrid(*(torch.arange(side) for side in kernel), indexing="ij")
    start_y = (torch.arange(rows) * stride[0] - padding[0])[:, None] + tap_y.flatten() * dilation[0]
    start_x = (torch.arange(columns) * stride[1] - padding[1])[:, None] + tap_x.flatten() * dilation[1]
    group = torch.arange(groups)[:, None]
    result = image_BCHW.new_empty(batch, rows * columns, out_channels)
    rows_per_step = max(1, _MAX_SAMPLES // (columns * taps * channels))
    for image in range(batch):
        for first in range(0, rows, rows_per_step):
            row_slice = slice(first, first + rows_per_step)
            y_0, y_1, at_top, at_bottom = _neighbours(
                offset_by_tap[image, row_slice, ..., 0] + start_y[row_slice, None, None], height
            )
            x_0, x_1, at_left, at_right = _neighbours(offset_by_tap[image, row_slice, ..., 1] + start_x[:, None], width)
            if mask_by_tap is not None:
                at_top, at_bottom = at_top * mask_by_tap[image, row_slice], at_bottom * mask_by_tap[image, row_slice]
            corners = torch.stack([y * width + x for y in (y_0, y_1) for x in (x_0, x_1)], dim=-1)
            corner_weights = torch.stack([y * x for y in (at_top, at_bottom) for x in (at_left, at_right)], dim=-1)
            samples = nn.functional.embedding_bag(
                (corners * groups + group[..., None]).flatten(0, -2),
                pixels[image],
                per_sample_weights=corner_weights.flatten(0, -2),
                mode="sum",
            )
            result_rows = result[image, first * columns : (first + rows_per_step) * columns]
            torch.mm(samples.view(-1, weight_by_tap.shape[0]), weight_by_tap, out=result_rows)
    if bias is not None:
        result += bias
    return result.view(batch, rows, columns, out_channels).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels before and after each position along a side of ``size``, and their weights: 0 outside of the image."""
    position = position.clamp(-2, size + 1)
    floor = position.floor()
    after = position - floor
    before = floor.long()
    return (
        before.clamp(0, size - 1),
        (before + 1).clamp(0, size - 1),
        (1 - after) * ((before >= 0) & (before < size)),
        after * ((before >= -1) & (before < size - 1)),
    )


class SlabGroupNorm(nn.Module):
    """``nn.GroupNorm`` of a map with channels last.

    For such a map torch sums x and x squared over the whole area and subtracts, so that the error grows with the area
    and with the ratio of mean to standard deviation. Here the squared differences from the mean are summed slab by
    slab.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, map_BCHW: Tensor) -> Tensor:
        norm = self.norm
        if not norm.affine or map_BCHW.ndim != 4 or not _is_supported(map_BCHW):
            return norm(map_BCHW)  # type: ignore[no-any-return]
        batch, channels, height, width = map_BCHW.shape
        pixels_BPC = map_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        mean = self._group_means(pixels_BPC.mean(1))[:, None]
        slab_pixels = max(1, _SLAB_VALUES * torch.get_num_threads() // channels)
        slabs = (pixels_BPC[:, start : start + slab_pixels] for start in range(0, height * width, slab_pixels))
        squares = torch.stack([(slab - mean).square_().sum(1) for slab in slabs]).double().sum(0)
        variance = self._group_means(squares / (height * width))
        scale = ((variance + norm.eps).rsqrt().float() * norm.weight)[:, None]
        normalised = torch.addcmul(norm.bias - mean * scale, pixels_BPC, scale)
        return normalised.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _group_means(self, means_BC: Tensor) -> Tensor:
        """(B, C) the mean over each channel's group, from the means of the channels."""
        by_group = means_BC.view(len(means_BC), self.norm.num_groups, -1)
        return by_group.mean(-1, keepdim=True).expand_as(by_group).flatten(1)


def _is_supported(values: Tensor) -> bool:
    """Whether the layers here support these values. Exported programs keep the original layer, which takes any size."""
    is_exported = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    needs_original = is_exported or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return not needs_original and values.device.type == "cpu" and values.dtype == torch.float32 and values.numel() > 0
