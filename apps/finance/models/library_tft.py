"""A TFT of pytorch-forecasting over covariates of a table: an imported one, with its own units, or one trained here.

Windows are built here as the library's ``TimeSeriesDataSet`` builds them, all rows of a series at once. A test compares
the two, and an import compares the network with the library's own forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.windows import after_values, fill_missing, last_values, uniform
from apps.finance.models.calendar import computed_reals
from apps.finance.models.library_covariates import (
    LAGGED_VALUES,
    category_codes,
    covariate,
    refuse_missing,
    values_before,
)
from apps.finance.types import FinanceInput, LabelledSeries, LibraryTFT, Series
from shared.app import DenseNetwork
from shared.data.dataset import Batch
from shared.data.order import Indices, Key

_UNKNOWN_SHARE = 0.05
"""The share of training windows in which a category gets the code of unknown words, so that this code is trained."""


class Length:
    """The common length of all windows of a batch, where the TFT expects a tensor of lengths.

    It returns the maximum, which is all the TFT asks for, without a copy from the device.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def max(self) -> int:
        return self.rows


def build_library_tft(settings: LibraryTFT) -> Any:
    """The library's network, built by its own constructor, with random weights."""
    network = dict(settings.network)
    network["embedding_sizes"] = {
        # An integer is the number of categories; the library then chooses the embedding size.
        name: size if isinstance(size, int) else tuple(size)
        for name, size in network.get("embedding_sizes", {}).items()
    }
    return new_tft(network, settings.quantiles, settings.transformation)


def new_tft(arguments: Mapping[str, Any], levels: Sequence[float], transformation: str | None = None) -> Any:
    """A ``TemporalFusionTransformer`` that forecasts the quantile ``levels``, with random weights."""
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.data.encoders import TorchNormalizer

    with warnings.catch_warnings():
        # Lightning warns that the loss is a module among the hyperparameters; nothing here saves hyperparameters.
        warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
        return TemporalFusionTransformer(
            **arguments,
            loss=library_loss(levels),
            output_transformer=TorchNormalizer(method="identity", transformation=transformation),
            logging_metrics=nn.ModuleList(),
        )


def library_loss(levels: Sequence[float]) -> Any:
    """pytorch-forecasting's ``QuantileLoss`` at the quantile ``levels``."""
    from pytorch_forecasting.metrics import QuantileLoss

    return QuantileLoss(list(levels))


class LibraryForecaster(nn.Module):
    """The network with tensors in and a tensor out: increasing quantiles (B, horizon, Q) in the units of the series."""

    def __init__(self, settings: LibraryTFT, input: FinanceInput) -> None:
        super().__init__()
        from apps.finance.models.fast import accelerate

        self.settings, self.context, self.horizon = settings, input.context, input.horizon
        self.quantiles = settings.quantiles
        self.tft = accelerate(build_library_tft(settings), context=input.context, horizon=input.horizon)

    def forward(self, reals: Tensor, categories: Tensor, target_scale: Tensor) -> Tensor:
        """``reals`` (B, context + horizon, R) float32, ``categories`` (B, context + horizon, C) int64.

        ``target_scale`` (B, 2) is the center and scale of the target.
        """
        inputs = {
            "encoder_cont": reals[:, : self.context],
            "decoder_cont": reals[:, self.context :],
            "encoder_cat": categories[:, : self.context],
            "decoder_cat": categories[:, self.context :],
            "encoder_lengths": Length(self.context),
            "decoder_lengths": Length(self.horizon),
            "target_scale": target_scale,
        }
        prediction: Tensor = self.tft(inputs)["prediction"]
        return prediction.sort(dim=-1).values


class _WithoutCategories(nn.Module):
    """A network without categorical covariates, called without the empty tensor for them, which exporters drop."""

    def __init__(self, model: LibraryForecaster) -> None:
        super().__init__()
        self.model = model

    def forward(self, reals: Tensor, target_scale: Tensor) -> Tensor:
        quantiles: Tensor = self.model(reals, reals.new_zeros((*reals.shape[:2], 0), dtype=torch.int64), target_scale)
        return quantiles


def dense_library(model: LibraryForecaster) -> DenseNetwork:
    """The whole network for export: from the inputs of ``LibraryForecaster.forward`` to ``quantiles``."""
    inputs = random_windows(model.settings, context=model.context, horizon=model.horizon, batch=2)
    module = model if "categories" in inputs else _WithoutCategories(model)
    return DenseNetwork(module=module.eval(), inputs=inputs, outputs=("quantiles",), traceable=True)


def random_windows(settings: LibraryTFT, *, context: int, horizon: int, batch: int) -> dict[str, Tensor]:
    """Random windows of the network's covariates; ``categories`` only if it has any, with the first code everywhere."""
    length, generator = context + horizon, torch.Generator().manual_seed(0)
    reals = torch.randn((batch, length, len(settings.network["x_reals"])), generator=generator)
    codes = len(settings.network.get("x_categoricals") or [])
    categories = {"categories": torch.zeros((batch, length, codes), dtype=torch.int64)} if codes else {}
    return {"reals": reals, **categories, "target_scale": torch.tensor([0.0, 1.0]).repeat(batch, 1)}


class LibraryWindows:
    """The windows of one series in the form that the network takes, one for each start row of a forecast.

    Start rows are rows of the series with a full context before them, the earliest of which is row ``earliest``.
    ``rows_before`` is the number of the series' first row, for a network that counts rows. Raises InvalidInputError if
    the series lacks a covariate, and if the network has an embedding of series names that does not contain the series'
    name.
    """

    def __init__(
        self,
        series: Series,
        settings: LibraryTFT,
        *,
        context: int,
        horizon: int,
        earliest: int = 0,
        rows_before: int = 0,
    ) -> None:
        self.settings, self.context, self.horizon = settings, context, horizon
        self.names = list(settings.network["x_reals"])
        self._first = first = max(earliest - context, 0)
        lagged = values_before(series, horizon, first) if settings.trained_here else {}
        if settings.trained_here:
            for name in settings.known:
                if name in settings.scalers:
                    refuse_missing(series, name, settings, context, horizon, first)
        series = after_values(series.from_row(first), last_values(series, first)) if first else series
        # Beyond the end, covariates repeat their last value; forecasts of those rows are discarded.
        target = fill_missing(series.target)
        self.target = torch.from_numpy(np.pad(target, (0, horizon), mode="edge").astype(np.float32))
        self.reals = np.zeros((len(self.target), len(self.names)), np.float32)
        for index, name in enumerate(self.names):
            if name in computed_reals(settings.target):
                continue
            if name in lagged:
                self.reals[:, index] = np.pad(lagged[name], (0, horizon), mode="edge")
            elif name in settings.scalers or settings.trained_here:
                mean, deviation = settings.scalers.get(name, (0.0, 1.0))
                values = np.pad(covariate(series, name, settings), (0, horizon), mode="edge")
                if name == settings.time_idx and name not in settings.columns:
                    values = rows_before + first + np.arange(len(values), dtype=np.float64)
                self.reals[:, index] = (values - mean) / deviation
        codes = [category_codes(series, name, settings) for name in settings.network.get("x_categoricals") or []]
        self.codes = (
            np.stack([np.pad(column, (0, horizon), mode="edge") for column in codes], axis=1) if codes else None
        )
        scales = settings.target_scales
        self.target_scale = scales.get(series.name, scales.get("", (0.0, 1.0)))
        self.known_series = series.name in scales or "" in scales

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """``reals``, ``categories`` and ``target_scale`` of ``LibraryForecaster.forward``."""
        settings, length = self.settings, self.context + self.horizon
        rows = np.asarray(starts)[:, None] - self._first - self.context + np.arange(length)
        reals = torch.from_numpy(self.reals[rows])
        target = self.target[torch.from_numpy(rows)]
        scale = self._scale(target[:, : self.context])
        for index, name in enumerate(self.names):
            if name == settings.target:
                reals[:, :, index] = self._transformed(target, scale)
            elif settings.trained_here and name in LAGGED_VALUES:
                exists = reals[:, :, self.names.index(LAGGED_VALUES[name])] > 0
                reals[:, :, index] = torch.where(exists, self._transformed(reals[:, :, index], scale), 0.0)
            elif name == "relative_time_idx":
                reals[:, :, index] = torch.arange(-self.context, self.horizon) / self.context
            elif name == "encoder_length":
                reals[:, :, index] = 1.0  # for a full context: (context - context / 2) / context * 2
            elif name in (f"{settings.target}_center", f"{settings.target}_scale"):
                scale_value = scale[:, 0 if name.endswith("_center") else 1]
                mean, deviation = settings.scalers.get(name, (0.0, 1.0))
                if settings.trained_here:  # asinh, because a price may have moved far since training
                    mean, deviation = self.target_scale
                    reals[:, :, index] = torch.asinh((scale_value - mean) / deviation)[:, None]
                else:
                    reals[:, :, index] = ((scale_value - mean) / deviation)[:, None]
        empty = np.zeros((*rows.shape, 0), np.int64)
        categories = torch.from_numpy(empty if self.codes is None else self.codes[rows])
        return reals, categories, scale

    def _scale(self, context: Tensor) -> Tensor:
        """(B, 2) center and scale of the target: those of the series, or of each window's context."""
        if self.settings.normalizer == "series":
            return torch.tensor(self.target_scale, dtype=torch.float32).expand(len(context), 2)
        if self.settings.normalizer == "context" and self.known_series:
            center = context.mean(dim=1)
            return torch.stack([center, torch.full_like(center, self.target_scale[1])], dim=1)
        normalizer = _library_normalizer(self.settings)
        normalizer.fit(context)
        parameters: Tensor = normalizer.get_parameters()
        return parameters.float()

    def _transformed(self, target: Tensor, scale: Tensor) -> Tensor:
        transformed: Tensor = _library_normalizer(self.settings).transform(target, target_scale=scale)
        return transformed


class LibraryTrainingWindows:
    """Windows of several series as a data set for training: the inputs of ``LibraryForecaster.forward``, and the
    targets.

    A batch has ``reals``, ``categories``, ``target_scale``, ``target`` (B, horizon) in the units of the series,
    ``observed`` (B, horizon) in {0, 1}, and ``unit`` (B,), the unit of the loss. For a network that is trained here,
    some categories are replaced by the unknown code in training; there is no other augmentation. ``rows`` has for each
    series the first and the last row (exclusive) to forecast; rows labelled anomalous are not targets.
    """

    def __init__(
        self, items: Sequence[LabelledSeries], rows: Sequence[tuple[int, int]], input: FinanceInput, stride: int
    ) -> None:
        assert input.library is not None
        self._settings, self._context, self._horizon = input.library, input.context, input.horizon
        self._series = [
            LibraryWindows(item.series, input.library, context=input.context, horizon=input.horizon) for item in items
        ]
        self._target, self._observed, starts = [], [], []
        for number, (item, (first, last)) in enumerate(zip(items, rows, strict=True)):
            is_observed = np.isfinite(item.series.target)
            for begin, end in window_rows(item.series.times_ns, item.windows).tolist():
                is_observed[begin : end + 1] = False
            self._target.append(np.nan_to_num(item.series.target).astype(np.float32))
            self._observed.append(is_observed.astype(np.float32))
            start_rows = np.arange(max(first, input.context), last - input.horizon + 1, stride)
            starts.append(np.stack([np.full(len(start_rows), number), start_rows], axis=1))
        self._starts = np.concatenate(starts)

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        chosen = self._starts[indices]
        # Gather series by series, then restore the order of the indices.
        order = np.argsort(chosen[:, 0], kind="stable")
        parts = []
        for number in np.unique(chosen[:, 0]).tolist():
            start_rows = chosen[chosen[:, 0] == number, 1]
            target_rows = start_rows[:, None] + np.arange(self._horizon)
            target, observed = self._target[number][target_rows], self._observed[number][target_rows]
            unit = self._series[number].target_scale[1] if self._settings.trained_here else 1.0
            targets = (torch.from_numpy(target), torch.from_numpy(observed), torch.full((len(start_rows),), unit))
            parts.append((*self._series[number].batch(start_rows), *targets))
        original_order = torch.from_numpy(np.argsort(order, kind="stable"))
        names = ("reals", "categories", "target_scale", "target", "observed", "unit")
        batch = {
            name: torch.cat(column)[original_order]
            for name, column in zip(names, zip(*parts, strict=True), strict=True)
        }
        if key is not None and self._settings.trained_here:
            draws = torch.from_numpy(uniform(key, indices, batch["categories"].shape[2]))
            batch["categories"][(draws < _UNKNOWN_SHARE)[:, None].expand_as(batch["categories"])] = 0
        return batch


def _library_normalizer(settings: LibraryTFT) -> Any:
    from pytorch_forecasting.data.encoders import EncoderNormalizer

    return EncoderNormalizer(method=settings.method, center=settings.center, transformation=settings.transformation)
