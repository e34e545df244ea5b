"""The data sets by the name that ``--data`` takes: a file and a line for each."""

from __future__ import annotations

from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synthetic import Synthetic

DATA_SETS = {"nab": Nab, "synthetic": Synthetic}
