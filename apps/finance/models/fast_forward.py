"""The forward pass of a TFT whose covariates are all reals, from tensors of windows to what is forecast.

It computes what ``TemporalFusionTransformer.forward`` of pytorch-forecasting 1.8 does with the parts that
``fast.accelerate`` has put into it, without what that does around them: a dictionary of one tensor for each covariate,
contexts that are repeated for every row, and rows of the context and of the horizon put together and taken apart again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forecast_windows(tft: Any, encoder_cont: Tensor, decoder_cont: Tensor, static: Tensor) -> Tensor:
    """(B, horizon, Q) of ``encoder_cont`` (B, context, V), ``decoder_cont`` (B, horizon, W) and ``static`` (B, S)."""
    of_series, _ = tft.static_variable_selection.select(static.t(), None)  # (B, hidden)
    context = tft.static_context_variable_selection(of_series)
    encoded, _ = tft.encoder_variable_selection.select(encoder_cont.permute(2, 0, 1), context)
    decoded, _ = tft.decoder_variable_selection.select(decoder_cont.permute(2, 0, 1), context)

    layers = tft.hparams.lstm_layers
    hidden = tft.static_context_initial_hidden_lstm(of_series).expand(layers, -1, -1)
    cell = tft.static_context_initial_cell_lstm(of_series).expand(layers, -1, -1)
    past, states = tft.lstm_encoder(encoded, (hidden, cell))
    ahead, _ = tft.lstm_decoder(decoded, states)
    past = tft.post_lstm_add_norm_encoder(tft.post_lstm_gate_encoder(past), encoded)
    ahead = tft.post_lstm_add_norm_decoder(tft.post_lstm_gate_decoder(ahead), decoded)

    context = tft.static_context_enrichment(of_series)[:, None]
    past, enriched = tft.static_enrichment(past, context), tft.static_enrichment(ahead, context)
    rows = torch.cat([past, enriched], dim=1)
    attended, _ = tft.multihead_attn(q=enriched, k=rows, v=rows, mask=tft.attention_mask(None, None))
    attended = tft.post_attn_gate_norm(attended, enriched)
    forecast: Tensor = tft.output_layer(tft.pre_output_gate_norm(tft.pos_wise_ff(attended), ahead))
    return forecast
