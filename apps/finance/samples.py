"""The example cases that the form offers: a generated synthetic market, and real series if their files are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.finance.types import TRUTH
from shared.app import Sample
from shared.data.registry import read_registry

if TYPE_CHECKING:
    from apps.finance.types import Series

_NAB = (
    ("twitter_aapl", "realTweets/Twitter_volume_AAPL.csv", "Mentions of AAPL on Twitter, every 5 minutes (2015)"),
    ("cpu_load", "realAWSCloudwatch/ec2_cpu_utilization_825cc2.csv", "CPU load of a server, every 5 minutes (2014)"),
    ("travel_time", "realTraffic/TravelTime_387.csv", "Travel time on a road, irregular (2015)"),
)
_BARS = ("timestamp", "open", "high", "low", "close", "volume")
_SEED = 20
_REGISTRY = Path(__file__).parent / "datasets" / "registry.json"


def samples() -> Sequence[Sample]:
    """The samples whose files are available."""
    available = [
        Sample(
            name="synthetic_market",
            title="A market in 5-minute bars with a pump and dump, a jump, a burst and a halt",
            synthetic=True,
            source="generated on request",
            files=_market,
            columns=(*_BARS, TRUTH),
        )
    ]
    entries = read_registry(_REGISTRY)
    root = entries["nab"].locate() if "nab" in entries else None
    if root is not None:
        for name, path, title in _NAB:
            source = "Numenta Anomaly Benchmark, MIT"
            file = root / "finance" / "nab" / "data" / path
            available.append(_real(name, title, source, file, ("timestamp", "value")))
    root = entries["btc_perp"].locate() if "btc_perp" in entries else None
    if root is not None:
        file = root / entries["btc_perp"].files[0].path
        title = "A BTC perpetual in minute bars, January 2022"
        source = "nautechsystems/nautilus_trader, test data, LGPL-3.0"
        available.append(_real("btc_perp", title, source, file, _BARS))
    return available


def minute_bars() -> list[Series]:
    """The real series of minute bars that are available: a BTC perpetual, and the bid of GBP in USD."""
    from apps.finance.adapters import read_contents

    entries = read_registry(_REGISTRY)
    located = [(entries[name], entries[name].locate()) for name in ("btc_perp", "fxcm_gbpusd") if name in entries]
    files = [root / entry.files[-1].path for entry, root in located if root is not None]
    return [series for file in files for series in read_contents(file).series]


def _real(name: str, title: str, source: str, file: Path, columns: Sequence[str]) -> Sample:
    """A sample of real data in an existing file."""
    return Sample(
        name=name, title=title, synthetic=False, source=source, files=lambda folder: [file], columns=tuple(columns)
    )


def _market(folder: Path) -> Sequence[Path]:
    import numpy as np

    from apps.finance.datasets.synth.markets import market
    from apps.finance.outputs.series_csv import write_csv

    path = folder / "synthetic_market.csv"
    item = market(np.random.Generator(np.random.Philox(_SEED)))
    write_csv(path, item.series, item.windows)
    return [path]
