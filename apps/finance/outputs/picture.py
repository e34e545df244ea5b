"""The picture of a scored series: values, expected band and events, with the score below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.types import Anomaly, Detection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    from matplotlib.figure import Figure

    times = detection.series.times_ns.astype("datetime64[ns]")
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    value_axis, score_axis = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _draw_series(value_axis, detection)
    for event in detection.anomalies:
        _draw_event(score_axis, event)
        if np.isfinite(event.observed):
            value_axis.plot([np.datetime64(event.peak_ns, "ns")], [event.observed], "o", color=_EVENT, ms=4)
    legend = value_axis.legend(loc="upper right", frameon=False, ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    score_axis.plot(times, detection.scores, color=_INK, lw=0.6)
    score_axis.plot(times, detection.thresholds, color=_EVENT, lw=1, ls="--")
    score_axis.set_ylabel("score")
    score_axis.set_ylim(0, max(1.15 * float(detection.scores.max()), 1.3 * float(detection.thresholds.max())))
    _format_times(score_axis)
    score_axis.set_xlabel("UTC")
    score_axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def draw_several(detections: Sequence[Detection], name: str) -> bytes:
    """A PNG, 1200 pixels wide: up to six series of the file ``name``, those with the strongest events, with their
    bands."""
    from matplotlib.figure import Figure

    def strongest(detection: Detection) -> float:
        return max((anomaly.score for anomaly in detection.anomalies), default=0.0)

    shown = sorted(detections, key=strongest, reverse=True)[:_MAX_PANELS]
    figure = Figure(figsize=(12, 0.6 + 2.2 * len(shown)), dpi=100, layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, detection in zip(panels, shown, strict=True):
        _draw_series(axis, detection)
        _format_times(axis)
    events = _events_text(sum(len(detection.anomalies) for detection in detections))
    first = f", the first {len(shown)} shown" if len(shown) < len(detections) else ""
    figure.suptitle(f"{name}: {events} in {len(detections)} series{first}", parse_math=False)
    return _png(figure)


def _draw_series(axis: Axes, detection: Detection) -> None:
    """The values over the expected band, with the events, below the series' name."""
    series, quantiles = detection.series, detection.forecast.quantiles
    times = series.times_ns.astype("datetime64[ns]")
    axis.fill_between(times, quantiles[:, 0], quantiles[:, -1], color=_BAND, alpha=0.6, lw=0, label="expected (96 %)")
    axis.plot(times, series.target, color=_VALUE, lw=0.8, label=series.column)
    for number, event in enumerate(detection.anomalies):
        _draw_event(axis, event, label="events" if number == 0 else None)
    axis.set_ylim(*_value_range(series.target))
    title = f"{series.name}: {_events_text(len(detection.anomalies))}"
    axis.set_title(title, loc="left", color=_INK, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_event(axis: Axes, event: Anomaly, label: str | None = None) -> None:
    edges = np.array([event.start_ns, event.end_ns], "datetime64[ns]")
    axis.axvspan(*edges, color=_EVENT, alpha=0.25, lw=1.5, label=label)


def _events_text(count: int) -> str:
    return f"{count} event{'' if count == 1 else 's'}"


def _format_times(axis: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _png(figure: Figure) -> bytes:
    """Renders with a font for Chinese names if the machine has one; otherwise these are shown as boxes."""
    import warnings

    from matplotlib import font_manager, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    content = io.BytesIO()
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with (
        rc_context({"font.family": ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _value_range(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, so that a wide band does not flatten them."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    pad = 0.08 * (high - low) or max(0.05 * abs(high), 1.0)
    return low - pad, high + pad
