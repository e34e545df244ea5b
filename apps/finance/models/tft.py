"""pytorch-forecasting's Temporal Fusion Transformer (Lim et al., 2021), built from explicit settings.

The network is the library's own class with its own parameters; only its input is made here. The library's classes
import Lightning, which is not used: to the engine the network is an ``nn.Module``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apps.finance.datasets.windows import COLUMNS, STATIC_REALS, UNKNOWN
from apps.finance.models.fast_forward import forecast_windows
from apps.finance.models.library_tft import LibraryForecaster, dense_library, new_tft
from apps.finance.types import QUANTILES, FinanceInput
from shared.app import DenseNetwork

if TYPE_CHECKING:
    from apps.finance.models.settings import FinanceModel


def build_tft(settings: FinanceModel, input: FinanceInput) -> nn.Module:
    """The library's ``TemporalFusionTransformer`` with these settings and this application's covariates."""
    arguments = {
        "hidden_size": settings.hidden,
        "hidden_continuous_size": settings.hidden_continuous,
        "attention_head_size": settings.heads,
        "lstm_layers": settings.lstm_layers,
        "dropout": settings.dropout,
        "max_encoder_length": input.context,
        "output_size": len(QUANTILES),
        "static_reals": list(STATIC_REALS),
        "time_varying_reals_encoder": list(COLUMNS),
        "time_varying_reals_decoder": [name for name in COLUMNS if name not in UNKNOWN],
        "x_reals": [*STATIC_REALS, *COLUMNS],
        "mask_bias": -float("inf"),  # the default, -1e9, overflows in half precision; the softmax is the same
    }
    network: nn.Module = new_tft(arguments, QUANTILES)
    return network


class Forecaster(nn.Module):
    """A TFT with tensors in and a tensor out: quantiles (B, horizon, Q) of the normalised values, increasing along Q.

    Values are normalised as in ``apps.finance.datasets.windows``. A TFT's outputs may cross; sorting makes them valid
    quantiles and never increases the quantile loss (Chernozhukov et al., 2010).
    """

    def __init__(self, tft: nn.Module, *, context: int, horizon: int, fast: bool) -> None:
        super().__init__()
        self.tft, self.context, self.horizon, self.fast = tft, context, horizon, fast

    def forward(self, encoder_cont: Tensor, decoder_cont: Tensor, static: Tensor) -> Tensor:
        """``encoder_cont`` (B, context, 11), ``decoder_cont`` (B, horizon, 11), ``static`` (B, 3)."""
        return self.raw(encoder_cont, decoder_cont, static).sort(dim=-1).values

    def raw(self, encoder_cont: Tensor, decoder_cont: Tensor, static: Tensor) -> Tensor:
        """The TFT's unsorted outputs (B, horizon, Q); its quantiles may cross."""
        if self.fast:
            return forecast_windows(self.tft, encoder_cont, decoder_cont[..., len(UNKNOWN) :], static)
        prediction: Tensor = self.tft(tft_inputs(encoder_cont, decoder_cont, static))["prediction"]
        return prediction


def example_input(input: FinanceInput, batch: int) -> dict[str, Tensor]:
    """A batch of random windows, for export and for timing."""
    generator = torch.Generator().manual_seed(0)
    width = len(COLUMNS)
    return {
        "encoder_cont": torch.randn((batch, input.context, width), generator=generator),
        "decoder_cont": torch.randn((batch, input.horizon, width), generator=generator),
        "static": torch.randn((batch, len(STATIC_REALS)), generator=generator),
    }


def tft_inputs(encoder_cont: Tensor, decoder_cont: Tensor, static: Tensor) -> dict[str, Any]:
    """The dictionary of inputs for ``TemporalFusionTransformer.forward``."""
    batch, context, horizon = encoder_cont.shape[0], encoder_cont.shape[1], decoder_cont.shape[1]
    device = encoder_cont.device

    def lengths(rows: int) -> Any:
        return torch.full((batch,), rows, dtype=torch.int64, device=device)

    def reals(covariates: Tensor) -> Tensor:
        return torch.cat([static[:, None].expand(-1, covariates.shape[1], -1), covariates], dim=2)

    return {
        "encoder_cont": reals(encoder_cont),
        "decoder_cont": reals(decoder_cont),
        "encoder_cat": torch.zeros((batch, context, 0), dtype=torch.int64, device=device),
        "decoder_cat": torch.zeros((batch, horizon, 0), dtype=torch.int64, device=device),
        "encoder_lengths": lengths(context),
        "decoder_lengths": lengths(horizon),
        "target_scale": torch.tensor([0.0, 1.0], device=device).expand(batch, 2),
    }


def dense(model: nn.Module) -> DenseNetwork:
    """The network of a trained ``Forecaster`` for export, with the inputs of ``Forecaster.forward``.

    For a ``LibraryForecaster``, the inputs are those of ``LibraryForecaster.forward``. Raises ValueError if the model
    was built with ``fast=False``.
    """
    if isinstance(model, LibraryForecaster):
        return dense_library(model)
    assert isinstance(model, Forecaster)
    if not model.fast:
        raise ValueError("only the fast path can be exported; build the model with fast=True, its weights are the same")
    inputs = example_input(FinanceInput(context=model.context, horizon=model.horizon), 2)
    return DenseNetwork(module=model, inputs=inputs, outputs=("quantiles",), traceable=True)
