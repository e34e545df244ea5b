"""Tables for pytorch-forecasting, its data sets over them, and checkpoints as its users save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from apps.finance.datasets.table import Table

ROWS, CONTEXT, HORIZON = 260, 8, 4


def table() -> pd.DataFrame:
    """Three hourly series with a daily pattern, different levels and a covariate."""
    generator, parts = np.random.default_rng(0), []
    times = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    for level, name in enumerate("abc"):
        hours = np.arange(ROWS)
        load = generator.normal(size=ROWS)
        values = 50 * (level + 1) + 10 * np.sin(hours / 24 * 2 * np.pi) + 2 * load + generator.normal(size=ROWS)
        parts.append(pd.DataFrame({"time": times, "item": name, "row": hours, "value": values, "load": load}))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(hour=frame["time"].dt.hour.astype(float), weekday=frame["time"].dt.dayofweek.astype(str))


def library_data(frame: pd.DataFrame, **settings: Any) -> Any:
    from pytorch_forecasting import TimeSeriesDataSet

    usual: dict[str, Any] = {
        "time_idx": "row",
        "target": "value",
        "group_ids": ["item"],
        "max_encoder_length": CONTEXT,
        "max_prediction_length": HORIZON,
        "min_prediction_length": HORIZON,
        "time_varying_unknown_reals": ["value"],
        "time_varying_known_reals": ["row", "hour"],
    }
    return TimeSeriesDataSet(frame.copy(), **{**usual, **settings})


def saved(data: Any, path: Path, **settings: Any) -> Path:
    """A checkpoint as Lightning's trainer writes it, of a network that has not been trained."""
    import lightning.pytorch as lightning
    from pytorch_forecasting import TemporalFusionTransformer

    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4}
    model = TemporalFusionTransformer.from_dataset(data, **{**sizes, **settings})
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        max_epochs=0,
        enable_model_summary=False,
    )
    trainer.fit(model, data.to_dataloader(train=True, batch_size=4, num_workers=0))
    trainer.save_checkpoint(path)
    return path


def table_of(folder: Path, frame: pd.DataFrame) -> Table:
    frame.drop(columns=["row", "hour", "weekday"]).to_csv(folder / "table.csv", index=False)
    return Table(path=str(folder / "table.csv"), time="time", value="value", series="item")
