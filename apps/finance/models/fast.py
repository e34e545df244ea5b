"""A fast path for pytorch-forecasting's TFT: the same parameters, names and outputs, in fewer and larger kernels.

The TFT processes each covariate with a small network of its own and resizes vectors with ``F.interpolate``, whose
backward pass is slow on every device. Here

- a resize is a product with a constant matrix,
- the covariates' networks run as one batched product, with the features of all rows side by side and the layers before
  the first activation folded into one,
- ELU and GLU are written in kernels that the CPU vectorises, and the layer norm of the selected covariates is computed
  from its moments,
- attention skips the separate layers for keys and values, see ``FoldedAttention``,
- the LSTMs take whole sequences, because all windows have the same length, and the attention mask is a constant, so
  that no length is read back from the device.

``accelerate`` keeps the model's structure otherwise: the parameters stay where they were, so that one state dict fits
both models. Dropout draws different random numbers than the original; without dropout the two are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def accelerate(tft: Any, *, context: int, horizon: int) -> nn.Module:
    """Replaces the slow parts of the library's ``tft`` in place and returns it, for windows of ``context`` +
    ``horizon`` rows."""
    from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import (
        AddNorm,
        GatedLinearUnit,
        GatedResidualNetwork,
        InterpretableMultiHeadAttention,
        ResampleNorm,
        VariableSelectionNetwork,
    )

    for module in list(tft.modules()):
        if isinstance(module, ResampleNorm) and module.input_size != module.output_size:
            module.resample = Resize(module.input_size, module.output_size)
        elif isinstance(module, AddNorm) and module.input_size != module.skip_size:
            module.resample = Resize(module.skip_size, module.input_size)
    for module in list(tft.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GatedLinearUnit):
                setattr(module, name, SplitGLU(child))
            elif isinstance(child, GatedResidualNetwork):
                setattr(module, name, FoldedResidual(child))
            elif isinstance(child, InterpretableMultiHeadAttention):
                setattr(module, name, FoldedAttention(child))
    for name, module in list(tft.named_children()):
        if isinstance(module, VariableSelectionNetwork) and GroupedSelection.fits(module):
            setattr(tft, name, GroupedSelection(module))
    tft.lstm_encoder, tft.lstm_decoder = WholeLSTM(tft.lstm_encoder), WholeLSTM(tft.lstm_decoder)
    tft.attention_mask = AttentionMask(context, horizon, causal=tft.hparams.causal_attention)
    # Assigning a module as an attribute would not hide the class's method; an entry in __dict__ does.
    tft.__dict__["get_attention_mask"] = tft.attention_mask
    accelerated: nn.Module = tft
    return accelerated


def resize_matrix(size_in: int, size_out: int) -> Tensor:
    """(size_in, size_out) the linear interpolation of ``F.interpolate`` with aligned corners, as a matrix."""
    unit = torch.eye(size_in)[:, None]  # in float32, so that the weights equal those of ``F.interpolate`` exactly
    return functional.interpolate(unit, size_out, mode="linear", align_corners=True)[:, 0]


class Resize(nn.Module):
    """``TimeDistributedInterpolation`` as a matrix product: (..., size_in) to (..., size_out)."""

    matrix: Tensor

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.register_buffer("matrix", resize_matrix(size_in, size_out), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class WholeLSTM(nn.LSTM):
    """The library's LSTM over sequences of full length; ``lengths`` is ignored."""

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

    def forward(  # type: ignore[override]
        self, x: Tensor, hx: Any = None, lengths: Any = None, enforce_sorted: bool = True
    ) -> Any:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Some CPUs do not support an LSTM in half precision and raise an error.
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float(), tuple(state.float() for state in hx))
        out, states = super().forward(x, tuple(state.contiguous() for state in hx))
        # torch 2.11 traces an LSTM's states with an extra axis.
        return out, tuple(state.reshape(hx[0].shape) for state in states)


class AttentionMask(nn.Module):
    """The TFT's attention mask for full windows, (B, horizon, context + horizon): true where attention is masked."""

    mask: Tensor

    def __init__(self, context: int, horizon: int, *, causal: bool) -> None:
        super().__init__()
        step = torch.arange(horizon)
        future_mask = step[None] >= step[:, None] if causal else torch.zeros(horizon, horizon, dtype=torch.bool)
        mask = torch.cat([torch.zeros(horizon, context, dtype=torch.bool), future_mask], dim=1)[None]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, encoder_lengths: Any, decoder_lengths: Any) -> Tensor:
        return self.mask


class FoldedAttention(nn.Module):
    """The library's ``InterpretableMultiHeadAttention``; for prediction, the keys' layers are folded into the queries.

    There are few queries and many keys. The product of a query with a layer of the keys equals the product of a
    transformed query with the keys themselves, up to a constant over the keys, which the softmax ignores. The heads
    share their values, so their weights are averaged and the values' layer is applied afterwards.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.n_head, self.mask_bias, self.w_h = source.n_head, source.mask_bias, source.w_h
        self.v_layer, self.q_layers, self.k_layers = source.v_layer, source.q_layers, source.k_layers
        self.attention, self.dropout = source.attention, source.dropout
        self.library_forward = type(source).forward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training:  # each head has its own dropout
            attended: tuple[Tensor, Tensor] = self.library_forward(self, q, k, v, mask)
            return attended
        heads, queries = len(self.q_layers), q.shape[1]
        folded = torch.cat(
            [
                functional.linear(q, key.weight.t() @ query.weight, key.weight.t() @ query.bias)
                for query, key in zip(self.q_layers, self.k_layers, strict=True)
            ],
            dim=1,
        )
        scores = torch.bmm(folded, k.transpose(1, 2)) / float(self.k_layers[0].weight.shape[0]) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask.repeat(1, heads, 1), self.mask_bias)
        weights = torch.softmax(scores, dim=2).reshape(-1, heads, queries, k.shape[1])
        mixed = torch.bmm(weights.mean(dim=1), v)
        return self.w_h(self.v_layer(mixed)), weights.transpose(1, 2)


class SplitGLU(nn.Module):
    """The library's ``GatedLinearUnit`` with separate products for value and gate, so that neither half is strided."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.dropout, self.fc = source.dropout, source.fc

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout is not None:
            x = self.dropout(x)
        return glu(x, self.fc.weight, self.fc.bias)


class FoldedResidual(nn.Module):
    """The library's ``GatedResidualNetwork``; for prediction its second layer and its gate, both linear, are merged."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.input_size, self.output_size = source.input_size, source.output_size
        self.fc1, self.fc2, self.gate_norm = source.fc1, source.fc2, source.gate_norm
        self.resized = self.input_size != self.output_size and not source.residual
        if source.context_size is not None:
            self.context: nn.Module = source.context
        if self.resized:
            self.resample_norm: nn.Module = source.resample_norm

    def forward(self, x: Tensor, context: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        residual = x if residual is None else residual
        if self.resized:
            residual = self.resample_norm(residual)
        hidden = self.fc1(x)
        if context is not None:
            hidden = hidden + self.context(context)
        hidden, gate = elu(hidden), self.gate_norm.glu
        if self.training:
            gated = gate(self.fc2(hidden))
        else:
            weight = gate.fc.weight
            gated = glu(hidden, weight @ self.fc2.weight, weight @ self.fc2.bias + gate.fc.bias)
        normed: Tensor = self.gate_norm.add_norm(gated, residual)
        return normed


def glu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The gated linear unit: the first half of a layer's outputs times the sigmoid of the second half."""
    (value, gate), (value_bias, gate_bias) = weight.chunk(2), bias.chunk(2)
    return functional.linear(x, value, value_bias) * torch.sigmoid(functional.linear(x, gate, gate_bias))


def elu(x: Tensor) -> Tensor:
    """The exponential linear unit: x above zero, exp(x) - 1 below."""
    return torch.relu(x) + torch.exp(x.clamp(max=0)) - 1


_CHUNK_ROWS = 8
"""On a CPU this many rows of a window at a time, so that the intermediate results of a batch stay in a core's cache."""


class GroupedSelection(nn.Module):
    """A ``VariableSelectionNetwork`` over V reals of one size, whose V networks run as one batched product.

    It takes over the children of the original under their names. Internally, tensors are (V, features, N) with N = B *
    T: rows of one feature are contiguous, so that sums over features and gates run along whole vectors. A real x enters
    every network as an affine function of x (its prescaler), so the first layer and the skip connection are affine in x
    as well: their weights are folded, and the prescaler's output is never materialised.
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
        """Whether every covariate of ``source`` is a real of the same size with its own network."""
        only_reals = not any(source._input_embedding_flags.values()) and source.num_inputs > 1
        return only_reals and len(set(source.input_sizes.values())) == 1

    def forward(self, x: dict[str, Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As in the library; ``context`` (B, T, hidden) is constant over time, as the library repeats it."""
        reals = torch.stack([x[name].squeeze(-1) for name in self.names])
        mixed, weights = self.select(reals, context if context is None or context.dim() < 3 else context[:, 0])
        return mixed, weights[..., None, :]

    def select(self, reals: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixture (B, T, hidden) and its weights (B, T, V) of reals (V, B, T), or (V, B), and context (B, hidden).

        On a CPU, a few rows at a time.
        """
        projected_context = (
            None if context is None else self.flattened_grn.context(context).t()[..., None]
        )  # (hidden, B, 1)
        if self.training or reals.device.type != "cpu" or reals.dim() < 3 or reals.shape[2] <= _CHUNK_ROWS:
            return self._selected(reals, projected_context)
        parts = [self._selected(part, projected_context) for part in torch.split(reals, _CHUNK_ROWS, dim=2)]
        mixed, weights = zip(*parts, strict=True)
        return torch.cat(mixed, dim=1), torch.cat(weights, dim=1)

    def _selected(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        networks: list[Any] = [self.single_variable_grns[name] for name in self.names]
        scalers: list[Any] = [self.prescalers[name] for name in self.names]
        shape = x.shape[1:]  # (B, T), or (B,) for static reals
        reals = x.reshape(len(networks), -1)  # (V, N)
        affine = torch.cat(  # (V, size, 2): the prescalers as weights of (x, 1)
            [
                torch.stack([scaler.weight for scaler in scalers]),
                torch.stack([scaler.bias for scaler in scalers])[..., None],
            ],
            dim=2,
        )
        rows = reals[:, None]  # (V, 1, N)

        first = [network.fc1 for network in networks]
        hidden = elu(_affine(_weights(first) @ affine, rows, 1.0, _biases(first)))
        second, gates = [network.fc2 for network in networks], [network.gate_norm.glu.fc for network in networks]
        weight, bias = _weights(gates), _biases(gates)
        if self.training:
            hidden = torch.baddbmm(_biases(second), _weights(second), hidden)
            hidden = functional.dropout(hidden, self.dropout, True)
        else:
            weight, bias = weight @ _weights(second), torch.baddbmm(bias, weight, _biases(second))
        (value_weight, gate_weight), (value_bias, gate_bias) = weight.chunk(2, dim=1), bias.chunk(2, dim=1)
        gate = torch.sigmoid(torch.baddbmm(gate_bias, gate_weight, hidden))
        outputs = torch.baddbmm(value_bias, value_weight, hidden) * gate + self._skip(networks, affine, rows)
        weights = self._weigh(affine, reals, context, shape)  # (V, N)
        norms = [network.gate_norm.add_norm.norm for network in networks]
        # The layer norm by its moments: mix the outputs themselves and subtract their means at the end.
        scale = torch.stack([norm.weight for norm in norms])  # (V, hidden)
        mean = outputs.mean(dim=1)  # (V, N)
        variance = torch.relu(outputs.square().mean(dim=1) - mean.square())
        scaled_weights = weights * torch.rsqrt(variance + self.epsilon)
        mixed = (outputs * (scale[..., None] * scaled_weights[:, None])).sum(0) - scale.t() @ (mean * scaled_weights)
        mixed = mixed + torch.stack([norm.bias for norm in norms]).t() @ weights  # (hidden, N)
        return mixed.t().reshape(*shape, self.hidden_size), weights.t().reshape(*shape, len(networks))

    def _skip(self, networks: list[Any], affine: Tensor, rows: Tensor) -> Tensor:
        """(V, hidden, N) the skip connections: the embedding, or its resized and normalised copy.

        The layer norm of a x + b over the features has the variance (|a|^2 (x - x0)^2 + |a x0 + b|^2) / features, for
        centred a and b, with x0 where it is minimal: a sum of squares, which loses no precision.
        """
        if not self.resized:
            return _affine(affine, rows, 1.0)
        resamplers = [network.resample_norm for network in networks]
        resized = resamplers[0].resample.matrix.t() @ affine  # (V, hidden, 2)
        if resamplers[0].trainable_add:
            resized = (
                resized * torch.sigmoid(torch.stack([resampler.mask for resampler in resamplers]))[..., None] * 2.0
            )
        slope, offset = (resized - resized.mean(dim=1, keepdim=True)).unbind(dim=2)  # (V, hidden) each
        power = slope.square().mean(dim=1, keepdim=True)
        minimum_at = -(slope * offset).mean(dim=1, keepdim=True) / (power + 1e-20)  # x0
        minimum = (slope * minimum_at + offset).square().mean(dim=1, keepdim=True)
        inverse = torch.rsqrt(power * (rows[:, 0] - minimum_at).square() + minimum + resamplers[0].norm.eps)[:, None]
        weight = torch.stack([resampler.norm.weight for resampler in resamplers])
        bias = torch.stack([resampler.norm.bias for resampler in resamplers])[..., None]
        return _affine(torch.stack([slope * weight, offset * weight], dim=2), rows * inverse, inverse, bias)

    def _weigh(self, affine: Tensor, reals: Tensor, context: Tensor | None, shape: torch.Size) -> Tensor:
        """(V, N) the weights of the covariates, from all embeddings side by side."""
        network = self.flattened_grn
        number, size, _ = affine.shape
        weight = network.fc1.weight.reshape(-1, number, size)
        slope = (weight * affine[..., 0]).sum(dim=2)  # (hidden, V)
        offset = (weight * affine[..., 1]).sum(dim=(1, 2)) + network.fc1.bias
        hidden = torch.addmm(offset[:, None], slope, reals)
        if context is not None:
            hidden = (hidden.reshape(-1, *shape) + context).reshape(hidden.shape)
        hidden = torch.addmm(network.fc2.bias[:, None], network.fc2.weight, elu(hidden))
        fc = network.gate_norm.glu.fc
        hidden = functional.dropout(hidden, self.dropout, self.training)
        value, gate = torch.addmm(fc.bias[:, None], fc.weight, hidden).chunk(2)
        resample = network.resample_norm
        matrix = resample.resample.matrix.reshape(number, size, number)
        slope, offset = (matrix * affine[..., 0, None]).sum(1).t(), (matrix * affine[..., 1, None]).sum((0, 1))
        skip = torch.addmm(offset[:, None], slope, reals)
        if resample.trainable_add:
            skip = skip * (torch.sigmoid(resample.mask) * 2.0)[:, None]
        skip = _norm_columns(skip, resample.norm)
        return torch.softmax(_norm_columns(value * torch.sigmoid(gate) + skip, network.gate_norm.add_norm.norm), dim=0)


def _norm_columns(x: Tensor, norm: Any) -> Tensor:
    """The layer norm over the first axis of (features, N)."""
    centred = x - x.mean(dim=0, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(dim=0, keepdim=True) + norm.eps)
    return torch.addcmul(norm.bias[:, None], centred * inverse, norm.weight[:, None])


def _affine(affine: Tensor, x: Tensor, constant: Tensor | float, bias: Tensor | float = 0.0) -> Tensor:
    """(V, features, N) of weights (V, features, 2) for ``x`` and ``constant`` (V, 1, N); faster than a product."""
    return affine[..., :1] * x + (affine[..., 1:] * constant + bias)


def _weights(layers: list[Any]) -> Tensor:
    """(V, out, in) the weights of V linear layers."""
    return torch.stack([layer.weight for layer in layers])


def _biases(layers: list[Any]) -> Tensor:
    """(V, out, 1) the biases of V linear layers."""
    return torch.stack([layer.bias for layer in layers])[..., None]
