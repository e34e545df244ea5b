"""Group normalisation with the faster gradient equals torch's, both alone and in the detector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apps.medical.models.group_norm import GroupNorm, use_fast_group_norm
from apps.medical.models.retinanet import RetinaNet3D
from apps.medical.types import ChestInput


def _image(dtype: torch.dtype, memory: torch.memory_format) -> Tensor:
    image = torch.randn(2, 16, 6, 8, 10, generator=torch.Generator().manual_seed(1))
    return image.to(dtype).to(memory_format=memory).requires_grad_()


def _gradients(layer: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    layer.zero_grad()
    image.grad = None
    out = layer(image)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out))
    assert image.grad is not None
    return out.detach(), image.grad.clone(), *(parameter.grad.clone() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_values_and_gradients_equal_torch_s(dtype: torch.dtype, memory: torch.memory_format) -> None:
    layer = nn.GroupNorm(8, 16)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    image = _image(dtype, memory)
    expected = _gradients(layer, image)
    use_fast_group_norm(layer)
    assert isinstance(layer, GroupNorm)
    found = _gradients(layer, image)
    # One bf16 rounding of the largest value; fp32 uses torch's own implementation.
    close = 2**-8 if dtype == torch.bfloat16 else 0.0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).abs().max()) <= close * float(theirs.abs().max())
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1].is_contiguous(memory_format=memory)


def test_bf16_uses_the_faster_gradient() -> None:
    layer = nn.GroupNorm(8, 16)
    use_fast_group_norm(layer)
    image = _image(torch.bfloat16, torch.channels_last_3d)
    assert type(layer(image).grad_fn).__name__ == "_GroupNormBackward"
    with torch.no_grad():
        assert layer(image).grad_fn is None


def test_every_group_norm_of_the_detector_uses_it() -> None:
    detector = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=16, stem=3).build(
        ChestInput(patch_size=(32, 32, 16))
    )
    kinds = {type(module) for module in detector.modules() if isinstance(module, nn.GroupNorm)}
    assert kinds == {GroupNorm}
