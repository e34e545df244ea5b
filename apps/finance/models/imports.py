"""Imports public checkpoints as models of this application: reads weights and plain settings, executes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.finance.datasets.columns import word_column
from apps.finance.datasets.table import Table
from apps.finance.models.calendar import columns_taken
from apps.finance.models.library_encoders import NORMALIZERS, fit_encoders, normalizer_of, with_time_index
from apps.finance.models.library_tft import LibraryForecaster, LibraryWindows, build_library_tft
from apps.finance.types import FinanceInput, LabelledSeries, LibraryTFT
from shared.app import Imported, Importer
from shared.errors import InvalidInputError
from shared.recipe import DataConfig, Recipe

_ARGUMENTS = (
    *("hidden_size", "lstm_layers", "dropout", "output_size", "attention_head_size", "max_encoder_length"),
    *("static_categoricals", "static_reals", "time_varying_categoricals_encoder", "time_varying_categoricals_decoder"),
    *("time_varying_reals_encoder", "time_varying_reals_decoder", "x_reals", "x_categoricals"),
    *("hidden_continuous_size", "hidden_continuous_sizes", "embedding_sizes", "embedding_paddings"),
    *("share_single_variable_networks", "causal_attention", "mask_bias", "categorical_groups"),
)
"""The constructor's arguments that define the network."""
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""The library's default, used if the checkpoint's loss does not state its quantiles."""
TOLERANCE = 1e-5
"""The maximum difference from the library's own forward pass, relative to the largest output."""


def import_tft(arguments: Sequence[str], data: DataConfig | None) -> Imported:
    """Imports a Lightning checkpoint of pytorch-forecasting's ``TemporalFusionTransformer``, with encoders fitted on
    ``data``.

    Raises ``InvalidInputError`` if the checkpoint is something else or needs covariates that a table cannot provide,
    and if ``data`` is missing or lacks a column.
    """
    from apps.finance.recipes import small
    from shared.checkpoint_file import read_checkpoint, state_dict_in

    path = Path(arguments[0])
    content = read_checkpoint(path)
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    parameters = (content.get("dataset_parameters") or hyper.get("dataset_parameters")) if hyper else None
    if not isinstance(hyper, Mapping) or not isinstance(parameters, Mapping) or "attention_head_size" not in hyper:
        raise InvalidInputError(
            f"{path.name} is not a checkpoint of pytorch-forecasting's TemporalFusionTransformer: it lacks the "
            "hyper_parameters and dataset_parameters of such a checkpoint"
        )
    _refuse_unsupported(hyper, parameters, path.name)
    categories, unknown_words = _read_categories(hyper, parameters, path.name)
    columns, groups = _covariate_columns(hyper, parameters, categories), parameters["group_ids"]
    data = _with_joined_series(data, groups, path.name)
    items = _read_series(data, path.name, columns, groups)
    settings = _read_settings(hyper, parameters, items, path.name)
    settings = replace(settings, categories=categories, unknown_words=unknown_words)
    input = FinanceInput(
        context=int(hyper["max_encoder_length"]), horizon=int(parameters["max_prediction_length"]), library=settings
    )
    model = LibraryForecaster(settings, input).eval()
    weights = _load_weights(model, state_dict_in(content, path.name), path.name)
    difference = _check_parity(model, weights, max(items, key=lambda item: len(item.series)))
    recipe = small()
    from apps.finance.inference.calibration import CalibrationData, calibrate

    assert isinstance(data, CalibrationData)
    return Imported(
        recipe=replace(recipe, input=input),
        network=model,
        source={
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "library": "pytorch-forecasting",
            "encoders_fitted_on": data.fingerprint()["description"],
            "largest_difference_from_the_library": difference,
        },
        calibration=calibrate(data, model),
    )


def fine_tuned(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """``recipe`` with the network and the input of an imported model, for further training.

    If the recipe's table names no covariates, it takes those of the network, so that columns of words are read too.
    Raises InvalidInputError if it names other covariates.
    """
    from apps.finance.models.stored import stored_settings

    model, input = stored_settings(settings)
    data = recipe.data
    if isinstance(data, Table) and input.library is not None:
        columns, named = columns_taken(input.library), {*data.known, *data.observed}
        if data.groups or (named and named != {*columns}):
            raise InvalidInputError(
                "the imported network has covariates of its own; leave out data.known, data.observed and data.groups"
            )
        data = data.with_covariates(columns)
    return replace(recipe, model=model, data=data, input=input)


def _refuse_unsupported(hyper: Mapping[str, Any], parameters: Mapping[str, Any], name: str) -> None:
    target = parameters["target"]
    faults = {
        "several targets": not isinstance(target, str),
        "lagged values": bool(parameters.get("lags")),
        "inputs without the target": target not in hyper["time_varying_reals_encoder"],
        "an output that is not a set of quantiles": not isinstance(hyper["output_size"], int)
        or hyper["output_size"] < 3,
    }
    for feature, is_present in faults.items():
        if is_present:
            raise InvalidInputError(
                f"{name} cannot be imported because it has {feature}; networks over the target, columns of the table "
                "and the calendar can be imported"
            )


def _read_categories(
    hyper: Mapping[str, Any], parameters: Mapping[str, Any], name: str
) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """The codes of each category, and the categories that have a code for unknown words, from the checkpoint's
    ``NaNLabelEncoder`` objects: their plain state is read, the objects are not restored."""
    encoders, labels = parameters.get("categorical_encoders") or {}, hyper.get("embedding_labels") or {}
    # The columns of a group of categories, such as several kinds of holidays, share an encoder and an embedding.
    groups = {column: group for group, columns in (hyper.get("categorical_groups") or {}).items() for column in columns}
    categories: dict[str, dict[str, int]] = {}
    unknown_words = []
    for column in hyper["x_categoricals"]:
        key = groups.get(column, column)
        encoder = encoders.get(key)
        kind = str(getattr(encoder, "stands_for", "NaNLabelEncoder")).rpartition(".")[2]
        if kind != "NaNLabelEncoder":
            raise InvalidInputError(f"{name} encodes the category {key} by {kind}; only NaNLabelEncoder is supported")
        state = getattr(encoder, "state", None) or {}
        classes = state.get("classes_") or labels.get(key) or {}
        is_plain = all(isinstance(label, (str, float, int)) for label in (*classes, *classes.values()))
        if not classes or not is_plain or sorted(classes.values()) != list(range(len(classes))):
            raise InvalidInputError(
                f"{name} does not hold the words of its category {key} as plain texts; train with that column as texts "
                "(astype(str)) and a network made by TemporalFusionTransformer.from_dataset"
            )
        if len(classes) > (size := hyper["embedding_sizes"][key][0]):
            raise InvalidInputError(f"{name} has {len(classes)} words of {key}, but its network knows {size}")
        categories[column] = {str(label): int(code) for label, code in classes.items()}
        if state.get("add_nan"):
            unknown_words.append(column)
    return categories, tuple(unknown_words)


def _covariate_columns(
    hyper: Mapping[str, Any], parameters: Mapping[str, Any], categories: Mapping[str, Mapping[str, int]]
) -> tuple[str, ...]:
    """The columns of the table that the network takes in addition to the value."""
    network = {name: hyper[name] for name in ("x_reals", "x_categoricals")}
    target, time_idx, groups = parameters["target"], parameters["time_idx"], parameters["group_ids"]
    settings = LibraryTFT(
        network=network, target=target, time_idx=time_idx, group="+".join(groups), quantiles=(), categories=categories
    )
    columns = columns_taken(settings)
    # The names of series are joined of several columns, but the library's normalizer takes the columns themselves.
    return (*columns, *(column for column in groups if len(groups) > 1 and column not in columns))


def _with_joined_series(data: DataConfig | None, groups: Sequence[str], name: str) -> DataConfig | None:
    """``data`` with the series that several columns name together, unless it names others."""
    if len(groups) < 2 or not isinstance(data, Table):
        return data
    if data.series in groups:
        raise InvalidInputError(
            f"the series of {name} are named by {' and '.join(groups)} together; give --data.series {'+'.join(groups)}"
        )
    return replace(data, series=data.series or "+".join(groups))


def _read_series(
    data: DataConfig | None, name: str, columns: Sequence[str], groups: Sequence[str]
) -> list[LabelledSeries]:
    """The series of the table with these covariates. Raises InvalidInputError if several columns name a series, and
    the table's series are others."""
    from apps.finance.inference.calibration import with_covariates
    from apps.finance.inference.evaluation import EvaluationData

    if data is None:
        raise InvalidInputError(
            f"the scalers of {name} are pickled objects, which are not read; name the table it was trained on, so that "
            "they are fitted again: --data table --data.path FILE --data.time T --data.value V"
        )
    if not isinstance(data, EvaluationData):
        raise InvalidInputError(f"{type(data).__name__} has no series to fit the scalers on; name a table with --data")
    data = with_covariates(data, columns)
    items = data.every_series() if isinstance(data, Table) else list(data.cases())
    for column in groups if len(groups) > 1 else ():
        if any(len(np.unique(word_column(item.series, column).astype(str))) > 1 for item in items):
            raise InvalidInputError(
                f"the series of {name} are named by {' and '.join(groups)} together, but a series of the table has "
                f"several entries of {column}; name the columns with --data.series {'+'.join(groups)}"
            )
    return items


def _read_settings(
    hyper: Mapping[str, Any], parameters: Mapping[str, Any], items: Sequence[LabelledSeries], name: str
) -> LibraryTFT:
    """The settings in the checkpoint; the rest is fitted on the series by the library's own data set."""
    normalizer = parameters["target_normalizer"]
    kind = str(getattr(normalizer, "stands_for", "")).rpartition(".")[2]
    state = getattr(normalizer, "state", None) or {}
    if kind not in NORMALIZERS or not isinstance(state.get("transformation"), (str, type(None))):
        raise InvalidInputError(f"{name} scales its target by {kind or 'nothing'}, which cannot be fitted again")
    scaling = [str(getattr(scaler, "stands_for", "")) for scaler in (parameters.get("scalers") or {}).values()]
    if unsupported := [scaler for scaler in scaling if not scaler.endswith(".StandardScaler")]:
        raise InvalidInputError(f"{name} scales a covariate by {unsupported[0]}; only StandardScaler is supported")
    quantiles = (getattr(hyper.get("loss"), "state", None) or {}).get("quantiles") or _QUANTILES
    if len(quantiles) != hyper["output_size"] or 0.5 not in quantiles:
        raise InvalidInputError(
            f"{name} forecasts {hyper['output_size']} values a row, but their quantile levels are unknown"
        )
    settings = LibraryTFT(
        network={key: _plain_value(hyper[key]) for key in _ARGUMENTS if key in hyper},
        target=parameters["target"],
        time_idx=parameters["time_idx"],
        group="+".join(parameters["group_ids"]),
        quantiles=tuple(float(level) for level in quantiles),
        normalizer="window" if NORMALIZERS[kind] == "window" else "series",
        method=str(state.get("method", "standard")),
        center=bool(state.get("center", True)),
        transformation=state.get("transformation"),
    )
    if settings.time_idx in hyper["x_reals"]:
        settings = with_time_index(settings, items, name)
    return fit_encoders(settings, normalizer_of(kind, state, parameters["group_ids"], name), parameters, items)


def _load_weights(model: LibraryForecaster, weights: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Loads the weights into the network by name; returns the weights that it uses."""
    expected = model.tft.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    mismatched = [key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape]
    if missing or mismatched:
        raise InvalidInputError(
            f"{name} does not fit the network that its settings describe: {len(missing)} weights are missing "
            f"({', '.join(missing[:3])}), {len(mismatched)} have another shape ({', '.join(mismatched[:3])})"
        )
    kept = {key: weights[key] for key in expected}
    model.tft.load_state_dict(kept)
    return kept


def _check_parity(model: LibraryForecaster, weights: Mapping[str, torch.Tensor], item: LabelledSeries) -> float:
    """The largest difference from the library's own network on windows of a series, relative to the largest output.

    Raises InvalidInputError if it exceeds ``TOLERANCE``.
    """
    windows = LibraryWindows(item.series, model.settings, context=model.context, horizon=model.horizon)
    starts = np.arange(model.context, len(item.series) - model.horizon, 7)[:32]
    if not len(starts):
        raise InvalidInputError(
            f"{item.series.name} is shorter than a window of {model.context + model.horizon} rows; name a longer series"
        )
    reals, categories, scale = windows.batch(starts)
    library = build_library_tft(model.settings).eval()
    library.load_state_dict(dict(weights))
    batch, context = len(starts), model.context
    inputs = {
        "encoder_cont": reals[:, :context],
        "decoder_cont": reals[:, context:],
        "encoder_cat": categories[:, :context],
        "decoder_cat": categories[:, context:],
        "encoder_lengths": torch.full((batch,), context),
        "decoder_lengths": torch.full((batch,), model.horizon),
        "target_scale": scale,
    }
    with torch.no_grad():
        expected = library(inputs)["prediction"].sort(dim=-1).values
        actual = model(reals, categories, scale)
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE:
        raise InvalidInputError(
            f"the network differs from the library's own by {difference:.1e} of its largest output and is not imported"
        )
    return difference


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return value


IMPORTERS: dict[str, Importer] = {
    "pytorch-forecasting": Importer(
        summary="a Lightning checkpoint of pytorch-forecasting's TemporalFusionTransformer; --data fits its scalers",
        arguments=("CHECKPOINT.ckpt",),
        load=import_tft,
        fine_tuned=fine_tuned,
    )
}
"""The importers of public checkpoints, by the name that ``trivium import finance`` takes."""
