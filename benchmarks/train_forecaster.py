"""Training the same TFT on the same windows: pytorch-forecasting's loader and Lightning against ours.

Both sides train pytorch-forecasting's ``TemporalFusionTransformer`` with the same settings, number of steps and batch
size, in one process. The peer is the library as in its tutorial: ``TimeSeriesDataSet``, its own data loader,
``lightning.Trainer``. Ours is the engine's loop with the finance application's windows and fast path. First it is
checked that the fast path computes the same outputs as the unmodified network from the same weights. Both sides use the
same number of threads: that of OMP_NUM_THREADS, or of ``--threads``.

    python -m benchmarks.train_forecaster [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from apps.finance.datasets.synth import markets
from apps.finance.datasets.synthetic import Synthetic
from apps.finance.datasets.windows import COLUMNS, STATIC_REALS, UNKNOWN, Windows, covariate_table
from apps.finance.models.fast import accelerate
from apps.finance.models.settings import FinanceModel
from apps.finance.models.tft import Forecaster, build_tft, tft_inputs
from apps.finance.recipes import FinanceRecipe, tiny
from apps.finance.types import QUANTILES, FinanceInput
from benchmarks.report import report
from shared.data.loader import Loader
from shared.data.order import Permutation
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.recipe import Limits

SETTINGS = FinanceModel(name="benchmark", hidden=16, hidden_continuous=8, heads=2)
INPUT = FinanceInput(context=64, horizon=8)
TOLERANCE = 1e-4


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a minute or two on two cores")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="the number of threads of both sides"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(arguments.threads)
    steps, batch, series, rows = (15, 64, 8, 800) if quick else (60, 128, 24, 2000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tables = [covariate_table(_series(index, rows), context=64, horizon=8) for index in range(series)]
    difference = parity(tables, device)
    peer = _peer_dataset(tables)
    peer_rate = _peer_rate(peer, batch, batches=5 if quick else 20)
    ours = Windows(tables, context=64, horizon=8)
    our_rate = _our_rate(ours, batch, batches=100 if quick else 400)
    peer_step = _peer_step(peer, batch, steps, device)
    torch.set_num_threads(arguments.threads)  # the peer may have changed the number
    our_step = _our_step(series, rows, batch, steps, device)
    ratio = peer_step / our_step
    figures = {
        "peer loader, windows/s": peer_rate,
        "our loader, windows/s": our_rate,
        "loaders, ratio": our_rate / peer_rate,
        "peer training, s/step": peer_step,
        "our training, s/step": our_step,
        "batch": float(batch),
        "steps": float(steps),
        "threads": float(torch.get_num_threads()),
        "largest difference of outputs": difference,
    }
    note = (
        f"{device}, threads on both sides: {torch.get_num_threads()}; "
        "peer: pytorch-forecasting's TimeSeriesDataSet (num_workers=0) and lightning.Trainer, its own "
        "TFT; ours: the engine and the fast path. Steps include loading (median; start-up and validation left out)."
    )
    report("train_forecaster", figures, ratio=ratio, ok=difference < TOLERANCE and ratio > 1, note=note)


def parity(tables: list[Any], device: str) -> float:
    """The largest difference between the unmodified TFT and the fast path, with the same weights and batch."""
    batch = Windows(tables, context=64, horizon=8).batch(np.arange(32), None)
    inputs = [batch[name].to(device) for name in ("encoder_cont", "decoder_cont", "static")]
    torch.manual_seed(0)
    original = build_tft(SETTINGS, INPUT).to(device).eval()
    fast = Forecaster(accelerate(build_tft(SETTINGS, INPUT), context=64, horizon=8), context=64, horizon=8, fast=True)
    fast.tft.load_state_dict(original.state_dict())
    fast = fast.to(device).eval()
    with torch.no_grad():
        return float((original(tft_inputs(*inputs))["prediction"] - fast.raw(*inputs)).abs().max())


def _series(index: int, rows: int) -> Any:
    return markets.series(np.random.Generator(np.random.Philox(index)), length=rows, shape="utilisation").series


def _peer_dataset(tables: list[Any]) -> Any:
    """The same rows and covariates as a ``TimeSeriesDataSet``, with its own encoder normaliser."""
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data import EncoderNormalizer

    frames = []
    for number, table in enumerate(tables):
        frame = pd.DataFrame(table.rows[64:, : len(COLUMNS)].astype(np.float32), columns=list(COLUMNS))
        frames.append(frame.assign(series=str(number), row=np.arange(len(frame)), **dict.fromkeys(STATIC_REALS, 0.0)))
    known = [name for name in COLUMNS if name not in UNKNOWN]
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True),
        time_idx="row",
        target="value",
        group_ids=["series"],
        max_encoder_length=64,
        min_encoder_length=64,
        max_prediction_length=8,
        min_prediction_length=8,
        static_reals=list(STATIC_REALS),
        time_varying_known_reals=known,
        time_varying_unknown_reals=list(UNKNOWN),
        target_normalizer=EncoderNormalizer(),
    )


def _peer_rate(dataset: Any, batch: int, *, batches: int) -> float:
    loader = iter(dataset.to_dataloader(train=True, batch_size=batch, num_workers=0))
    next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * batch / (time.perf_counter() - start)


def _our_rate(dataset: Windows, batch: int, *, batches: int) -> float:
    order = Permutation(seed=0, length=len(dataset), batch=batch)
    steps = Loader(dataset, order, device=torch.device("cpu")).steps(0, batches + 1)
    next(steps)
    start = time.perf_counter()
    for _ in steps:
        pass
    return batches * batch / (time.perf_counter() - start)


def _peer_step(dataset: Any, batch: int, steps: int, device: str) -> float:
    """Seconds per step of Lightning's trainer."""
    import lightning.pytorch as pl
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import QuantileLoss

    model = TemporalFusionTransformer.from_dataset(
        dataset,
        learning_rate=1e-3,
        hidden_size=SETTINGS.hidden,
        hidden_continuous_size=SETTINGS.hidden_continuous,
        attention_head_size=SETTINGS.heads,
        dropout=SETTINGS.dropout,
        loss=QuantileLoss(list(QUANTILES)),
        optimizer="adamw",
    )
    step_ends: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *args: Any, **keywords: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            step_ends.append(time.perf_counter())

    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(model, dataset.to_dataloader(train=True, batch_size=batch, num_workers=0))
    return _median_interval(step_ends)


def _our_step(series: int, rows: int, batch: int, steps: int, device: str) -> float:
    """Seconds per step of the engine, from the times in its log. It reads the loss at every step, like the peer."""
    recipe: FinanceRecipe = replace(
        tiny(),
        model=SETTINGS,
        input=INPUT,
        data=Synthetic(series=series, validation_series=1, rows=rows, stride=1),
        limits=Limits(epochs=1, steps=steps, batch=batch, evaluation_batch=256, log_every=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", "finance", "benchmark")
        fit(recipe, run, device=device, quiet=True)
        lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    return _median_interval([line["time"] / 1e9 for line in lines if line["event"] == "train"])


def _median_interval(step_ends: list[float]) -> float:
    """The median time between the ends of steps, without the first third."""
    return float(np.median(np.diff(step_ends[len(step_ends) // 3 :])))


if __name__ == "__main__":
    main()
