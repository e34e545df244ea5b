"""The forward pass of a TFT whose covariates are all reals, from window tensors to forecasts.

It computes the same as ``TemporalFusionTransformer.forward`` of pytorch-forecasting 1.8, with the modules that
``fast.accelerate`` inserts, but without the overhead around them: a dictionary with one tensor per covariate, contexts
that are repeated for every row, and rows of context and horizon that are concatenated and split again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forecast_windows(tft: Any, encoder_cont: Tensor, decoder_cont: Tensor, static: Tensor) -> Tensor:
    """(B, horizon, Q) for ``encoder_cont`` (B, context, V), ``decoder_cont`` (B, horizon, W) and ``static`` (B, S)."""
    static_encoding, _ = tft.static_variable_selection.select(static.t(), None)  # (B, hidden)
    context = tft.static_context_variable_selection(static_encoding)
    encoded, _ = tft.encoder_variable_selection.select(encoder_cont.permute(2, 0, 1), context)
    decoded, _ = tft.decoder_variable_selection.select(decoder_cont.permute(2, 0, 1), context)

    layers = tft.hparams.lstm_layers
    hidden = tft.static_context_initial_hidden_lstm(static_encoding).expand(layers, -1, -1)
    cell = tft.static_context_initial_cell_lstm(static_encoding).expand(layers, -1, -1)
    past, states = tft.lstm_encoder(encoded, (hidden, cell))
    future, _ = tft.lstm_decoder(decoded, states)
    past = tft.post_lstm_add_norm_encoder(tft.post_lstm_gate_encoder(past), encoded)
    future = tft.post_lstm_add_norm_decoder(tft.post_lstm_gate_decoder(future), decoded)

    context = tft.static_context_enrichment(static_encoding)[:, None]
    past, enriched = tft.static_enrichment(past, context), tft.static_enrichment(future, context)
    rows = torch.cat([past, enriched], dim=1)
    attended, _ = tft.multihead_attn(q=enriched, k=rows, v=rows, mask=tft.attention_mask(None, None))
    attended = tft.post_attn_gate_norm(attended, enriched)
    forecast: Tensor = tft.output_layer(tft.pre_output_gate_norm(tft.pos_wise_ff(attended), future))
    return forecast
