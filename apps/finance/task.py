"""How the forecaster learns and is scored: pytorch-forecasting's quantile loss on normalised values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apps.finance.models.tft import Forecaster, library_loss
from apps.finance.types import QUANTILES
from shared.data.dataset import Batch
from shared.engine.task import WeightedLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceTask:
    """Nothing needs to be set: the quantiles are those of the model."""

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
    """Forecasts ``horizon`` rows in quantiles; missing values count neither for nor against."""

    def __init__(self) -> None:
        self._metrics: dict[tuple[float, ...], Any] = {}

    def _metric(self, model: nn.Module) -> Any:
        """The library's quantile loss for the quantiles of a network."""
        levels = _levels(model)
        if levels not in self._metrics:
            self._metrics[levels] = library_loss(levels)
        return self._metrics[levels]

    def loss(self, model: nn.Module, batch: Batch) -> WeightedLoss:
        quantiles, target = _in_units(_raw(model, batch), batch)
        losses: Tensor = self._metric(model).loss(quantiles, target).mean(dim=-1)
        number = batch["observed"].sum()
        return WeightedLoss((losses * batch["observed"]).sum() / number.clamp(min=1), number)

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """The observed values, over which the loss is a mean."""
        return {"loss": batch["observed"].sum()}

    def evaluate(self, model: nn.Module, batch: Batch, scores: ForecastScores) -> None:
        quantiles, target = _in_units(_raw(model, batch).float().sort(dim=-1).values, batch)
        observed = batch["observed"]
        levels = _levels(model)
        losses = self._metric(model).loss(quantiles, target).mean(dim=-1)

        def total(values: Tensor) -> float:
            return float((values * observed).sum())

        # Bands between two quantiles that leave out as much above as below, by how much they are to hold.
        bands = {
            f"coverage_{round(100 * (high - low))}": total(
                (target >= quantiles[..., n]) & (target <= quantiles[..., -1 - n])
            )
            for n, (low, high) in enumerate(zip(levels, reversed(levels), strict=True))
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
    """The quantiles that a network puts out."""
    network: Any = getattr(model, "module", model)
    return QUANTILES if isinstance(network, Forecaster) else tuple(network.quantiles)


def _in_units(quantiles: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Quantiles (B, horizon, Q) and target (B, horizon) in the unit in which each series' loss is taken."""
    if "unit" not in batch:
        return quantiles, batch["target"]
    unit = batch["unit"][:, None]
    return quantiles / unit[..., None], batch["target"] / unit


def _raw(model: nn.Module, batch: Batch) -> Tensor:
    """Quantiles as the network puts them out. The whole model is called, so that wrappers around it take part."""
    ours = isinstance(getattr(model, "module", model), Forecaster)
    names = ("encoder_cont", "decoder_cont", "static") if ours else ("reals", "categories", "target_scale")
    inputs: tuple[Any, ...] = tuple(batch[name] for name in names)
    prediction: Tensor = model(*inputs)
    return prediction if prediction.dtype == torch.float64 else prediction.float()
