// The series with its expected band, its events and the score below; moved by mouse and by keys.
import { element } from "../shared/case.js";
import { inView } from "./view.js";
import uPlot from "../shared/vendor/uplot/uPlot.esm.js";

export const seconds = (iso) => Date.parse(iso) / 1000;
export const shortTime = (iso) => iso.replace("T", " ").replace(/(\.\d+)?Z$/, "").replace(/ 00:00:00$/, "");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A number with commas between its thousands, in at most so many decimals; an en dash where there is none. */
export function number(value, decimals = 12) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e15 || size < 1e-5)) return value.toExponential(4);
  return value.toLocaleString("en-US", { maximumFractionDigits: decimals });
}

/** The decimals in which an event is told: those that its band has, and cents at least. */
export const decimals = (event) => Math.max(2, (String(event.low ?? "").split(".")[1] ?? "").length);

// Ticks by the step between them: [least seconds, format, and what is put below where the day or the year changes].
const DAY_BELOW = "\n{YYYY}-{MM}-{DD}";
const CLOCK = [
  [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
  [3600 * 24 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [3600 * 24, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", DAY_BELOW, null, DAY_BELOW, null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", DAY_BELOW, null, DAY_BELOW, null, null, null, 1],
  [0.001, ":{ss}.{fff}", null, null, null, null, null, null, 1],
];

// Shades the events behind the lines; what is known of a synthetic series is a strip along the top.
function shade(events, truth, missed, current) {
  return { hooks: { drawClear: [(plot) => {
    const { ctx, bbox } = plot;
    const span = (one) => {
      const from = plot.valToPos(seconds(one.start), "x", true);
      const to = plot.valToPos(seconds(one.end), "x", true);
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
    for (const one of missed()) {
      const [left, right] = span(one);
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
 * Draws a series of series.json into `home`; returns what moves the view. `events`, `truth` and `missed()` have start and end.
 * `load` gives all `total` rows of a thinned series, once somebody looks closer; `drawn(every)` hears of how many one is drawn.
 */
export function drawChart(home, thinned, { events, truth = [], missed = () => [], interval, total = 0, load = null, drawn = () => {} }) {
  let data = thinned;   // what is drawn: of a thinned series the rows in view are replaced as it is moved
  const axis = (extra = {}) => ({ stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, size: 70, ...extra });
  const group = uPlot.sync("finance");
  const plots = [];
  const current = { event: null };
  let following = false;
  // A zoom in one chart is a zoom in both.
  const follow = { hooks: { setScale: [(plot, key) => {
    if (key === "x") refineSoon();
    if (key !== "x" || following) return;
    following = true;
    const { min, max } = plot.scales.x;
    for (const other of plots) if (other !== plot) other.setScale("x", { min, max });
    following = false;
  }] } };
  const room = () => Math.max(home.clientWidth - 20, 260);
  const time = { tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "UTC"), cursor: { sync: { key: group.key, setSeries: false }, drag: { x: true, y: false } }, width: room() };
  const valueColumns = () => [data.times, data.low, data.high, data.median, data.values];
  const scoreColumns = () => [data.times, data.score, data.thresholds];
  const seen = data.values.filter((value) => value !== null);
  const [least, most] = [seen.reduce((a, b) => Math.min(a, b), Infinity), seen.reduce((a, b) => Math.max(a, b), -Infinity)];
  // A very wide band must not press the values flat: the scale follows the values in view.
  const range = (plot) => {
    const [from, to] = [plot.scales.x.min ?? -Infinity, plot.scales.x.max ?? Infinity];
    let [low, high] = [Infinity, -Infinity];
    for (let row = 0; row < data.times.length; row++) {
      const value = data.values[row];
      if (value === null || data.times[row] < from || data.times[row] > to) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) [low, high] = [least, most];
    const pad = 0.12 * (high - low) || Math.abs(high) * 0.05 || 1;
    return [low - pad, high + pad];
  };
  const show = (_, value) => number(value, value !== null && Math.abs(value) < 1 ? 6 : 3);
  const band = { stroke: colour("--line"), width: 0.5, points: { show: false }, value: show };
  const marks = shade(events, truth, missed, current);
  const value = new uPlot({
    ...time, height: 360, plugins: [marks, follow],
    scales: { x: { time: true }, y: { range: (plot) => range(plot) } },
    axes: [axis({ size: 54, values: CLOCK }), axis()],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { ...band, label: "low" }, { ...band, label: "high" },
      { label: "expected", stroke: colour("--third"), width: 1, dash: [4, 3], points: { show: false }, value: show },
      { label: data.column, stroke: colour("--first"), width: 1.3, points: { show: false }, value: show },
    ],
    bands: [{ series: [2, 1], fill: `color-mix(in srgb, ${colour("--third")} 22%, transparent)` }],
  }, valueColumns(), home);
  const score = new uPlot({
    ...time, height: 130, plugins: [marks, follow],
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1.1 * high, 1.3 * thinned.threshold)] } },
    axes: [axis({ size: 54, values: CLOCK }), axis()],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { label: "score", stroke: colour("--ink"), width: 1, points: { show: false } },
      { label: "threshold", stroke: colour("--second"), width: 1, dash: [6, 4], points: { show: false } },
    ],
  }, scoreColumns(), home);
  plots.push(value, score);
  const watching = new ResizeObserver(() => {
    for (const plot of plots) if (Math.abs(plot.width - room()) > 2) plot.setSize({ width: room(), height: plot.height });
  });
  watching.observe(home);

  const [first, last] = [thinned.times[0], thinned.times.at(-1)];
  let [rows, due, refined, gone] = [null, 0, "", false];
  const coarse = Math.ceil(total / thinned.times.length);
  const refine = () => {
    const { min, max } = value.scales.x;
    if (gone || `${min} ${max}` === refined) return;
    refined = `${min} ${max}`;
    const next = rows === null ? null : inView(thinned, rows, min, max);
    data = next !== null && next.every < coarse ? next : thinned;
    drawn(data.every ?? coarse);
    value.setData(valueColumns(), false);
    score.setData(scoreColumns(), false);
    for (const plot of plots) plot.redraw();
  };
  function refineSoon() {
    if (!thinned.thinned || load === null || due) return;
    due = requestAnimationFrame(async () => {
      const { min, max } = value.scales.x;
      if (max - min < 0.98 * (last - first)) rows ??= await load();
      due = 0;
      refine();
    });
  }
  refineSoon();
  const look = (min, max) => {
    const width = Math.min(Math.max(max - min, 8 * interval), last - first);
    const from = Math.min(Math.max((min + max - width) / 2, first), last - width);
    value.setScale("x", { min: from, max: from + width });
  };
  const view = () => [value.scales.x.min, value.scales.x.max];
  return {
    /** Shows an event with as much around it as it takes to be assessed. */
    show(event) {
      current.event = event;
      const [from, to] = [seconds(event.start), seconds(event.end)];
      const around = Math.max(3 * (to - from), 60 * interval);
      look(from - around, to + around);
    },
    all() { current.event = null; look(first, last); },
    /** Moves by a share of what is in view; to the right where it is positive. */
    pan(share) { const [min, max] = view(); look(min + share * (max - min), max + share * (max - min)); },
    /** Shows so many times as much, about the middle. */
    zoom(factor) {
      const [min, max] = view();
      const [middle, half] = [(min + max) / 2, (factor * (max - min)) / 2];
      look(middle - half, middle + half);
    },
    edge(end) { const [min, max] = view(); if (end) look(last - (max - min), last); else look(first, first + (max - min)); },
    view,
    redraw() { for (const plot of plots) plot.redraw(); },
    destroy() { gone = true; watching.disconnect(); for (const plot of plots) plot.destroy(); },
  };
}

export const KEYS = "With the chart focused: ↑ ↓ previous and next event, ← → move, + − zoom, Home and End to the edges, 0 the whole series, A and R accept and reject the event.";

/** Makes `home` answer to keys; `step(by)` goes to another event, `whole()` shows all; `more` are further keys. */
export function keyboard(home, chart, { step, whole, more = {} }) {
  const actions = {
    ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => step(-1), PageDown: () => step(1),
    ArrowLeft: () => chart().pan(-0.25), ArrowRight: () => chart().pan(0.25),
    "+": () => chart().zoom(0.5), "=": () => chart().zoom(0.5), "-": () => chart().zoom(2), "_": () => chart().zoom(2),
    Home: () => chart().edge(false), End: () => chart().edge(true), "0": whole, Escape: whole, ...more,
  };
  home.addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || !chart() || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}

/** The frame of a chart, which takes the focus. */
export function frame(hint) {
  return element("div", { class: "chart", role: "group", tabindex: "0", "aria-roledescription": "chart", "aria-describedby": hint });
}
