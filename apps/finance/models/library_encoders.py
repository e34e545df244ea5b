"""The encoders of an imported network, fitted again on the table of its training by pytorch-forecasting itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apps.finance.datasets.columns import word_column
from apps.finance.datasets.windows import fill_missing
from apps.finance.models.library_covariates import covariate
from apps.finance.types import LabelledSeries, LibraryTFT
from shared.errors import InvalidInputError

NORMALIZERS = {"GroupNormalizer": "series", "TorchNormalizer": "series", "EncoderNormalizer": "window"}
"""The library's normalizers of the target: fitted for each series, or for each window's context."""


def normalizer_of(kind: str, state: Mapping[str, Any], groups: Sequence[str], name: str) -> Any:
    """A normalizer with the settings of the checkpoint's, not fitted. ``state`` is the state of that object.

    Raises InvalidInputError for settings with which the library scales windows otherwise than they are scaled here.
    """
    from pytorch_forecasting.data import encoders

    settings = {"method": str(state.get("method", "standard")), "center": bool(state.get("center", True))}
    settings["transformation"] = state.get("transformation")
    if method_settings := state.get("method_kwargs") or state.get("_method_kwargs"):
        settings["method_kwargs"] = dict(method_settings)
    own_groups = list(state.get("_groups") or [])
    fault = ""
    if kind == "GroupNormalizer":
        settings |= {"groups": own_groups, "scale_by_group": bool(state.get("scale_by_group"))}
        if own_groups not in ([], list(groups)):
            fault = f"groups={own_groups}, which are not all columns that name a series, {list(groups)}"
    if kind == "EncoderNormalizer":
        given = ("method_kwargs" in settings and "method_kwargs") or (state.get("max_length") and "max_length")
        fault = f"the setting {given}" if given else ""
    if fault:
        raise InvalidInputError(f"{name} scales its target by a {kind} with {fault}; this is not supported")
    return getattr(encoders, kind)(**settings)


def with_time_index(settings: LibraryTFT, items: Sequence[LabelledSeries], name: str) -> LibraryTFT:
    """The settings of a network that takes its time index from the table's column of that name.

    Unchanged if the table has no such column of numbers: then the index is the number of a row in its series. Raises
    InvalidInputError if rows are missing in the column, because windows are counted in rows.
    """
    column = settings.time_idx
    if not all(column in item.series.values for item in items):
        return settings
    for item in items:
        if (np.diff(item.series.values[column]) != 1).any() or not np.isfinite(item.series.values[column]).all():
            raise InvalidInputError(
                f"{name} takes the time index {column!r}, which must increase by 1 with each row of a series, and in "
                f"{item.series.name} it does not; add the missing rows, or leave the column out"
            )
    return replace(settings, columns={column: column})


def fit_encoders(
    settings: LibraryTFT, normalizer: Any, parameters: Mapping[str, Any], items: Sequence[LabelledSeries]
) -> LibraryTFT:
    """The settings with scalers and the series' scales, fitted by the library's ``TimeSeriesDataSet``.

    ``parameters`` are those of the data set in the checkpoint.
    """
    from pytorch_forecasting import TimeSeriesDataSet

    target, groups = settings.target, list(parameters["group_ids"])
    computed = {"encoder_length", f"{target}_center", f"{target}_scale"}  # the library adds them to the static ones
    reals = {
        "static_reals": [name for name in parameters.get("static_reals") or [] if name not in computed],
        "time_varying_known_reals": list(parameters.get("time_varying_known_reals") or []),
        "time_varying_unknown_reals": list(parameters.get("time_varying_unknown_reals") or []),
    }
    names = [name for kind in reals.values() for name in kind if name not in (target, settings.time_idx)]
    with warnings.catch_warnings():
        # The library warns about names and scales that are given by the checkpoint.
        warnings.simplefilter("ignore")
        data = TimeSeriesDataSet(
            _library_frame(settings, groups, items, names),
            time_idx=settings.time_idx,
            target=target,
            group_ids=groups,
            max_encoder_length=parameters["max_encoder_length"],
            max_prediction_length=parameters["max_prediction_length"],
            target_normalizer=normalizer,
            add_relative_time_idx=bool(parameters["add_relative_time_idx"]),
            add_target_scales=bool(parameters["add_target_scales"]),
            add_encoder_length=bool(parameters["add_encoder_length"]),
            **reals,
        )
    fitted = data.get_parameters()
    scalers = {key: (float(scaler.mean_[0]), float(scaler.scale_[0])) for key, scaler in fitted["scalers"].items()}
    scales: dict[str, tuple[float, float]] = {}
    if settings.normalizer == "series":
        encoders = [fitted["categorical_encoders"].get(group) for group in groups]
        entries = {item.series.name: _group_entries(item, groups) for item in items}
        for name, words in {"": [""] * len(groups), **entries}.items():
            codes = [
                encoder.classes_.get(word, -1) if encoder is not None else -1
                for encoder, word in zip(encoders, words, strict=True)
            ]
            center, scale = np.asarray(fitted["target_normalizer"].get_parameters(codes, groups)).ravel().tolist()
            scales[name] = (float(center), float(scale))
    return replace(settings, scalers=scalers, target_scales=scales)


def _group_entries(item: LabelledSeries, groups: Sequence[str]) -> list[str]:
    """A series' entry in each of the columns that name it."""
    if len(groups) == 1:
        return [item.series.name]
    return [str(word_column(item.series, group)[0]) for group in groups]


def _library_frame(
    settings: LibraryTFT, groups: Sequence[str], items: Sequence[LabelledSeries], names: Sequence[str]
) -> Any:
    """The series as the pandas table that the library takes, with the covariates ``names``."""
    import pandas as pd

    parts = []
    for item in items:
        columns: dict[str, Any] = dict(zip(groups, _group_entries(item, groups), strict=True))
        time_idx = item.series.values.get(settings.columns.get(settings.time_idx, ""), np.arange(len(item.series)))
        columns |= {settings.time_idx: time_idx.astype(np.int64), settings.target: fill_missing(item.series.target)}
        columns.update({name: covariate(item.series, name, settings) for name in names})
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
