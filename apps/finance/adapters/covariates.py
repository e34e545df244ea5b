"""Columns that a network takes in addition to the value: numbers as read, words as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from apps.finance.adapters import columns
from apps.finance.adapters.options import TableOptions
from apps.finance.types import Floats, Words
from shared.errors import InvalidInputError

EMPTY, NO_NUMBER = "holds no number", "which is not a number"
"""Endings of column faults that a text column may have: it is empty, or it has the name of a value but holds words."""


def covariate_labels(
    options: TableOptions, labels: Sequence[str], columns_in_use: Mapping[str, str], name: str
) -> dict[str, str]:
    """The columns of a table that are covariates, by the names that ``options`` give them.

    ``columns_in_use`` maps other uses, such as ``times``, to their columns. Raises InvalidInputError for a covariate
    that does not exist, and for one that is also the value, the times, the series' names or the labels.
    """
    if not options.covariates:
        return {}
    columns_by_use = {"the value": options.value, "the names of series": options.series}
    other_uses = {f"the {use}": label for use, label in columns_in_use.items()}
    other_uses |= {
        use: columns.matching_label(wanted, labels) or "" for use, wanted in columns_by_use.items() if wanted
    }
    label_by_name: dict[str, str] = {}
    for wanted in options.covariates:
        label = columns.matching_label(wanted, labels)
        if label is None:
            available = ", ".join(map(repr, labels[:50]))
            raise InvalidInputError(
                f"{name} has no column {wanted!r}, which the network needs as a covariate; its columns are: {available}"
            )
        if use := next((use for use, column in other_uses.items() if column == label), None):
            raise InvalidInputError(f"{name}: column {label!r} holds {use} and cannot also be a covariate")
        label_by_name[wanted] = label
    return label_by_name


def take_covariates(
    frame: pl.DataFrame, label_by_name: Mapping[str, str], values: dict[str, Floats], faults: dict[str, str], name: str
) -> dict[str, Floats | Words]:
    """(N,) each covariate by its name, removed from ``values`` and ``faults``: numbers if possible, else words.

    Removed columns are neither scored nor used as series names. Raises InvalidInputError for numbers that cannot be
    read.
    """
    covariates: dict[str, Floats | Words] = {}
    for wanted, label in label_by_name.items():
        fault = faults.pop(label, "")
        if fault not in ("", EMPTY) and not fault.endswith(NO_NUMBER):
            raise InvalidInputError(f"{name}: column {label!r} {fault}; correct the file, or leave the cell empty")
        if label in values:
            covariates[wanted] = values.pop(label)
        else:
            covariates[wanted] = frame[label].cast(pl.String).fill_null("").to_numpy().astype(object)
    return covariates
