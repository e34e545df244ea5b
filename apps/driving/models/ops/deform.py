"""Modulated deformable convolution (Zhu et al., 2019, "Deformable ConvNets v2"), with the signatures of ``mmcv._ext``.

torchvision compiles the same operator; its offsets are laid out alike (y, then x, of each tap). It has none for half
precision on the CPU, nor for bf16 anywhere, so that these are computed in float32.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes the convolution of ``input`` (B, C, H, W) into ``output``; ``ones`` and ``columns`` are not used."""
    output.copy_(
        torchvision.ops.deform_conv2d(
            _wide(input),
            _wide(offset),
            _wide(weight),
            _wide(bias) if with_bias else None,
            stride=(stride_h, stride_w),
            padding=(pad_h, pad_w),
            dilation=(dilation_h, dilation_w),
            mask=_wide(mask),
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes the gradients of the convolution into the tensors named for them."""
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        _wide(grad_output),
        _wide(input),
        _wide(weight),
        _wide(offset),
        _wide(mask),
        _wide(bias if with_bias else input.new_zeros(weight.shape[0])),
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
        True,
    )
    targets = (grad_input, grad_weight, grad_offset, grad_mask, *((grad_bias,) if with_bias else ()))
    for target, gradient in zip(targets, gradients, strict=False):
        target.copy_(gradient)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
