// The finance form: what was found, the list of events, then the series with its expected band, the events, the score.
import { caseForm, element, table, downloads } from "../shared/case.js";
import { openReview } from "../shared/review.js";
import { seriesReview } from "./review.js";
import { readRows } from "./view.js";
import { KEYS, decimals, drawChart, frame, keyboard, number, seconds, shortTime } from "./chart.js";

const form = document.querySelector("[data-case-form]");
let last = null;   // the button that asked last, so that another column can be asked of the same series
form.addEventListener("click", (event) => {
  const button = event.target.closest("[data-sample], button[type=submit]");
  if (button) last = button;
}, true);

const ALL_COLUMNS = "column";   // the name of the series' column where every column is a series
const FEW = 5;     // more events than these can be sorted and filtered
const MANY = 20;   // more than these are listed with the strongest first
const WHERE = { above: "above the band", below: "below the band", inside: "within the band" };
const WHAT = {
  beyond_range: "a value beyond all before", discord: "a course unlike any before", level: "a level not had before",
  rhythm: "another course than at this time in other rhythms", jump: "a sudden change",
  surprise: "a value off its forecast",
  joint: "columns that do not move together as they did",
  gap: "a gap in time", corporate_action: "a corporate action",
  high_volatility: "changes larger than usual", low_volatility: "changes smaller than usual",
};
/** Why it is an event. A case that was kept before results had a reason is told by the name of what was unusual. */
function what(event) {
  if (event.reason === undefined) return [WHAT[event.channel] ?? event.channel, event.columns?.join(", "), event.note].filter(Boolean).join(": ");
  return [event.reason, event.note && !event.reason.includes(event.note) ? event.note : null].filter(Boolean).join("; ");
}
const many = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

function lasting(event) {
  const length = seconds(event.end) - seconds(event.start);
  if (length === 0) return "one row";
  if (length < 120) return `${Number(length.toPrecision(3))} s`;
  if (length < 5400) return `${Math.round(length / 60)} min`;
  return length < 172800 ? `${(length / 3600).toFixed(1)} h` : `${(length / 86400).toFixed(1)} d`;
}

/** An event in a sentence, for the finding and for who listens: called by its start, as in the list; the values are of its peak. */
function told(event) {
  const channel = event.channel ? `; ${what(event)}` : "";
  const sameDay = event.peak.slice(0, 10) === event.start.slice(0, 10);
  const peak = event.peak === event.start ? "" : `, strongest at ${sameDay ? event.peak.slice(11).replace(/(\.\d+)?Z$/, "") : shortTime(event.peak)}`;
  return `${event.series ? `${event.series}, ` : ""}${shortTime(event.start)} UTC${peak}: ${number(event.observed, decimals(event))}, ${WHERE[event.direction]} (${number(event.low)} to ${number(event.high)})${channel}; score ${event.score}`;
}

function finding(result) {
  const { events, parts } = result;
  const touched = parts ? parts.filter((part) => part.events).length : 0;
  const place = parts ? ` in ${touched} of ${many(parts.length, "series", "series")}` : "";
  const heading = element("h2", {}, events.length === 0 ? `No event${parts ? ` in ${parts.length} series` : ""}` : `${many(events.length, "event")}${place}`);
  if (!events.length) {
    return [heading, element("p", { class: "finding" }, `No row reached the threshold, ${result.threshold} at the start. A larger number of events shows weaker ones.`)];
  }
  const strongest = events.reduce((a, b) => (b.score > a.score ? b : a));
  return [heading, element("p", { class: "finding" }, `${events.length === 1 ? "" : "The strongest: "}${told(strongest)}.`), element("p", { class: "small rate" }, rate(result))];
}

/** How often there are events, in the two units in which they are asked for. */
function rate(result) {
  const { events, series } = result;
  const days = (seconds(series.end) - seconds(series.start)) / 86400;
  const digits = (value) => Number(value.toPrecision(2));
  const daily = days > 1 && !result.parts ? `, ${digits(events.length / days)} a day` : "";
  const often = digits((1000 * events.length) / series.rows);
  return `${often} ${often === 1 ? "event" : "events"} in 1,000 rows${daily}. List the strongest first, or ask for fewer or more in another analysis.`;
}

/** The table of events; on a narrow screen each row is a card, whose cells say what they are. */
function eventTable(events, jump, cell) {
  const columns = ["Start (UTC)", "Lasts", "Score", "Observed", "Expected (96 % band)", "Why", "Right?"];
  const rows = events.map((event, index) => [
    element("button", { type: "button", onclick: () => jump(index) }, shortTime(event.start)),
    lasting(event), event.score, number(event.observed, decimals(event)),
    `${number(event.expected)} (${number(event.low)} to ${number(event.high)})`, what(event), cell(event),
  ]);
  const list = table(columns, rows, "Choose an event to see it in the chart");
  list.classList.add("events");
  for (const [place, row] of list.querySelectorAll("tbody tr").entries()) {
    row.dataset.place = place;
    [...row.cells].forEach((cell, column) => { cell.dataset.label = columns[column]; });
  }
  if (events.length <= FEW) return list;
  const lines = [...list.querySelectorAll("tbody tr")];
  const body = list.querySelector("tbody");
  const sort = () => {
    const byStrength = order.value === "strength";
    const places = [...events.keys()].sort((a, b) => (byStrength ? events[b].score - events[a].score : a - b));
    body.replaceChildren(...places.map((place) => lines[place]));
  };
  const order = element("select", { onchange: sort }, element("option", { value: "time" }, "in order of time"), element("option", { value: "strength" }, "the strongest first"));
  if (events.length > MANY) {
    order.value = "strength";
    sort();
  }
  const least = element("input", { type: "search", inputMode: "decimal", size: 5, oninput: () => {
    const lowest = Number(least.value.replace(",", ".")) || 0;
    lines.forEach((line, place) => { line.hidden = events[place].score < lowest; });
  } });
  return element("div", {}, element("p", { class: "tools" }, element("label", {}, "Events ", order), element("label", {}, " with a score of at least ", least)), list);
}

/** The list of a file's series, those with the strongest events first; narrowed by typing. */
function partList(result, choose) {
  const order = result.parts.map((part, place) => ({ part, place })).sort((a, b) => b.part.strongest - a.part.strongest);
  const buttons = new Map();
  const rows = order.map(({ part, place }) => {
    const button = element("button", { type: "button", onclick: () => choose(place) }, part.name);
    buttons.set(place, button);
    return [button, part.events, part.events ? part.strongest : "–", part.rows];
  });
  const list = table(["Series", "Events", "Strongest", "Rows"], rows, "Series, the strongest event first; choose one to see it");
  list.classList.add("parts");
  const lines = [...list.querySelectorAll("tbody tr")];
  const narrow = element("input", { type: "search", oninput: () => {
    const wanted = narrow.value.trim().toLowerCase();
    lines.forEach((line, index) => { line.hidden = !order[index].part.name.toLowerCase().includes(wanted); });
  } });
  return {
    order: order.map(({ place }) => place),
    nodes: [result.parts.length > 10 ? element("p", {}, element("label", {}, "Find a series ", narrow)) : null, list],
    mark(place) {
      order.forEach((one, index) => {
        lines[index].classList.toggle("current", one.place === place);
        if (one.place === place) buttons.get(place).setAttribute("aria-current", "true");
        else buttons.get(one.place).removeAttribute("aria-current");
      });
      // The list's own frame scrolls, not the page.
      const line = lines[order.findIndex((one) => one.place === place)];
      list.scrollTop = Math.max(0, line.offsetTop - list.clientHeight / 2);
    },
  };
}

function facts(result) {
  const series = result.series;
  const missing = series.missing ? `, ${series.missing} of them without a value` : "";
  const text = `${many(series.rows, "row")}${missing}, from ${shortTime(series.start)} to ${shortTime(series.end)} UTC. Threshold ${result.threshold} at the start${series.threshold_at_the_end === undefined ? "" : ` and ${series.threshold_at_the_end} at the end`}; score: ${result.score}.`;
  return [element("p", { class: "facts" }, text), ...series.notes.map((note) => element("p", { class: "facts" }, `Note: ${note}.`))];
}

/** What is known of a synthetic series, said in a line that opens. */
function truthList(truth) {
  if (!truth.length) return null;
  const items = truth.map((one) => element("li", {}, `${one.kind ? `${one.kind}: ` : ""}${shortTime(one.start)} to ${shortTime(one.end)}`));
  return element("details", { class: "truth" },
    element("summary", {}, element("span", { class: "swatch" }), `Synthetic truth: ${many(truth.length, "window")}, the strip along the top of the chart`),
    element("ul", {}, items));
}

function columnChoice(result) {
  const { columns, column, series_column } = result.series;
  if (series_column === ALL_COLUMNS) return null;
  // A case that was opened by its address has no file at hand to ask again.
  if (columns.length < 2 || last === null) return element("span", {}, "Scored column: ", element("strong", {}, column));
  const choice = element("select", { onchange: () => {
    form.elements.value.value = choice.value;
    const button = last;
    // The form's buttons rest until the result has been drawn, and a resting button takes no click.
    const ask = () => (button.disabled ? requestAnimationFrame(ask) : button.click());
    ask();
  } }, columns.map((name) => element("option", { value: name, selected: name === column }, name)));
  return element("label", {}, "Scored column ", choice);
}

caseForm({
  async render(answer) {
    const place = document.querySelector("#result");
    const { result } = answer;
    const parts = result.parts ?? [{ ...result.series, name: result.series.name }];
    const truth = result.synthetic_truth ?? [];
    let drawings = null;
    let chart = null;
    let chosen = -1;
    let events = [];
    let shown = -1;
    let reviewed = null;   // the review of the series that is shown
    const review = openReview(answer, { changed: () => reviewed?.update() });
    const reviewPlace = element("div", {});

    const hint = element("p", { class: "small", id: "chart-hint" }, "Drag over the chart to zoom. ", element("span", { class: "keys" }, KEYS));
    const said = element("p", { class: "said", role: "status", "aria-live": "polite" });
    const thinning = element("p", { class: "small thinning" });
    const name = element("h2", {});
    const list = element("div", {});
    const home = frame(hint.id);

    /** The events as they are listed: in their order there, without those that are left out. */
    const listed = () => [...list.querySelectorAll(".events tbody tr:not([hidden])")].map((row) => Number(row.dataset.place));
    const mark = (index) => list.querySelectorAll(".events tbody tr").forEach((row) => {
      const here = Number(row.dataset.place) === index;
      row.classList.toggle("current", here);
      const button = row.querySelector("button");
      if (here) { button.setAttribute("aria-current", "true"); row.scrollIntoView({ block: "nearest" }); } else button.removeAttribute("aria-current");
    });
    const jump = (index) => {
      shown = index;
      chart?.show(events[index]);
      mark(index);
      const order = listed();
      said.textContent = `Event ${order.indexOf(index) + 1} of ${order.length}: ${told({ ...events[index], series: "" })}`;
      home.scrollIntoView({ block: "nearest" });
    };
    const step = (by) => {
      const order = listed();
      const from = order.indexOf(shown);
      if (order.length) jump(order[from < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(from + by, 0), order.length - 1)]);
    };
    const whole = () => { shown = -1; chart?.all(); mark(-1); said.textContent = "The whole series"; };
    const choose = (index) => {
      chosen = index;
      shown = -1;
      const part = parts[index];
      events = result.parts ? result.events.filter((event) => event.series === part.name) : result.events;
      name.textContent = result.parts ? `${part.name}: ${many(events.length, "event")}` : part.name;
      reviewed = seriesReview(review, result, part, events, { chart: () => chart, times: () => drawings?.[index].times ?? [] });
      reviewPlace.replaceChildren(reviewed.node);
      list.replaceChildren(...(events.length ? [eventTable(events, jump, reviewed.cell)] : []));
      reviewed.update();
      said.textContent = "";
      home.setAttribute("aria-label", `Chart of ${result.parts ? `${part.name}, ` : ""}${result.series.column} with its expected band and ${many(events.length, "event")}`);
      several?.mark(index);
      draw();
    };
    /** The chart of the chosen series. The list stays as it is: it may have been sorted before there was anything to draw. */
    const draw = () => {
      if (!drawings) return;
      chart?.destroy();
      home.replaceChildren();
      thinning.textContent = "";
      const part = parts[chosen];
      const before = parts.slice(0, chosen).reduce((sum, one) => sum + one.rows, 0);
      const load = answer.files["rows.bin"] ? async () => readRows(await everyRow(), before, part.rows) : null;
      chart = drawChart(home, drawings[chosen], { events, truth, missed: reviewed.missed, interval: part.interval_s || 1, total: part.rows, load, drawn });
      if (shown >= 0) chart.show(events[shown]);
    };
    let loading = null;
    const everyRow = () => {
      loading ??= fetch(answer.files["rows.bin"]).then((response) => response.arrayBuffer());
      return loading;
    };
    const drawn = (every) => {
      thinning.textContent = every > 1 ? `Of every ${every} rows the one with the highest score is drawn; zoom in to see every row.` : "Every row in view is drawn.";
    };
    const several = result.parts ? partList(result, choose) : null;
    const turn = (by) => choose(several.order.at((several.order.indexOf(chosen) + by) % several.order.length));
    const decide = (verdict) => () => reviewed.decide(events[shown], verdict);
    keyboard(home, () => chart, { step, whole, more: { a: decide("accepted"), r: decide("rejected") } });
    const tools = element("div", { class: "tools" }, columnChoice(result),
      several && parts.length > 1 ? [element("button", { type: "button", onclick: () => turn(-1) }, "Previous series"), element("button", { type: "button", onclick: () => turn(1) }, "Next series")] : null,
      element("button", { type: "button", onclick: whole }, "Whole series"));
    place.append(...finding(result), ...(several?.nodes ?? []).filter(Boolean),
      // One series: its events come first; of several, each one's stand under its name.
      ...(several ? [name, tools, list] : [list, name, tools]),
      said, home, thinning, hint, reviewPlace, review.node, ...[truthList(truth)].filter(Boolean), ...facts(result), downloads(answer));
    choose(several ? several.order[0] : 0);
    const response = await fetch(answer.files["series.json"]);
    if (!response.ok) throw new Error(`series.json could not be loaded (${response.status})`);
    const drawing = await response.json();
    drawings = drawing.parts ?? [drawing];
    draw();
  },
});
