from __future__ import annotations

import pytest
import torch

from apps.driving.models.ops.extension import install

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_focal_loss_on_a_gpu_equals_mmdets_own(gamma):
    install()
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss, sigmoid_focal_loss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator) * 4
    target = torch.randint(0, 4, (50,), generator=generator)
    weight = torch.rand(50, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = sigmoid_focal_loss(ours, target, weight, gamma=gamma, alpha=0.25, avg_factor=7)
    classes = torch.nn.functional.one_hot(target, 4)[:, :3]
    expected = py_sigmoid_focal_loss(theirs, classes, weight, gamma=gamma, alpha=0.25, avg_factor=7)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_extreme_logits_stay_finite():
    install()
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert float(loss) == pytest.approx(0.75 * 200 + 0.25 * 200)
