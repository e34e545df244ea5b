"""Deformable convolution without modulation, through mmcv's own function, against explicit loops."""

import itertools
import math

import pytest
import torch

from apps.driving.models.library import load

CASES = [(1, 1, 1, 1, 1), (2, 1, 1, 2, 2), (1, 2, 2, 1, 4)]
"""Stride, padding, dilation, groups, groups of offsets."""


@pytest.fixture(scope="module")
def deform_conv2d():
    load()
    from mmcv.ops import deform_conv2d

    return deform_conv2d


def tensors(stride, padding, dilation, groups, offset_groups, dtype=torch.float64):
    generator = torch.Generator().manual_seed(groups)
    image = torch.randn(2, 4, 7, 6, generator=generator, dtype=dtype)
    weight = torch.randn(6, 4 // groups, 3, 3, generator=generator, dtype=dtype)
    height, width = ((size + 2 * padding - 2 * dilation - 1) // stride + 1 for size in image.shape[2:])
    offset = 1.5 * torch.randn(2, 2 * offset_groups * 9, height, width, generator=generator, dtype=dtype)
    return image, offset, weight


def pixel(plane, y, x):
    """Bilinear, zero outside."""
    top, left = torch.floor(y), torch.floor(x)
    total = 0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total = total + plane[int(row), int(column)] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def by_loop(image, offset, weight, stride, padding, dilation, groups, offset_groups):
    out = image.new_zeros(2, 6, *offset.shape[2:])
    for b, o, i, j in itertools.product(range(2), range(6), *map(range, offset.shape[2:])):
        for c, (tap, (u, v)) in itertools.product(
            range(weight.shape[1]), enumerate(itertools.product(range(3), repeat=2))
        ):
            channel = o // (6 // groups) * weight.shape[1] + c
            place = channel // (4 // offset_groups) * 18 + 2 * tap
            y = i * stride - padding + u * dilation + offset[b, place, i, j]
            x = j * stride - padding + v * dilation + offset[b, place + 1, i, j]
            out[b, o, i, j] += weight[o, c, u, v] * pixel(image[b, channel], y, x)
    return out


@pytest.mark.parametrize("case", CASES)
def test_deformable_convolution_equals_a_loop_over_taps(deform_conv2d, case):
    image, offset, weight = tensors(*case)
    assert torch.allclose(deform_conv2d(image, offset, weight, *case), by_loop(image, offset, weight, *case))


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_deformable_convolution_are_the_derivatives(deform_conv2d, case):
    inputs = [value.requires_grad_() for value in tensors(*case)]
    assert torch.autograd.gradcheck(lambda *values: deform_conv2d(*values, *case), inputs, fast_mode=True)


def test_deformable_convolution_in_bf16_is_that_of_float32_rounded(deform_conv2d):
    image, offset, weight = tensors(*CASES[0], dtype=torch.bfloat16)
    wide = deform_conv2d(image.float(), offset.float(), weight.float(), *CASES[0])
    assert torch.equal(deform_conv2d(image, offset, weight, *CASES[0]), wide.bfloat16())


def test_a_sample_at_a_nan_offset_is_outside_of_the_image_in_outputs_and_gradients(deform_conv2d):
    image, offset, weight = tensors(*CASES[0])
    offset[0, 2::9] = math.nan
    outside = offset.nan_to_num(nan=1e6)
    found = [value.clone().requires_grad_() for value in (image, offset, weight)]
    expected = [value.clone().requires_grad_() for value in (image, outside, weight)]
    outputs = [deform_conv2d(*values, *CASES[0]) for values in (found, expected)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert all(
        torch.equal(found_tensor.grad, expected_tensor.grad)
        for found_tensor, expected_tensor in zip(found, expected, strict=True)
    )
