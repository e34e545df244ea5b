// The chart of a series with its expected band and events, and the score below; controlled by mouse and keyboard.
import { element } from "../shared/case.js";
import { inView } from "./view.js";
import uPlot from "../shared/vendor/uplot/uPlot.esm.js";

export const seconds = (iso) => Date.parse(iso) / 1000;
export const shortTime = (iso) => iso.replace("T", " ").replace(/(\.\d+)?Z$/, "").replace(/ 00:00:00$/, "");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A number with thousands separators and at most `decimals` decimals; an en dash if it is missing. */
export function number(value, decimals = 12) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e15 || size < 1e-5)) return value.toExponential(4);
  return value.toLocaleString("en-US", { maximumFractionDigits: decimals });
}

/** The number of decimals for an event's values: as many as its band has, at least two. */
export const decimals = (event) => Math.max(2, (String(event.low ?? "").split(".")[1] ?? "").length);

// Tick formats by step: [minimum seconds, format, second line where the day or the year changes, ...].
const DAY_BELOW = "\n{YYYY}-{MM}-{DD}";
const CLOCK = [
  [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
  [3600 * 24 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [3600 * 24, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", DAY_BELOW, null, DAY_BELOW, null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", DAY_BELOW, null, DAY_BELOW, null, null, null, 1],
  [0.001, ":{ss}.{fff}", null, null, null, null, null, null, 1],
];

// Shades the events behind the lines; the labelled windows of a synthetic series are a strip along the top.
function shade(events, truth, missed, current) {
  return { hooks: { drawClear: [(plot) => {
    const { ctx, bbox } = plot;
    const span = (item) => {
      const from = plot.valToPos(seconds(item.start), "x", true);
      const to = plot.valToPos(seconds(item.end), "x", true);
      const width = Math.max(to - from, 2 * devicePixelRatio);
      const left = Math.max(from - (width - (to - from)) / 2, bbox.left);
      return [left, Math.min(from + width, bbox.left + bbox.width)];
    };
    ctx.save();
    ctx.fillStyle = colour("--second");
    for (const event of events) {
      const [left, right] = span(event);
      if (right <= left) continue;
      ctx.globalAlpha = event === current.event ? 0.55 : 0.3;
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.fillStyle = colour("--third");
    ctx.globalAlpha = 0.35;
    for (const event of missed()) {
      const [left, right] = span(event);
      if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.fillStyle = colour("--fourth");
    ctx.globalAlpha = 0.7;
    for (const window of truth) {
      const [left, right] = span(window);
      if (right > left) ctx.fillRect(left, bbox.top, right - left, 5 * devicePixelRatio);
    }
    ctx.restore();
  }] } };
}

/**
 * Draws a series of series.json into `container`; returns functions that control the view. `events`, `truth` and `missed()` have
 * start and end. `load` returns all `total` rows of a thinned series and is called when the user zooms in; `onDraw(every)` is
 * called with the number of rows of which one is drawn.
 */
export function drawChart(container, thinned, { events, truth = [], missed = () => [], interval, total = 0, load = null, onDraw = () => {} }) {
  let data = thinned;   // the drawn rows; for a thinned series, the rows in view are replaced when the view changes
  const axis = (extra) => ({ stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, ...extra });
  const group = uPlot.sync("finance");
  const plots = [];
  const current = { event: null };
  let [isSyncing, isDestroyed] = [false, false];
  // Both charts zoom together.
  const syncZoom = { hooks: { setScale: [(plot, key) => {
    if (key === "x") refineSoon();
    if (key !== "x" || isSyncing) return;
    isSyncing = true;
    const { min, max } = plot.scales.x;
    for (const otherPlot of plots) if (otherPlot !== plot) otherPlot.setScale("x", { min, max });
    isSyncing = false;
  }] } };
  // Both charts begin at the same distance from the left, which leaves room for the longest label of either so far.
  let left = 70;
  const leftSize = (plot, labels, index) => {
    const yAxis = plot.axes[index];
    plot.ctx.font = yAxis.font[0];
    const widths = (labels ?? []).map((label) => plot.ctx.measureText(label ?? "").width / devicePixelRatio);
    const needed = Math.ceil(Math.max(0, ...widths) + yAxis.ticks.size + yAxis.gap + 4);
    if (needed > left) {
      left = needed;
      queueMicrotask(() => { for (const other of plots) if (!isDestroyed && other !== plot) other.setSize({ width: other.width, height: other.height }); });
    }
    return left;
  };
  const chartWidth = () => Math.max(container.clientWidth - 20, 260);
  const time = { tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "UTC"), cursor: { sync: { key: group.key, setSeries: false }, drag: { x: true, y: false } }, width: chartWidth() };
  const valueColumns = () => [data.times, data.low, data.high, data.median, data.values];
  const scoreColumns = () => [data.times, data.score, data.thresholds];
  const finiteValues = data.values.filter((value) => value !== null);
  const [minValue, maxValue] = [finiteValues.reduce((a, b) => Math.min(a, b), Infinity), finiteValues.reduce((a, b) => Math.max(a, b), -Infinity)];
  // The scale follows the values in view, so that a very wide band does not flatten them.
  const range = (plot) => {
    const [from, to] = [plot.scales.x.min ?? -Infinity, plot.scales.x.max ?? Infinity];
    let [low, high] = [Infinity, -Infinity];
    for (let row = 0; row < data.times.length; row++) {
      const value = data.values[row];
      if (value === null || data.times[row] < from || data.times[row] > to) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) [low, high] = [minValue, maxValue];
    const pad = 0.12 * (high - low) || Math.abs(high) * 0.05 || 1;
    return [low - pad, high + pad];
  };
  const show = (_, value) => number(value, value !== null && Math.abs(value) < 1 ? 6 : 3);
  const band = { stroke: colour("--line"), width: 0.5, points: { show: false }, value: show };
  const shading = shade(events, truth, missed, current);
  // With the line above it and the score below, it fits into the window of a laptop.
  const height = Math.min(360, Math.max(200, innerHeight - 340));
  const value = new uPlot({
    ...time, height, plugins: [shading, syncZoom],
    scales: { x: { time: true }, y: { range: (plot) => range(plot) } },
    axes: [axis({ size: 54, values: CLOCK }), axis({ size: leftSize })],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { ...band, label: "low" }, { ...band, label: "high" },
      { label: "expected", stroke: colour("--third"), width: 1, dash: [4, 3], points: { show: false }, value: show },
      { label: data.column, stroke: colour("--first"), width: 1.3, points: { show: false }, value: show },
    ],
    bands: [{ series: [2, 1], fill: `color-mix(in srgb, ${colour("--third")} 22%, transparent)` }],
  }, valueColumns(), container);
  const score = new uPlot({
    ...time, height: 130, plugins: [shading, syncZoom],
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1.1 * high, 1.3 * thinned.threshold)] } },
    axes: [axis({ size: 54, values: CLOCK }), axis({ size: leftSize })],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { label: "score", stroke: colour("--ink"), width: 1, points: { show: false } },
      { label: "threshold", stroke: colour("--second"), width: 1, dash: [6, 4], points: { show: false } },
    ],
  }, scoreColumns(), container);
  plots.push(value, score);
  for (const plot of plots) makeLegendOperable(plot);
  const resizeObserver = new ResizeObserver(() => {
    for (const plot of plots) if (Math.abs(plot.width - chartWidth()) > 2) plot.setSize({ width: chartWidth(), height: plot.height });
  });
  resizeObserver.observe(container);

  const [first, last] = [thinned.times[0], thinned.times.at(-1)];
  let [rows, pendingFrame, drawnView] = [null, 0, ""];
  const coarse = Math.ceil(total / thinned.times.length);
  const refine = () => {
    const { min, max } = value.scales.x;
    if (isDestroyed || `${min} ${max}` === drawnView) return;
    drawnView = `${min} ${max}`;
    const next = rows === null ? null : inView(thinned, rows, min, max);
    data = next !== null && next.every < coarse ? next : thinned;
    onDraw(data.every ?? coarse);
    value.setData(valueColumns(), false);
    score.setData(scoreColumns(), false);
    for (const plot of plots) plot.redraw();
  };
  function refineSoon() {
    if (!thinned.thinned || load === null || pendingFrame) return;
    pendingFrame = requestAnimationFrame(async () => {
      const { min, max } = value.scales.x;
      if (max - min < 0.98 * (last - first)) rows ??= await load();
      pendingFrame = 0;
      refine();
    });
  }
  refineSoon();
  const setView = (min, max) => {
    const width = Math.min(Math.max(max - min, 8 * interval), last - first);
    const from = Math.min(Math.max((min + max - width) / 2, first), last - width);
    value.setScale("x", { min: from, max: from + width });
  };
  const view = () => [value.scales.x.min, value.scales.x.max];
  return {
    /** Shows an event with enough context to assess it. */
    show(event) {
      current.event = event;
      const [from, to] = [seconds(event.start), seconds(event.end)];
      const around = Math.max(3 * (to - from), 60 * interval);
      setView(from - around, to + around);
    },
    all() { current.event = null; setView(first, last); },
    /** Moves by a share of the view's width; positive to the right. */
    pan(share) { const [min, max] = view(); setView(min + share * (max - min), max + share * (max - min)); },
    /** Scales the view's width by `factor` around its middle. */
    zoom(factor) {
      const [min, max] = view();
      const [middle, half] = [(min + max) / 2, (factor * (max - min)) / 2];
      setView(middle - half, middle + half);
    },
    edge(end) { const [min, max] = view(); if (end) setView(last - (max - min), last); else setView(first, first + (max - min)); },
    view,
    redraw() { for (const plot of plots) plot.redraw(); },
    destroy() { isDestroyed = true; resizeObserver.disconnect(); for (const plot of plots) plot.destroy(); },
  };
}

/** A click on a name in the legend hides its line; so do Enter and the space bar on it. */
function makeLegendOperable(plot) {
  plot.root.querySelectorAll(".u-legend .u-label").forEach((label, index) => {
    if (!index) return;   // the time, which has no line
    const show = () => label.setAttribute("aria-pressed", String(plot.series[index].show));
    for (const [name, value] of [["role", "button"], ["tabindex", "0"], ["title", "Show or hide the line"]]) label.setAttribute(name, value);
    label.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      label.click();
    });
    plot.hooks.setSeries = [...(plot.hooks.setSeries ?? []), show];
    show();
  });
}

/** Buttons that move and zoom the chart, for readers who do not drag. */
export function viewButtons(chart) {
  const button = (text, act, name = text) => element("button", { type: "button", "aria-label": name, title: name, onclick: () => chart() && act(chart()) }, text);
  return element("span", { class: "view-buttons", role: "group", "aria-label": "View of the chart" },
    button("Zoom in", (shown) => shown.zoom(0.5)), button("Zoom out", (shown) => shown.zoom(2)),
    button("←", (shown) => shown.pan(-0.25), "Earlier"), button("→", (shown) => shown.pan(0.25), "Later"));
}

export const KEYS = "With the chart focused: ↑ ↓ previous and next event, ← → move, + − zoom, Home and End to the edges, 0 the whole series.";
export const LETTER_KEYS = "N, P: next and previous event. A, R: accept or reject it. ";

/** Adds keyboard controls to `container`; `step(by)` moves between events, `whole()` shows all. */
export function keyboard(container, chart, { step, whole }) {
  const actions = {
    ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => step(-1), PageDown: () => step(1),
    ArrowLeft: () => chart().pan(-0.25), ArrowRight: () => chart().pan(0.25),
    "+": () => chart().zoom(0.5), "=": () => chart().zoom(0.5), "-": () => chart().zoom(2), "_": () => chart().zoom(2),
    Home: () => chart().edge(false), End: () => chart().edge(true), "0": whole, Escape: whole,
  };
  container.addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || !chart() || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}

/** The focusable frame of a chart. */
export function frame(hint) {
  return element("div", { class: "chart", role: "group", tabindex: "0", "aria-roledescription": "chart", "aria-describedby": hint });
}
