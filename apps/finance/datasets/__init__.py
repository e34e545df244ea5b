"""The data sets by the name that ``--data`` takes: one file and one line each."""

from __future__ import annotations

from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synthetic import Synthetic
from apps.finance.datasets.table import Table

DATA_SETS: dict[str, type[Nab] | type[Synthetic] | type[Table]] = {"table": Table, "nab": Nab, "synthetic": Synthetic}
