"""Forecasting whole series: pytorch-forecasting's own ``predict`` against ours, in windows per CPU-second.

The peer is the library as in its tutorial: a ``TimeSeriesDataSet`` of every window, ``to_dataloader``, and ``predict``
in quantile mode, with its own ``TemporalFusionTransformer``. Ours is the function that anomaly detection calls,
``forecast``, with the program that this machine uses. Both get the same rows and covariates, in windows of 64 rows with
8 rows ahead: the peer one window for every row, ours one for every 4 rows, as in anomaly detection. The networks have
the same settings; the peer's weights are random, because it normalises by its own rules. ``train_forecaster`` shows
that the fast path computes the same as the library. CPU-seconds are compared, in turns, on one thread.

The bar: at least 10 times as many windows per CPU-second as the library. The cost of a whole series is also shown.

    python -m benchmarks.forecast [--quick]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from apps.finance.datasets.windows import covariate_table
from apps.finance.inference.forecasting import forecast
from apps.finance.predictor import FinancePredictor
from apps.finance.types import QUANTILES
from benchmarks.report import report
from benchmarks.train_forecaster import SETTINGS, _peer_dataset, _series
from shared.app import find
from shared.deploy.registry import shipped

BAR = 10.0
STRIDE = 4


def main() -> None:
    """Times both in turns and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a shorter series and fewer turns")
    quick = parser.parse_args().quick
    rows, turns = (1500, 2) if quick else (6000, 5)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    series = _series(0, rows)
    predictor = FinancePredictor.load(shipped(find("finance")), "cpu")
    model = predictor.model
    dataset = _peer_dataset([covariate_table(series, context=64, horizon=8)])
    peer = _peer(dataset)
    windows = len(dataset), -(-rows // STRIDE)
    peer()
    forecast(model, [series], stride=STRIDE)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        times[0].append(_cpu_seconds(peer))
        times[1].append(_cpu_seconds(lambda: forecast(model, [series], stride=STRIDE)))
    rates = [count / statistics.median(seconds) for count, seconds in zip(windows, times, strict=True)]
    ratio = rates[1] / rates[0]
    program = next(iter(predictor.programs.values()))
    figures = {
        "pytorch-forecasting, windows a CPU-second": rates[0],
        "ours, windows a CPU-second": rates[1],
        "pytorch-forecasting, CPU-seconds": statistics.median(times[0]),
        "ours, CPU-seconds": statistics.median(times[1]),
        "a whole series, ratio of CPU-seconds": statistics.median(times[0]) / statistics.median(times[1]),
        "pytorch-forecasting, windows": float(windows[0]),
        "ours, windows": float(windows[1]),
        "turns": float(turns),
        "load of the machine": os.getloadavg()[0],
    }
    note = f"one thread; ours computes with {program.name} ({program.reason}); the bar is {BAR:g} times"
    report("forecast", figures, ratio=ratio, ok=ratio >= BAR, note=note)


def _peer(dataset: Any) -> Callable[[], Any]:
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import QuantileLoss

    network = TemporalFusionTransformer.from_dataset(
        dataset,
        hidden_size=SETTINGS.hidden,
        hidden_continuous_size=SETTINGS.hidden_continuous,
        attention_head_size=SETTINGS.heads,
        loss=QuantileLoss(list(QUANTILES)),
    )
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def predict() -> Any:
        loader = dataset.to_dataloader(train=False, batch_size=64, num_workers=0)
        return network.predict(loader, mode="quantiles", trainer_kwargs=quiet)

    return predict


def _cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
