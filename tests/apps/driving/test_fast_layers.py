"""The layers of the fast paths against the layers that they replace."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torchvision
from torch import nn

from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import network_of
from apps.driving.models.fast import fast_camera, fold_batch_norms
from apps.driving.models.library import load
from apps.driving.models.parity import random_camera

CASES = [(1, 1, 1, 1), (2, 0, 1, 1), (1, 2, 2, 2), (2, 1, 1, 4)]
"""Stride, padding, dilation, groups of offsets."""


def packed(modulated, stride, padding, dilation, groups, kernel=3):
    """mmcv's layer with offsets of some pixels, and its fast path."""
    load()
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    torch.manual_seed(0)
    kind = ModulatedDeformConv2dPack if modulated else DeformConv2dPack
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "deform_groups": groups}
    layer = kind(8, 6, kernel, **settings)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    return nn.Sequential(layer), fold_batch_norms(nn.Sequential(layer))


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_deformable_convolution_is_mmcvs_and_not_sampled_channel_by_channel(modulated, case, monkeypatch):
    layer, fast = packed(modulated, *case)
    image = torch.randn(2, 8, 23, 37)
    with torch.inference_mode():
        expected = layer(image)
        monkeypatch.setattr(torchvision.ops, "deform_conv2d", None)
        found = fast(image)
    assert found.shape == expected.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, expected, atol=1e-5)


def test_samples_outside_of_the_image_are_zero():
    layer, fast = packed(True, 1, 1, 1, 1)
    for offset in (1e30, -1e30, math.inf, -math.inf, 5.0):
        for module in (layer[0], fast[0].pack):
            nn.init.zeros_(module.conv_offset.weight)
            nn.init.constant_(module.conv_offset.bias, 0.5)
            module.conv_offset.bias.data[::2][:9] = offset
        with torch.inference_mode():
            image = torch.randn(1, 8, 9, 12)
            assert torch.allclose(fast(image), layer(image), atol=1e-5)


def test_a_map_smaller_than_the_kernel_and_groups_of_channels_are_left_to_mmcv():
    layer, fast = packed(False, 1, 2, 1, 1, kernel=5)
    image = torch.randn(1, 8, 4, 9)
    with torch.inference_mode():
        assert torch.equal(fast(image), layer(image))


@pytest.mark.parametrize("modulated", [True, False])
def test_gradients_and_autocast_are_left_to_mmcv(modulated):
    layer, fast = packed(modulated, 1, 1, 1, 2)
    image = torch.randn(2, 8, 9, 12)
    images = [image.clone().requires_grad_() for _ in range(2)]
    for input_image, network in zip(images, (layer, fast), strict=True):
        network(input_image).square().sum().backward()
    assert torch.allclose(images[0].grad, images[1].grad, rtol=1e-4, atol=1e-4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(fast(image), layer(image), rtol=0.02, atol=0.02)


def test_folded_layers_can_be_folded_again_and_pickled():
    layer, fast = packed(True, 1, 1, 1, 1)
    both = nn.Sequential(layer, nn.GroupNorm(2, 6))
    restored = pickle.loads(pickle.dumps(fold_batch_norms(fold_batch_norms(both))))
    image = torch.randn(2, 8, 9, 12)
    with torch.inference_mode():
        assert torch.allclose(restored(image), both(image), atol=1e-5)
        assert torch.equal(restored[0](image), fast(image))


@pytest.mark.parametrize("shape", [(0, 8, 5, 6), (0, 8, 1, 1)])
def test_an_empty_batch_stays_empty(shape):
    with torch.inference_mode():
        assert fold_batch_norms(nn.Sequential(nn.GroupNorm(2, 8)))(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_normalisation_of_a_large_map_keeps_its_precision(mean):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, 8, 540, 960) + mean
    with torch.inference_mode():
        exact = nn.functional.group_norm(image.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
        found = fold_batch_norms(nn.Sequential(norm))(image.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((found - exact).abs().max() / exact.abs().max()) < 3e-6


@pytest.fixture(scope="module")
def smoke():
    """The configuration of SMOKE, and its detector with offsets of about a pixel."""
    model = MMDet3DModel(config="smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d")
    torch.manual_seed(0)
    detector = model.build().eval()
    for name, value in detector.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(value, std=0.02)
    return model, detector


def test_smoke_is_computed_as_exactly_as_by_mmdet3ds_own_modules(smoke):
    """Compared by the distance from the result in 64 bits: offsets computed from noise magnify any rounding."""

    def maps(detector, image):
        return detector.bbox_head(detector.neck(detector.backbone(image)))

    def error(found):
        pairs = zip(itertools.chain(*found), itertools.chain(*exact), strict=True)
        return max(
            float((found_map - expected_map).abs().max() / expected_map.abs().max())
            for found_map, expected_map in pairs
        )

    _, detector = smoke
    image = torch.randn(1, 3, 192, 256)
    with torch.inference_mode():
        exact = maps(copy.deepcopy(detector).double(), image.double())
        assert 0 < error(maps(fast_camera(detector), image)) < 2 * error(maps(detector, image))


def test_smoke_has_its_channels_last_and_is_not_sampled_channel_by_channel(smoke, monkeypatch):
    network = network_of(*smoke)
    network.affine = (320, 96, 4)
    monkeypatch.setattr(torchvision.ops, "deform_conv2d", None)
    with torch.inference_mode():
        boxes, scores, _ = network.predict(random_camera())
    assert len(boxes) == len(scores) and bool(boxes.isfinite().all())
    layer = next(
        module
        for module in network.detector.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    )
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
