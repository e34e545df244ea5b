"""A TFT of pytorch-forecasting over covariates of a table: trained elsewhere, with its own units, or here.

Windows are made here as the library's ``TimeSeriesDataSet`` makes them, all rows of a series at once; a test compares
the two, and an import compares the network with the library's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.finance.datasets.columns import boolean_numbers, number_column, word_code, word_column
from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.windows import fill_missing, last_seen, same_time_before, uniform
from apps.finance.models.calendar import CALENDAR
from apps.finance.types import WEEK_NS, FinanceInput, Floats, LabelledSeries, LibraryTFT, Series, iso_utc
from shared.app import DenseNetwork
from shared.data.dataset import Batch
from shared.data.order import Indices, Key
from shared.errors import InvalidInputError

_VALUES_BEFORE = {"day_before": "day_before_known", "week_before": "week_before_known"}
"""What a network that is trained here takes of the value itself, in its units, and whether it is there."""
_FORGOTTEN = 0.05
"""In so many training windows a category is that of words which training has not seen, so that its place is learnt."""


class Length:
    """A length that all windows of a batch share, where the TFT expects a tensor of lengths.

    It answers what the TFT asks, the longest, without a copy from the device.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def max(self) -> int:
        return self.rows


def build_library_tft(settings: LibraryTFT) -> Any:
    """The library's own network, by its own constructor, with random weights."""
    import warnings

    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.data.encoders import TorchNormalizer
    from pytorch_forecasting.metrics import QuantileLoss

    network = dict(settings.network)
    network["embedding_sizes"] = {
        # Of a number of categories alone the library chooses the size itself.
        name: size if isinstance(size, int) else tuple(size)
        for name, size in network.get("embedding_sizes", {}).items()
    }
    with warnings.catch_warnings():
        # Lightning warns that the loss is a module among the hyperparameters; nothing here saves hyperparameters.
        warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
        return TemporalFusionTransformer(
            **network,
            loss=QuantileLoss(list(settings.quantiles)),
            output_transformer=TorchNormalizer(method="identity", transformation=settings.transformation),
            logging_metrics=nn.ModuleList(),
        )


class LibraryForecaster(nn.Module):
    """The network with tensors in and a tensor out: quantiles (B, horizon, Q) in the units of the series, rising."""

    def __init__(self, settings: LibraryTFT, input: FinanceInput) -> None:
        super().__init__()
        from apps.finance.models.fast import accelerate

        self.settings, self.context, self.horizon = settings, input.context, input.horizon
        self.quantiles = settings.quantiles
        self.tft = accelerate(build_library_tft(settings), context=input.context, horizon=input.horizon)

    def forward(self, reals: Tensor, categories: Tensor, target_scale: Tensor) -> Tensor:
        """``reals`` (B, context + horizon, R) float32, ``categories`` (B, context + horizon, C) int64.

        ``target_scale`` (B, 2) is center and scale of the target.
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
    """A network that has no categorical covariates, without the empty tensor of them, which no exporter keeps."""

    def __init__(self, model: LibraryForecaster) -> None:
        super().__init__()
        self.model = model

    def forward(self, reals: Tensor, target_scale: Tensor) -> Tensor:
        found: Tensor = self.model(reals, reals.new_zeros((*reals.shape[:2], 0), dtype=torch.int64), target_scale)
        return found


def dense_library(model: LibraryForecaster) -> DenseNetwork:
    """The whole network, for export: ``LibraryForecaster.forward``'s inputs to ``quantiles``."""
    inputs = random_windows(model.settings, context=model.context, horizon=model.horizon, batch=2)
    module = model if "categories" in inputs else _WithoutCategories(model)
    return DenseNetwork(module=module.eval(), inputs=inputs, outputs=("quantiles",))


def random_windows(settings: LibraryTFT, *, context: int, horizon: int, batch: int) -> dict[str, Tensor]:
    """Random windows of the network's covariates; ``categories``, all of the first code, where it has such."""
    length, generator = context + horizon, torch.Generator().manual_seed(0)
    reals = torch.randn((batch, length, len(settings.network["x_reals"])), generator=generator)
    codes = len(settings.network.get("x_categoricals") or [])
    categories = {"categories": torch.zeros((batch, length, codes), dtype=torch.int64)} if codes else {}
    return {"reals": reals, **categories, "target_scale": torch.tensor([0.0, 1.0]).repeat(batch, 1)}


class LibraryWindows:
    """The windows of one series as the network takes them, one that forecasts from each of ``starts`` on.

    ``starts`` are rows of the series with a whole context before them. Refuses a series that lacks a covariate, and
    one whose name the network has an embedding for and does not know.
    """

    def __init__(self, series: Series, settings: LibraryTFT, *, context: int, horizon: int) -> None:
        self.settings, self.context, self.horizon = settings, context, horizon
        self.names = list(settings.network["x_reals"])
        # Beyond the end covariates go on as they are; what they are there is asked for by no row that is kept.
        target = fill_missing(series.target)
        self.target = torch.from_numpy(np.pad(target, (0, horizon), mode="edge").astype(np.float32))
        self.reals = np.zeros((len(self.target), len(self.names)), np.float32)
        before = values_before(series, horizon) if settings.trained_here else {}
        for place, name in enumerate(self.names):
            if name in self._computed():
                continue
            if name in before:
                self.reals[:, place] = np.pad(before[name], (0, horizon), mode="edge")
            elif name in settings.scalers or settings.trained_here:
                mean, deviation = settings.scalers.get(name, (0.0, 1.0))
                if name in settings.known:
                    refuse_missing(series, name, settings, context, horizon)
                values = np.pad(covariate(series, name, settings), (0, horizon), mode="edge")
                if name == settings.time_idx:
                    values = np.arange(len(values), dtype=np.float64)
                self.reals[:, place] = (values - mean) / deviation
        codes = [_codes(series, name, settings) for name in settings.network.get("x_categoricals") or []]
        self.codes = np.stack([np.pad(one, (0, horizon), mode="edge") for one in codes], axis=1) if codes else None
        scales = settings.target_scales
        self.target_scale = scales.get(series.name, scales.get("", (0.0, 1.0)))
        self.known_series = series.name in scales or "" in scales

    def _computed(self) -> set[str]:
        target = self.settings.target
        return {target, f"{target}_center", f"{target}_scale", "relative_time_idx", "encoder_length"}

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """``reals``, ``categories`` and ``target_scale`` of ``LibraryForecaster.forward``."""
        settings, length = self.settings, self.context + self.horizon
        rows = np.asarray(starts)[:, None] - self.context + np.arange(length)
        reals = torch.from_numpy(self.reals[rows])
        target = self.target[torch.from_numpy(rows)]
        scale = self._scale(target[:, : self.context])
        for place, name in enumerate(self.names):
            if name == settings.target:
                reals[:, :, place] = self._transformed(target, scale)
            elif settings.trained_here and name in _VALUES_BEFORE:
                there = reals[:, :, self.names.index(_VALUES_BEFORE[name])] > 0
                reals[:, :, place] = torch.where(there, self._transformed(reals[:, :, place], scale), 0.0)
            elif name == "relative_time_idx":
                reals[:, :, place] = torch.arange(-self.context, self.horizon) / self.context
            elif name == "encoder_length":
                reals[:, :, place] = 1.0  # of a whole context: (context - context / 2) / context * 2
            elif name in (f"{settings.target}_center", f"{settings.target}_scale"):
                value = scale[:, 0 if name.endswith("_center") else 1]
                mean, deviation = settings.scalers.get(name, (0.0, 1.0))
                if settings.trained_here:  # a price may have gone anywhere since
                    mean, deviation = self.target_scale
                    reals[:, :, place] = torch.asinh((value - mean) / deviation)[:, None]
                else:
                    reals[:, :, place] = ((value - mean) / deviation)[:, None]
        empty = np.zeros((*rows.shape, 0), np.int64)
        categories = torch.from_numpy(empty if self.codes is None else self.codes[rows])
        return reals, categories, scale

    def _scale(self, context: Tensor) -> Tensor:
        """(B, 2) center and scale of the target: the series', or of each window's context."""
        if self.settings.normalizer == "series":
            return torch.tensor(self.target_scale, dtype=torch.float32).expand(len(context), 2)
        if self.settings.normalizer == "context" and self.known_series:
            center = context.mean(dim=1)
            return torch.stack([center, torch.full_like(center, self.target_scale[1])], dim=1)
        normalizer = _library_normalizer(self.settings)
        normalizer.fit(context)
        found: Tensor = normalizer.get_parameters()
        return found.float()

    def _transformed(self, target: Tensor, scale: Tensor) -> Tensor:
        found: Tensor = _library_normalizer(self.settings).transform(target, target_scale=scale)
        return found


class LibraryTrainingWindows:
    """Windows of several series as an engine's data set: what ``LibraryForecaster.forward`` takes, and what came.

    A batch has ``reals``, ``categories``, ``target_scale``, ``target`` (B, horizon) in the units of the series,
    ``observed`` (B, horizon) in {0, 1}, and ``unit`` (B,), in which the loss is taken. Of a network that is trained
    here some categories are forgotten in training; nothing else is augmented. ``rows`` are the first and the last row
    (exclusive) of each series between which it is forecast; what is labelled anomalous there is no target.
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
            seen = np.isfinite(item.series.target)
            for begin, end in window_rows(item.series.times_ns, item.windows).tolist():
                seen[begin : end + 1] = False
            self._target.append(np.nan_to_num(item.series.target).astype(np.float32))
            self._observed.append(seen.astype(np.float32))
            begins = np.arange(max(first, input.context), last - input.horizon + 1, stride)
            starts.append(np.stack([np.full(len(begins), number), begins], axis=1))
        self._starts = np.concatenate(starts)

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        chosen = self._starts[indices]
        # Series by series, then back in the order of the indices.
        order = np.argsort(chosen[:, 0], kind="stable")
        parts = []
        for number in np.unique(chosen[:, 0]).tolist():
            begins = chosen[chosen[:, 0] == number, 1]
            ahead = begins[:, None] + np.arange(self._horizon)
            target, observed = self._target[number][ahead], self._observed[number][ahead]
            unit = self._series[number].target_scale[1] if self._settings.trained_here else 1.0
            told = (torch.from_numpy(target), torch.from_numpy(observed), torch.full((len(begins),), unit))
            parts.append((*self._series[number].batch(begins), *told))
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        names = ("reals", "categories", "target_scale", "target", "observed", "unit")
        batch = {name: torch.cat(column)[back] for name, column in zip(names, zip(*parts, strict=True), strict=True)}
        if key is not None and self._settings.trained_here:
            draws = torch.from_numpy(uniform(key, indices, batch["categories"].shape[2]))
            batch["categories"][(draws < _FORGOTTEN)[:, None].expand_as(batch["categories"])] = 0
        return batch


def values_before(series: Series, horizon: int) -> dict[str, Floats]:
    """(N,) the median of the values at the same time on days and in weeks before, and the share of these that there is.

    By what a network that is trained here calls them. Each is of rows at least ``horizon`` earlier.
    """
    days = same_time_before(series, horizon=horizon)
    weeks = same_time_before(series, horizon=horizon, lag_ns=WEEK_NS, count=2)
    names = (*_VALUES_BEFORE.items(),)
    return {
        name: values
        for pair, found in zip(names, (days, weeks), strict=True)
        for name, values in zip(pair, found, strict=True)
    }


def refuse_missing(series: Series, name: str, settings: LibraryTFT, context: int, horizon: int) -> None:
    """Refuses a known covariate of numbers without any value over the rows of a forecast."""
    column = settings.columns[name]
    missing = ~np.isfinite(_numbers(series, column))
    missing[:context] = False  # rows that are not forecast
    since = np.arange(len(missing)) - np.maximum.accumulate(np.where(missing, -1, np.arange(len(missing))))
    if (since >= horizon).any():
        row = int(np.argmax(since >= horizon))
        first, last = (iso_utc(int(series.times_ns[one])) for one in (row - horizon + 1, row))
        raise InvalidInputError(
            f"{series.name}: column {column!r} is known ahead of time to the network, and has no value in the "
            f"{horizon} rows from {first} to {last}, which are forecast at once; fill it in (with 0 where an empty "
            "cell means none)"
        )


def _library_normalizer(settings: LibraryTFT) -> Any:
    from pytorch_forecasting.data.encoders import EncoderNormalizer

    return EncoderNormalizer(method=settings.method, center=settings.center, transformation=settings.transformation)


def covariate(series: Series, name: str, settings: LibraryTFT) -> Floats:
    """(N,) a real covariate: the row's number, a column of the series, or what its times tell.

    Missing values take the last one before them; of a network that is trained here those in front take the mean.
    """
    if name in settings.columns:
        values = last_seen(_numbers(series, settings.columns[name]))
        return np.where(np.isnan(values), settings.scalers[name][0], values)
    if name == settings.time_idx:
        return np.arange(len(series), dtype=np.float64)
    if name in series.values:
        return fill_missing(series.values[name])
    if name in CALENDAR:
        return CALENDAR[name](series.times_ns).astype(np.float64)
    if name in series.words:
        return fill_missing(_numbers(series, name))
    raise InvalidInputError(
        f"{series.name} has no column {name!r}, which the model takes as a covariate; it has {', '.join(series.values)}"
    )


def _numbers(series: Series, column: str) -> Floats:
    """(N,) a column of numbers, NaN where missing."""
    found = number_column(series, column)
    if found is None:
        found = boolean_numbers(series.words[column])
    if found is None:
        word = next(cell for cell in series.words[column] if cell)
        raise InvalidInputError(
            f"{series.name}: column {column!r} holds {word!r}, and the network was trained on numbers in it"
        )
    return found


def _codes(series: Series, name: str, settings: LibraryTFT) -> np.ndarray:
    known = settings.categories[name]
    if settings.trained_here:
        if name == settings.group:
            return np.full(len(series), known.get(series.name, 0), np.int64)
        words, places = np.unique(word_column(series, settings.columns[name]).astype(str), return_inverse=True)
        return np.array([word_code(str(word), known) for word in words], np.int64)[places]
    if name == settings.group:
        if series.name in known or len(known) == 1:
            return np.full(len(series), known.get(series.name, next(iter(known.values()))), np.int64)
        raise InvalidInputError(
            f"the model knows the series {', '.join(list(known)[:10])}, and not {series.name!r}; hand in a table whose "
            "column of series names one of them (the option 'series')"
        )
    labels = CALENDAR[name](series.times_ns).astype(np.int64)
    if missing := sorted({str(label) for label in labels.tolist()} - known.keys()):
        raise InvalidInputError(f"the model has not been trained on the {name} {missing[0]}, which {series.name} has")
    return np.array([known[str(label)] for label in labels.tolist()], np.int64)
