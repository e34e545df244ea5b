"""The picture of a scored series: values, expected band and events, with the score below."""

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
_CHINESE_FONTS = (
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
    value_axis, score_axis = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    value_axis.fill_between(
        times, quantiles[:, 0], quantiles[:, -1], color=_BAND, alpha=0.6, lw=0, label="expected (96 %)"
    )
    value_axis.plot(times, series.target, color=_VALUE, lw=0.8, label=series.column)
    for number, event in enumerate(detection.anomalies):
        first, last = (np.datetime64(time, "ns") for time in (event.start_ns, event.end_ns))
        label = "events" if number == 0 else None
        for axis in (value_axis, score_axis):
            axis.axvspan(first, last, color=_EVENT, alpha=0.25, lw=1.5, label=label if axis is value_axis else None)
        if np.isfinite(event.observed):
            value_axis.plot([np.datetime64(event.peak_ns, "ns")], [event.observed], "o", color=_EVENT, ms=4)
    low, high = _value_range(series.target)
    value_axis.set_ylim(low, high)
    count = len(detection.anomalies)
    value_axis.set_title(
        f"{series.name}: {count} event{'' if count == 1 else 's'}", loc="left", color=_INK, parse_math=False
    )
    legend = value_axis.legend(loc="upper right", frameon=False, ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    score_axis.plot(times, detection.scores, color=_INK, lw=0.6)
    score_axis.plot(times, detection.thresholds, color=_EVENT, lw=1, ls="--")
    score_axis.set_ylabel("score")
    score_axis.set_ylim(0, max(1.15 * float(detection.scores.max()), 1.3 * float(detection.thresholds.max())))
    locator = AutoDateLocator()
    score_axis.xaxis.set_major_locator(locator)
    score_axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    score_axis.set_xlabel("UTC")
    for axis in (value_axis, score_axis):
        axis.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    _save_png(figure, content)
    return content.getvalue()


def draw_several(detections: Sequence[Detection], name: str) -> bytes:
    """A PNG, 1200 pixels wide: up to six series of the file ``name``, those with the strongest events, with their
    bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    def strongest(detection: Detection) -> float:
        return max((anomaly.score for anomaly in detection.anomalies), default=0.0)

    shown = sorted(detections, key=strongest, reverse=True)[:_MAX_PANELS]
    figure = Figure(figsize=(12, 0.6 + 2.2 * len(shown)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, detection in zip(panels, shown, strict=True):
        times = detection.series.times_ns.astype("datetime64[ns]")
        axis.fill_between(
            times, detection.forecast.quantiles[:, 0], detection.forecast.quantiles[:, -1], color=_BAND, alpha=0.6, lw=0
        )
        axis.plot(times, detection.series.target, color=_VALUE, lw=0.8)
        for anomaly in detection.anomalies:
            axis.axvspan(
                *(np.datetime64(time, "ns") for time in (anomaly.start_ns, anomaly.end_ns)),
                color=_EVENT,
                alpha=0.25,
                lw=1.5,
            )
        axis.set_ylim(*_value_range(detection.series.target))
        count = len(detection.anomalies)
        title = f"{detection.series.name}: {count} event{'' if count == 1 else 's'}"
        axis.set_title(title, loc="left", color=_INK, parse_math=False)
        locator = AutoDateLocator()
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axis.spines[["top", "right"]].set_visible(False)
    count = sum(len(detection.anomalies) for detection in detections)
    title = f"{name}: {count} event{'' if count == 1 else 's'} in {len(detections)} series"
    figure.suptitle(
        title + (f", the first {len(shown)} shown" if len(shown) < len(detections) else ""), parse_math=False
    )
    content = io.BytesIO()
    _save_png(figure, content)
    return content.getvalue()


def _save_png(figure: Figure, content: io.BytesIO) -> None:
    """Renders with a font for Chinese names if the machine has one; otherwise these are shown as boxes."""
    import warnings

    from matplotlib import font_manager, rc_context

    installed = {font.name for font in font_manager.fontManager.ttflist}
    with (
        rc_context({"font.family": ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", metadata={"Software": None})


def _value_range(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, so that a wide band does not flatten them."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    pad = 0.08 * (high - low) or max(0.05 * abs(high), 1.0)
    return low - pad, high + pad
