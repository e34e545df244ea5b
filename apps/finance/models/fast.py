"""A fast path for pytorch-forecasting's TFT: the same parameters, names and outputs, in fewer and larger kernels.

The TFT treats each covariate with a small network of its own and resizes vectors with ``F.interpolate``, whose
backward pass is slow on every device. Here

- a resize is a product with a constant matrix,
- the covariates' networks run as one batched product,
- the LSTMs take whole sequences, since all windows have the same length, and the attention mask is a constant,
  so that no length is read back from the device.

``accelerate`` takes the model apart no further: the parameters stay where they were, so that a state dict fits both.
Dropout draws other random numbers than the original does; without dropout the two are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def accelerate(tft: nn.Module, *, context: int, horizon: int) -> nn.Module:
    """Returns ``tft`` with its slow parts replaced, for windows of ``context`` + ``horizon`` rows."""
    from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
        AddNorm,
        ResampleNorm,
        VariableSelectionNetwork,
    )

    for module in list(tft.modules()):
        if isinstance(module, ResampleNorm) and module.input_size != module.output_size:
            module.resample = Resize(module.input_size, module.output_size)
        elif isinstance(module, AddNorm) and module.input_size != module.skip_size:
            module.resample = Resize(module.skip_size, module.input_size)
    for name, module in list(tft.named_children()):
        if isinstance(module, VariableSelectionNetwork) and GroupedSelection.fits(module):
            setattr(tft, name, GroupedSelection(module))
    tft.lstm_encoder, tft.lstm_decoder = WholeLSTM(tft.lstm_encoder), WholeLSTM(tft.lstm_decoder)
    tft.attention_mask = AttentionMask(context, horizon, causal=tft.hparams.causal_attention)
    # A module as attribute would not hide the method of the class; an entry in the instance does.
    tft.__dict__["get_attention_mask"] = tft.attention_mask
    return tft


def resize_matrix(size_in: int, size_out: int) -> Tensor:
    """(size_in, size_out) the linear interpolation with aligned corners of ``F.interpolate`` as a matrix."""
    unit = torch.eye(size_in)[:, None]  # in float32, so that the weights are the very ones of ``F.interpolate``
    return functional.interpolate(unit, size_out, mode="linear", align_corners=True)[:, 0]


class Resize(nn.Module):
    """``TimeDistributedInterpolation`` as a product: (..., size_in) to (..., size_out)."""

    matrix: Tensor

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.register_buffer("matrix", resize_matrix(size_in, size_out), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class WholeLSTM(nn.LSTM):
    """The library's LSTM over sequences that all have their full length; ``lengths`` is not looked at."""

    def __init__(self, source: nn.LSTM) -> None:
        super().__init__(
            source.input_size,
            source.hidden_size,
            source.num_layers,
            batch_first=source.batch_first,
            dropout=source.dropout,
            device="meta",
        )
        for name, parameter in source.named_parameters():
            setattr(self, name, parameter)

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None, enforce_sorted: bool = True) -> Any:
        out, states = super().forward(x, tuple(state.contiguous() for state in hx))
        # torch 2.11 traces an LSTM's states with an axis too many.
        return out, tuple(state.reshape(hx[0].shape) for state in states)


class AttentionMask(nn.Module):
    """The TFT's attention mask for full windows, (B, horizon, context + horizon): true where nothing is attended."""

    mask: Tensor

    def __init__(self, context: int, horizon: int, *, causal: bool) -> None:
        super().__init__()
        step = torch.arange(horizon)
        ahead = step[None] >= step[:, None] if causal else torch.zeros(horizon, horizon, dtype=torch.bool)
        mask = torch.cat([torch.zeros(horizon, context, dtype=torch.bool), ahead], dim=1)[None]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, encoder_lengths: Any, decoder_lengths: Any) -> Tensor:
        return self.mask


class GroupedSelection(nn.Module):
    """A ``VariableSelectionNetwork`` over V reals of one size, whose V networks run as one batched product.

    It adopts the children of the original under their names. Within, tensors are (V, N, features) with N = B * T.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.names = list(source.input_sizes)
        self.dropout = source.dropout or 0.0
        self.prescalers, self.single_variable_grns = source.prescalers, source.single_variable_grns
        self.flattened_grn, self.softmax = source.flattened_grn, source.softmax
        networks = [self.single_variable_grns[name] for name in self.names]
        self.size, self.hidden_size = networks[0].input_size, source.hidden_size
        self.resized = self.size != self.hidden_size
        self.epsilon = networks[0].gate_norm.add_norm.norm.eps

    @staticmethod
    def fits(source: Any) -> bool:
        """Whether every covariate of ``source`` is a real of the same size with a network of its own."""
        plain = not any(source._input_embedding_flags.values()) and source.num_inputs > 1
        return plain and len(set(source.input_sizes.values())) == 1

    def forward(self, x: dict[str, Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        networks: list[Any] = [self.single_variable_grns[name] for name in self.names]
        scalers: list[Any] = [self.prescalers[name] for name in self.names]
        reals = torch.stack([x[name] for name in self.names])  # (V, B, T, 1), or (V, B, 1) for static reals
        shape = reals.shape[1:-1]
        flat = reals.reshape(len(networks), -1, 1)
        embedding = torch.baddbmm(_biases(scalers), flat, _weights(scalers))
        skip = embedding
        if self.resized:
            resamplers = [network.resample_norm for network in networks]
            skip = embedding @ resamplers[0].resample.matrix
            if resamplers[0].trainable_add:
                skip = skip * torch.sigmoid(torch.stack([one.mask for one in resamplers]))[:, None] * 2.0
            skip = self._norm(skip, [one.norm for one in resamplers])
        hidden = torch.baddbmm(_biases([n.fc1 for n in networks]), embedding, _weights([n.fc1 for n in networks]))
        hidden = functional.elu(hidden)
        hidden = torch.baddbmm(_biases([n.fc2 for n in networks]), hidden, _weights([n.fc2 for n in networks]))
        gates = [network.gate_norm.glu.fc for network in networks]
        hidden = functional.dropout(hidden, self.dropout, self.training)
        hidden = functional.glu(torch.baddbmm(_biases(gates), hidden, _weights(gates)), dim=-1)
        outputs = self._norm(hidden + skip, [network.gate_norm.add_norm.norm for network in networks])

        weight_inputs = embedding.permute(1, 0, 2).reshape(*shape, -1)
        weights = self.softmax(self.flattened_grn(weight_inputs, context))  # (B, T, V)
        mixed = (outputs * weights.reshape(-1, len(networks)).t()[..., None]).sum(0)
        return mixed.reshape(*shape, self.hidden_size), weights.unsqueeze(-2)

    def _norm(self, x: Tensor, norms: list[Any]) -> Tensor:
        plain = functional.layer_norm(x, x.shape[-1:], eps=self.epsilon)
        weight, bias = torch.stack([n.weight for n in norms]), torch.stack([n.bias for n in norms])
        return torch.addcmul(bias[:, None], plain, weight[:, None])


def _weights(layers: list[Any]) -> Tensor:
    """(V, in, out) the weights of V linear layers, ready to be multiplied from the right."""
    return torch.stack([layer.weight for layer in layers]).transpose(1, 2)


def _biases(layers: list[Any]) -> Tensor:
    """(V, 1, out) the biases of V linear layers."""
    return torch.stack([layer.bias for layer in layers])[:, None]
