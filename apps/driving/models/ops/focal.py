"""The sigmoid focal loss (Lin et al., 2017, eq. 5), for which mmdet calls compiled code if tensors are on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills ``output`` (N, C) with the loss of ``logits`` (N, C) against classes ``target`` (N,).

    A target equal to C is background. ``weight`` (C,) holds the weight of each target class, or is empty.
    """
    output.copy_(_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fills ``grad`` (N, C) with the derivative of each loss with respect to its logit."""
    with torch.enable_grad():
        logits_leaf = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(logits_leaf, target, weight, gamma, alpha).sum(), logits_leaf)
    grad.copy_(gradient)


def _loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    signed_logits = torch.where(positive, logits, -logits)
    alpha_t = torch.where(positive, alpha, 1 - alpha)
    loss = -alpha_t * torch.sigmoid(-signed_logits) ** gamma * torch.nn.functional.logsigmoid(signed_logits)
    if weight.numel():
        class_index = torch.where(target < len(weight), target, 0)
        loss = loss * torch.where(target < len(weight), weight[class_index], 1.0)[:, None]
    return loss
