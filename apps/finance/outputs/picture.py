"""The picture of a scored series: values, expected band, events, and the score below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.types import Detection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _VALUE, _BAND, _EVENT = "#222222", "#1f5f8b", "#9ecae1", "#d9480f"
_MAX_PANELS = 6
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
)


def draw(detection: Detection) -> bytes:
    """A PNG, 1200 by 600 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    series, quantiles = detection.series, detection.forecast.quantiles
    times = series.times_ns.astype("datetime64[ns]")
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.fill_between(times, quantiles[:, 0], quantiles[:, -1], color=_BAND, alpha=0.6, lw=0, label="expected (96 %)")
    above.plot(times, series.target, color=_VALUE, lw=0.8, label=series.column)
    for number, one in enumerate(detection.anomalies):
        first, last = (np.datetime64(time, "ns") for time in (one.start_ns, one.end_ns))
        label = "events" if number == 0 else None
        for axis in (above, below):
            axis.axvspan(first, last, color=_EVENT, alpha=0.25, lw=1.5, label=label if axis is above else None)
        if np.isfinite(one.observed):
            above.plot([np.datetime64(one.peak_ns, "ns")], [one.observed], "o", color=_EVENT, ms=4)
    low, high = _limits(series.target)
    above.set_ylim(low, high)
    count = len(detection.anomalies)
    above.set_title(
        f"{series.name}: {count} event{'' if count == 1 else 's'}", loc="left", color=_INK, parse_math=False
    )
    legend = above.legend(loc="upper right", frameon=False, ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    below.plot(times, detection.scores, color=_INK, lw=0.6)
    below.plot(times, detection.thresholds, color=_EVENT, lw=1, ls="--")
    below.set_ylabel("score")
    below.set_ylim(0, max(1.15 * float(detection.scores.max()), 1.3 * float(detection.thresholds.max())))
    locator = AutoDateLocator()
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    below.set_xlabel("UTC")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    _save(figure, content)
    return content.getvalue()


def draw_several(detections: Sequence[Detection], name: str) -> bytes:
    """A PNG, 1200 pixels wide: of the file ``name`` up to six series with the strongest events, with their bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    def strongest(one: Detection) -> float:
        return max((anomaly.score for anomaly in one.anomalies), default=0.0)

    shown = sorted(detections, key=strongest, reverse=True)[:_MAX_PANELS]
    figure = Figure(figsize=(12, 0.6 + 2.2 * len(shown)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, one in zip(panels, shown, strict=True):
        times = one.series.times_ns.astype("datetime64[ns]")
        axis.fill_between(
            times, one.forecast.quantiles[:, 0], one.forecast.quantiles[:, -1], color=_BAND, alpha=0.6, lw=0
        )
        axis.plot(times, one.series.target, color=_VALUE, lw=0.8)
        for anomaly in one.anomalies:
            axis.axvspan(
                *(np.datetime64(time, "ns") for time in (anomaly.start_ns, anomaly.end_ns)),
                color=_EVENT,
                alpha=0.25,
                lw=1.5,
            )
        axis.set_ylim(*_limits(one.series.target))
        count = len(one.anomalies)
        title = f"{one.series.name}: {count} event{'' if count == 1 else 's'}"
        axis.set_title(title, loc="left", color=_INK, parse_math=False)
        locator = AutoDateLocator()
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axis.spines[["top", "right"]].set_visible(False)
    count = sum(len(one.anomalies) for one in detections)
    title = f"{name}: {count} event{'' if count == 1 else 's'} in {len(detections)} series"
    figure.suptitle(
        title + (f", the first {len(shown)} shown" if len(shown) < len(detections) else ""), parse_math=False
    )
    content = io.BytesIO()
    _save(figure, content)
    return content.getvalue()


def _save(figure: Figure, content: io.BytesIO) -> None:
    """Draws with a font for Chinese names where the machine has one; where it has none, they are boxes."""
    import warnings

    from matplotlib import font_manager, rc_context

    there = {font.name for font in font_manager.fontManager.ttflist}
    with (
        rc_context({"font.family": ["DejaVu Sans", *(name for name in _CHINESE if name in there)]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", metadata={"Software": None})


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The values' own range, so that a wide band does not press them flat."""
    seen = values[np.isfinite(values)]
    low, high = float(seen.min()), float(seen.max())
    pad = 0.08 * (high - low) or max(0.05 * abs(high), 1.0)
    return low - pad, high + pad
