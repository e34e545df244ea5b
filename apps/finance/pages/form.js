// The finance form: a list of events, then the series with its expected band, the events, and the score.
import { caseForm, element, table, downloads } from "/static/shared/case.js";
import uPlot from "/static/shared/vendor/uplot/uPlot.esm.js";

const form = document.querySelector("[data-case-form]");
let last = null;   // the button that asked last, so that another column can be asked of the same series
form.addEventListener("click", (event) => {
  const button = event.target.closest("[data-sample], button[type=submit]");
  if (button) last = button;
}, true);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seconds = (iso) => Date.parse(iso) / 1000;
const shortTime = (iso) => iso.replace("T", " ").replace(/(\.\d+)?Z$/, "");

function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e7 || size < 1e-3) ? value.toExponential(3) : String(Number(value.toPrecision(6)));
}

function lasting(event) {
  const length = seconds(event.end) - seconds(event.start);
  if (length === 0) return "one row";
  if (length < 5400) return `${Math.round(length / 60)} min`;
  return length < 172800 ? `${(length / 3600).toFixed(1)} h` : `${(length / 86400).toFixed(1)} d`;
}

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

const WHERE = { above: "above the band", below: "below the band", inside: "within the band: its behaviour is unusual" };

function eventList(result, jump) {
  const count = result.events.length;
  const heading = element("h2", {}, count === 0 ? "No event" : count === 1 ? "One event" : `${count} events`);
  if (!count) {
    return [heading, element("p", {}, `No row of the series scores ${result.threshold} or more. A lower threshold shows weaker events.`)];
  }
  const rows = result.events.map((event, index) => [
    element("button", { type: "button", onclick: () => jump(index) }, shortTime(event.start)),
    lasting(event), event.score, shortNumber(event.observed),
    `${shortNumber(event.expected)} (${shortNumber(event.low)} to ${shortNumber(event.high)})`, WHERE[event.direction],
  ]);
  const list = table(["Start (UTC)", "Lasts", "Score", "Observed", "Expected (96 % band)", "Where"], rows, "Events in order of time; choose one to see it in the chart");
  list.classList.add("events");
  return [heading, list];
}

function facts(result) {
  const series = result.series;
  const missing = series.missing ? `, ${series.missing} of them without a value` : "";
  const text = `${series.rows} rows${missing}, from ${shortTime(series.start)} to ${shortTime(series.end)} UTC. Threshold ${result.threshold}; score: ${result.score}.`;
  return [element("p", { class: "facts" }, text), ...series.notes.map((note) => element("p", { class: "facts" }, `Note: ${note}.`))];
}

function columnChoice(result) {
  const { columns, column } = result.series;
  if (columns.length < 2) return null;
  const choice = element("select", { onchange: () => {
    form.elements.column.value = choice.value;
    const button = last ?? form.querySelector("button[type=submit]");
    // The form's buttons rest until the result has been drawn, and a resting button takes no click.
    const ask = () => (button.disabled ? requestAnimationFrame(ask) : button.click());
    ask();
  } }, columns.map((name) => element("option", { value: name, selected: name === column }, name)));
  return element("label", {}, "Judged column ", choice);
}

// Shades the events behind the lines.
function shade(events) {
  return { hooks: { drawClear: [(plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = colour("--second");
    for (const event of events) {
      const from = plot.valToPos(seconds(event.start), "x", true);
      const to = plot.valToPos(seconds(event.end), "x", true);
      const width = Math.max(to - from, 2 * devicePixelRatio);
      const left = Math.max(from - (width - (to - from)) / 2, bbox.left);
      const right = Math.min(from + width, bbox.left + bbox.width);
      if (right <= left) continue;
      ctx.globalAlpha = 0.3;
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.restore();
  }] } };
}

function charts(result, data, home) {
  const axis = (extra = {}) => ({ stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, size: 70, ...extra });
  const group = uPlot.sync("finance");
  const plots = [];
  let following = false;
  // A zoom in one chart is a zoom in both.
  const follow = { hooks: { setScale: [(plot, key) => {
    if (key !== "x" || following) return;
    following = true;
    const { min, max } = plot.scales.x;
    for (const other of plots) if (other !== plot) other.setScale("x", { min, max });
    following = false;
  }] } };
  const width = Math.max(home.clientWidth - 20, 280);
  const time = { tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "UTC"), cursor: { sync: { key: group.key, setSeries: false }, drag: { x: true, y: false } }, width };
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
  const band = { stroke: colour("--line"), width: 0.5, points: { show: false }, value: (_, v) => shortNumber(v) };
  const value = new uPlot({
    ...time, height: 360, plugins: [shade(result.events), follow],
    scales: { x: { time: true }, y: { range: (plot) => range(plot) } },
    axes: [axis({ size: 54, values: CLOCK }), axis()],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { ...band, label: "low" }, { ...band, label: "high" },
      { label: "expected", stroke: colour("--third"), width: 1, dash: [4, 3], points: { show: false }, value: (_, v) => shortNumber(v) },
      { label: data.column, stroke: colour("--first"), width: 1.3, points: { show: false }, value: (_, v) => shortNumber(v) },
    ],
    bands: [{ series: [2, 1], fill: `color-mix(in srgb, ${colour("--third")} 22%, transparent)` }],
  }, [data.times, data.low, data.high, data.median, data.values], home);
  const score = new uPlot({
    ...time, height: 130, plugins: [shade(result.events), follow],
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1.1 * high, 1.3 * data.threshold)] } },
    axes: [axis({ size: 54, values: CLOCK }), axis()],
    series: [
      { label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
      { label: "score", stroke: colour("--ink"), width: 1, points: { show: false } },
      { label: "threshold", stroke: colour("--second"), width: 1, dash: [6, 4], points: { show: false } },
    ],
  }, [data.times, data.score, data.times.map(() => data.threshold)], home);
  plots.push(value, score);
  new ResizeObserver(() => {
    const wide = Math.max(home.clientWidth - 20, 280);
    for (const plot of plots) if (Math.abs(plot.width - wide) > 2) plot.setSize({ width: wide, height: plot.height });
  }).observe(home);
  return {
    show(event) {
      const [from, to] = [seconds(event.start), seconds(event.end)];
      const around = Math.max(3 * (to - from), 60 * result.series.interval_s);
      value.setScale("x", { min: Math.max(from - around, data.times[0]), max: Math.min(to + around, data.times.at(-1)) });
    },
    all() { value.setScale("x", { min: data.times[0], max: data.times.at(-1) }); },
  };
}

caseForm({
  async render(answer) {
    const place = document.querySelector("#result");
    const result = answer.result;
    let chart = null;
    const home = element("div", { class: "chart", role: "img", "aria-label": `Chart of ${result.series.column} with its expected band and ${result.events.length} events` });
    const jump = (index) => {
      chart?.show(result.events[index]);
      place.querySelectorAll(".events tbody tr").forEach((row, number) => row.classList.toggle("current", number === index));
      home.scrollIntoView({ block: "nearest" });
    };
    const whole = () => {
      chart?.all();
      place.querySelectorAll(".events tr.current").forEach((row) => row.classList.remove("current"));
    };
    place.append(
      ...eventList(result, jump),
      element("h2", {}, result.series.name),
      element("div", { class: "tools" }, columnChoice(result), element("button", { type: "button", onclick: whole }, "Whole series"), element("span", { class: "small" }, "Drag over the chart to zoom.")),
      home, ...facts(result), downloads(answer),
    );
    const response = await fetch(answer.files["series.json"]);
    if (!response.ok) throw new Error(`series.json could not be loaded (${response.status})`);
    chart = charts(result, await response.json(), home);
  },
});
