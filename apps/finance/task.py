"""How the forecaster is trained and scored: pytorch-forecasting's quantile loss on normalised values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apps.finance.models.library_tft import library_loss
from apps.finance.models.tft import Forecaster
from apps.finance.types import QUANTILES
from shared.data.dataset import Batch
from shared.engine.task import WeightedLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceTask:
    """There are no settings: the model determines the quantiles."""

    def build(self) -> ForecastTask:
        return ForecastTask()


@dataclass
class ForecastScores:
    """Sums over the observed values of an evaluation."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def merge(self, other: ForecastScores) -> None:
        self.add(**other.sums)

    def summary(self) -> dict[str, float]:
        """Quantile loss (as the library defines it, mean over quantiles), MAE of the median, coverage of the bands."""
        number = max(self.sums.get("number", 0.0), 1.0)
        return {name: value / number for name, value in sorted(self.sums.items()) if name != "number"}


class ForecastTask:
    """Forecasts quantiles of ``horizon`` rows; missing values are ignored."""

    def __init__(self) -> None:
        self._metrics: dict[tuple[float, ...], Any] = {}

    def _metric(self, model: nn.Module) -> Any:
        """The library's quantile loss for the quantiles of a network."""
        levels = _levels(model)
        if levels not in self._metrics:
            self._metrics[levels] = library_loss(levels)
        return self._metrics[levels]

    def loss(self, model: nn.Module, batch: Batch) -> WeightedLoss:
        quantiles, target = _in_loss_units(_predict_quantiles(model, batch), batch)
        losses: Tensor = self._metric(model).loss(quantiles, target).mean(dim=-1)
        number = batch["observed"].sum()
        return WeightedLoss((losses * batch["observed"]).sum() / number.clamp(min=1), number)

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """The number of observed values, over which the loss is averaged."""
        return {"loss": batch["observed"].sum()}

    def evaluate(self, model: nn.Module, batch: Batch, scores: ForecastScores) -> None:
        quantiles, target = _in_loss_units(_predict_quantiles(model, batch).float().sort(dim=-1).values, batch)
        observed = batch["observed"]
        levels = _levels(model)
        losses = self._metric(model).loss(quantiles, target).mean(dim=-1)

        def total(values: Tensor) -> float:
            return float((values * observed).sum())

        # Central bands between two quantiles, named by their nominal coverage in percent.
        bands = {
            f"coverage_{round(100 * (high - low))}": total(
                (target >= quantiles[..., index]) & (target <= quantiles[..., -1 - index])
            )
            for index, (low, high) in enumerate(zip(levels, reversed(levels), strict=True))
            if abs(low + high - 1) < 1e-6 and high - low > 0.6
        }
        scores.add(
            number=float(observed.sum()),
            loss=total(losses),
            mae=total((quantiles[..., levels.index(0.5)] - target).abs()),
            **bands,
        )

    def scores(self) -> ForecastScores:
        return ForecastScores()


def _levels(model: nn.Module) -> tuple[float, ...]:
    """The quantile levels that a network outputs."""
    network: Any = getattr(model, "module", model)
    return QUANTILES if isinstance(network, Forecaster) else tuple(network.quantiles)


def _in_loss_units(quantiles: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Quantiles (B, horizon, Q) and target (B, horizon) in the unit of each series' loss."""
    if "unit" not in batch:
        return quantiles, batch["target"]
    unit = batch["unit"][:, None]
    return quantiles / unit[..., None], batch["target"] / unit


def _predict_quantiles(model: nn.Module, batch: Batch) -> Tensor:
    """The network's quantiles in its output order. Calls the whole model, so that wrappers such as DDP take part."""
    is_forecaster = isinstance(getattr(model, "module", model), Forecaster)
    names = ("encoder_cont", "decoder_cont", "static") if is_forecaster else ("reals", "categories", "target_scale")
    inputs: tuple[Any, ...] = tuple(batch[name] for name in names)
    prediction: Tensor = model(*inputs)
    return prediction if prediction.dtype == torch.float64 else prediction.float()
