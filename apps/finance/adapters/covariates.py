"""Columns that a network takes beside the value: numbers as they are read, words as they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from apps.finance.adapters import columns
from apps.finance.adapters.options import TableOptions
from apps.finance.types import Floats, Words
from shared.errors import InvalidInputError

EMPTY, NO_NUMBER = "holds no number", "which is no number"
"""How the faults of a column end that may be one of words: it is empty, or holds words under the name of a value."""


def covariate_labels(
    options: TableOptions, labels: Sequence[str], taken: Mapping[str, str], name: str
) -> dict[str, str]:
    """The columns of a table that are covariates, by the names that ``options`` give them.

    ``taken`` are the columns that hold something else, by what that is. Refuses a covariate that is not there, and one
    that is the value, the times, the names of series or the labels as well.
    """
    if not options.covariates:
        return {}
    said = {"the value": options.value, "the names of series": options.series}
    other = {f"the {what}": label for what, label in taken.items()}
    other |= {what: columns.matching_label(wanted, labels) or "" for what, wanted in said.items() if wanted}
    found: dict[str, str] = {}
    for wanted in options.covariates:
        label = columns.matching_label(wanted, labels)
        if label is None:
            there = ", ".join(map(repr, labels[:50]))
            raise InvalidInputError(
                f"{name} has no column {wanted!r}, which the network takes as a covariate; there are: {there}"
            )
        if what := next((what for what, column in other.items() if column == label), None):
            raise InvalidInputError(f"{name}: column {label!r} holds {what}, and cannot be a covariate as well")
        found[wanted] = label
    return found


def take_covariates(
    frame: pl.DataFrame, named: Mapping[str, str], values: dict[str, Floats], faults: dict[str, str], name: str
) -> dict[str, Floats | Words]:
    """(N,) each covariate by its name, taken out of ``values`` and ``faults``: numbers, or else words.

    So none of them is scored or names series. Refuses numbers that cannot be read.
    """
    found: dict[str, Floats | Words] = {}
    for wanted, label in named.items():
        fault = faults.pop(label, "")
        if fault not in ("", EMPTY) and not fault.endswith(NO_NUMBER):
            raise InvalidInputError(f"{name}: column {label!r} {fault}; correct the file, or leave the cell empty")
        if label in values:
            found[wanted] = values.pop(label)
        else:
            found[wanted] = frame[label].cast(pl.String).fill_null("").to_numpy().astype(object)
    return found
