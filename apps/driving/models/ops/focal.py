"""The sigmoid focal loss (Lin et al., 2017, eq. 5), which mmdet asks of compiled code where tensors are on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills ``output`` (N, C) with the loss of ``logits`` (N, C) against classes ``target`` (N,).

    A target equal to C is background. ``weight`` (C,) counts each class of the target, or is empty.
    """
    output.copy_(_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills ``grad`` (N, C) with the derivative of each loss by its logit."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (found,) = torch.autograd.grad(_loss(leaf, target, weight, gamma, alpha).sum(), leaf)
    grad.copy_(found)


def _loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    signed = torch.where(positive, logits, -logits)
    share = torch.where(positive, alpha, 1 - alpha)
    loss = -share * torch.sigmoid(-signed) ** gamma * torch.nn.functional.logsigmoid(signed)
    if weight.numel():
        known = torch.where(target < len(weight), target, 0)
        loss = loss * torch.where(target < len(weight), weight[known], 1.0)[:, None]
    return loss
