"""Deformable convolution (Dai et al., 2017), also modulated (Zhu et al., 2019), with the signatures of ``mmcv._ext``.

torchvision has compiled versions of both, with the same layout of offsets (y, then x, of each tap). It supports neither
half precision on the CPU nor bf16 anywhere, so that these are computed in float32. Its CPU code reads outside of the
image if an offset is NaN, as all are after a training diverged: here such a sample counts as outside of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

_OUTSIDE_OFFSET_PX = 1e6
"""An offset in pixels that leads outside of any image."""


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
    """Writes the convolution of ``input`` (B, C, H, W) to ``output``; ``ones`` and ``columns`` are not used."""
    output.copy_(
        torchvision.ops.deform_conv2d(
            _at_least_float32(input),
            _nan_to_outside(offset),
            _at_least_float32(weight),
            _at_least_float32(bias) if with_bias else None,
            stride=(stride_h, stride_w),
            padding=(pad_h, pad_w),
            dilation=(dilation_h, dilation_w),
            mask=_at_least_float32(mask),
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
    """Writes the gradients of the convolution to the ``grad_...`` tensors."""
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        _at_least_float32(grad_output),
        _at_least_float32(input),
        _at_least_float32(weight),
        _nan_to_outside(offset),
        _at_least_float32(mask),
        _at_least_float32(bias if with_bias else input.new_zeros(weight.shape[0])),
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


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Writes the convolution of ``input`` (B, C, H, W), without modulation and bias, to ``output``.

    ``columns``, ``ones`` and ``im2col_step`` are not used.
    """
    output.copy_(
        torchvision.ops.deform_conv2d(
            _at_least_float32(input),
            _nan_to_outside(offset),
            _at_least_float32(weight),
            stride=(dH, dW),
            padding=(padH, padW),
            dilation=(dilationH, dilationW),
        )
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Writes the gradients of the input and of the offsets to ``grad_input`` and ``grad_offset``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    gradients = _unmodulated_gradients(grad_output, input, weight, offset, geometry)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds ``scale`` times the gradient of the weights to ``grad_weight``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    weight = torch.zeros_like(grad_weight)  # the gradient of the weights does not depend on them
    gradients = _unmodulated_gradients(grad_output, input, weight, offset, geometry)
    grad_weight.add_(gradients[1].to(grad_weight.dtype), alpha=scale)


def _unmodulated_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, geometry: tuple[int, ...]
) -> Sequence[Tensor]:
    """Gradients of input, weight and offset, followed by those of the absent mask and bias."""
    tensors = (
        _at_least_float32(grad_output),
        _at_least_float32(input),
        _at_least_float32(weight),
        _nan_to_outside(offset),
    )
    no_mask_and_bias = tensors[1].new_zeros(len(input), 1), tensors[1].new_zeros(len(weight))
    gradients: Sequence[Tensor] = torch.ops.torchvision._deform_conv2d_backward(
        *tensors, *no_mask_and_bias, *geometry, False
    )
    return gradients


def _nan_to_outside(offset: Tensor) -> Tensor:
    return _at_least_float32(offset).nan_to_num(nan=_OUTSIDE_OFFSET_PX, posinf=math.inf, neginf=-math.inf)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
