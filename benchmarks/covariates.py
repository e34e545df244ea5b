"""Covariates of a user's own table: the forecasts and the detected events with covariates and without.

The table is synthetic: two years of the hourly electric load of two regions, which depends on the hour, the weekday,
the temperature (heating and cooling) and holidays, which are named in a column. The labelled anomalies are stretches of
6 to 12 hours in which the load is that of weather 10 degrees warmer or colder, that of a holiday although it is an
ordinary day, or that of an ordinary day although it is a holiday. They stand out only given the
covariates, and some of them, at night, hardly do.

Two networks are trained on the same rows, with the same settings and number of epochs: the one that `trivium train
finance --data table` trains on values and times, and the one with `--data.known temperature,holiday`. Both are
exported, and thus calibrated on the table. They are scored on the last fifth of each series, which is not trained on
and contains the labelled stretches: by the mean quantile loss as in `trivium evaluate`, and by the number of stretches
hit at equal numbers of false events, with thresholds that give these numbers.

The bar: without covariates the quantile loss is at least 1.15 times as high, and fewer stretches are hit.

    python -m benchmarks.covariates [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apps.finance.app import app
from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.splits import first_validation_row
from apps.finance.datasets.table import Table
from apps.finance.inference.calibration import initial_threshold, reported_scores
from apps.finance.inference.conformal import REPORTED
from apps.finance.inference.evaluation import forecast_quality
from apps.finance.metrics.nab import count_detections
from apps.finance.predictor import FinancePredictor
from apps.finance.recipes import small
from benchmarks.report import report
from shared.deploy.export import export
from shared.engine.loop import fit
from shared.engine.run import Run

BAR = 1.15
FALSE_EVENTS = (2, 5, 10)
_HOURS_BETWEEN_ANOMALIES = 24 * 9
"""In the last fifth of a series, an anomaly begins about every nine days."""


def main() -> None:
    """Trains both networks and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one year")
    quick = parser.parse_args().quick
    days, epochs = (365, 10) if quick else (730, 6)
    with tempfile.TemporaryDirectory(prefix="trivium-") as folder:
        path = Path(folder) / "load.csv"
        load_table(days).to_csv(path, index=False)
        table = Table(path=str(path), time="time", value="load", series="region", labels="label", stride=4)
        without = _train_and_score(table, Path(folder) / "without", epochs)
        known = _train_and_score(replace(table, known=("temperature", "holiday")), Path(folder) / "known", epochs)
    figures = {f"without covariates, {name}": value for name, value in without.items()}
    figures |= {f"with covariates, {name}": value for name, value in known.items()}
    ratio = without["quantile loss"] / known["quantile loss"]
    better = all(known[name] > value for name, value in without.items() if "hit" in name)
    note = f"a synthetic table of {days} days; the loss is in mean absolute changes; the bar is {BAR:g} times"
    report("covariates", figures, ratio=ratio, ok=ratio >= BAR and better, note=note)


def _train_and_score(table: Table, folder: Path, epochs: int) -> dict[str, float]:
    """Trains on a table and scores the last fifth of each series."""
    base = small()
    limits = replace(base.limits, epochs=epochs, minutes=None)
    recipe: Any = replace(base, data=table, limits=limits, schedule=replace(base.schedule, period=epochs))
    run = Run(folder / "run", "finance", "small")
    result = fit(recipe, run, device="cpu", quiet=True)
    predictor = FinancePredictor.load([export(run.path, app, folder / "models", network=False)], "cpu")
    losses, scored = [], []
    for item in table.cases():
        (detection,) = predictor.predict([item.series])
        first_scored_row = first_validation_row(len(item.series), table.validation_share)
        losses.append(forecast_quality(detection, first_scored_row).loss)
        scored_part = np.where(np.arange(len(item.series)) < first_scored_row, 0.0, detection.scores)
        scored.append((scored_part, window_rows(item.series.times_ns, item.windows)))
    figures = {"quantile loss": float(np.mean(losses)), "steps": float(result.steps)}
    for number in FALSE_EVENTS:
        fixed, rate = predictor.calibration.control(fixed=1.0), predictor.calibration.events_per_1000_rows
        start = initial_threshold(scored, fixed, rate, allowed=number * len(scored))
        counted = count_detections(reported_scores(scored, replace(fixed, start=start), rate), REPORTED)
        figures[f"of {counted.windows} stretches hit at {number} false events a series"] = float(counted.hit)
    return figures


def load_table(days: int, seed: int = 0) -> pd.DataFrame:
    """The table: ``time``, ``region``, ``load`` (MW), ``temperature`` (degrees Celsius), ``holiday``, ``label``."""
    generator = np.random.default_rng(seed)
    parts = []
    for region, base in (("north", 900.0), ("south", 300.0)):
        hours = np.arange(24 * days)
        times = pd.Timestamp("2023-01-01") + pd.to_timedelta(hours, unit="h")
        weather = np.zeros(days + 1)
        for day in range(1, days + 1):
            weather[day] = 0.8 * weather[day - 1] + 2.5 * generator.normal()
        year = -11 * np.cos(2 * np.pi * (hours / 24 - 20) / 365.25)
        temperature = 11 + year + np.interp(hours / 24, np.arange(days + 1), weather)
        temperature += 3.5 * np.cos(2 * np.pi * (hours % 24 - 15) / 24) + 0.3 * generator.normal(size=len(hours))
        holiday = np.full(days, "", dtype=object)
        free = generator.choice(days, days // 18, replace=False)
        holiday[free] = np.where(generator.random(len(free)) < 0.7, "public holiday", "bridge day")
        word = np.repeat(holiday, 24)
        noise = np.zeros(len(hours))
        for hour in range(1, len(hours)):
            noise[hour] = 0.7 * noise[hour - 1] + 0.006 * generator.normal()
        weekday = times.dayofweek.to_numpy()
        load = base * (_load(hours, weekday, temperature, word) + noise)
        label = np.zeros(len(hours), int)
        for number, about in enumerate(
            range(len(hours) - len(hours) // 5, len(hours) - _HOURS_BETWEEN_ANOMALIES, _HOURS_BETWEEN_ANOMALIES)
        ):
            start = about + int(generator.integers(0, 96))
            rows = np.arange(start, start + int(generator.integers(6, 13)))
            temperatures, words = temperature[rows], word[rows]
            if number % 2 == 0:
                words = np.full(len(rows), "" if word[start] else "public holiday", dtype=object)
            else:
                temperatures = temperatures + np.where(temperatures < 12, 10.0, -10.0)
            load[rows] = base * (_load(hours[rows], weekday[rows], temperatures, words) + noise[rows])
            label[rows] = 1
        parts.append(
            pd.DataFrame(
                {
                    "time": times,
                    "region": region,
                    "load": load.round(2),
                    "temperature": temperature.round(1),
                    "holiday": word,
                    "label": label,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _load(hours: np.ndarray, weekday: np.ndarray, temperature: np.ndarray, word: np.ndarray) -> np.ndarray:
    """The load relative to the region's base load."""
    hour = hours % 24
    free = (weekday == 6) | (word == "public holiday")
    half = (weekday == 5) | (word == "bridge day")
    work = np.where(free, 0.0, np.where(half, 0.4, 1.0))
    day = 0.75 + 0.12 * np.exp(-(((hour - 19) / 3) ** 2)) + 0.08 * np.cos(2 * np.pi * (hour - 14) / 24)
    day = day + work * 0.25 * ((hour >= 7) & (hour < 18))
    return day + 0.02 * np.maximum(15 - temperature, 0) + 0.025 * np.maximum(temperature - 22, 0)


if __name__ == "__main__":
    main()
