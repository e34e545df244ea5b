// The finance form: the summary, the list of events, then the series with its expected band, the events and the score.
import { caseForm, element, table, downloads } from "../shared/case.js";
import { openReview } from "../shared/review.js";
import { onShortcut, shortcutSwitch } from "../shared/shortcuts.js";
import { seriesReview } from "./review.js";
import { readRows } from "./view.js";
import { KEYS, LETTER_KEYS, decimals, drawChart, frame, keyboard, number, seconds, shortTime, viewButtons } from "./chart.js";

const form = document.querySelector("[data-case-form]");
let lastButton = null;   // the last button used, so that another column of the same series can be requested
form.addEventListener("click", (event) => {
  const button = event.target.closest("[data-sample], button[type=submit]");
  if (button) lastButton = button;
}, true);

const ALL_COLUMNS = "column";   // the series column's name if every column is a series
const MAX_UNSORTED = 5;     // longer lists of events can be sorted and filtered
const MAX_IN_TIME_ORDER = 20;   // longer lists begin with the strongest event
const DIRECTIONS = { above: "above the band", below: "below the band", inside: "within the band" };
const CHANNELS = {
  beyond_range: "a value outside the range of all earlier values", discord: "rows unlike any before", level: "a new level",
  rhythm: "values unlike those at this time in earlier periods", jump: "a sudden change",
  surprise: "a value off its forecast",
  joint: "columns do not move together as before",
  gap: "a gap in time", corporate_action: "a corporate action",
  high_volatility: "changes larger than usual", low_volatility: "changes smaller than usual",
};
/** Why it is an event. Stored cases from before results had a reason are described by their channel. */
function reasonText(event) {
  if (event.reason === undefined) return [CHANNELS[event.channel] ?? event.channel, event.columns?.join(", "), event.note].filter(Boolean).join(": ");
  return [event.reason, event.note && !event.reason.includes(event.note) ? event.note : null].filter(Boolean).join("; ");
}
/** Whether an event is of all columns: its value is that of one of them, and not of those that it names. */
const isJoint = (event) => event.channel === "joint";
const countText = (count, singular, plural = `${singular}s`) => `${count} ${count === 1 ? singular : plural}`;

function durationText(event) {
  const length = seconds(event.end) - seconds(event.start);
  if (length === 0) return "one row";
  if (length < 120) return `${Number(length.toPrecision(3))} s`;
  if (length < 5400) return `${Math.round(length / 60)} min`;
  return length < 172800 ? `${(length / 3600).toFixed(1)} h` : `${(length / 86400).toFixed(1)} d`;
}

/** An event in a sentence, for the summary and for screen readers: its start, as in the list, and the values at its peak. */
function describeEvent(event) {
  const channel = event.channel ? `; ${reasonText(event)}` : "";
  const what = isJoint(event) ? reasonText(event) : `${number(event.observed, decimals(event))}, ${DIRECTIONS[event.direction]} (${number(event.low)} to ${number(event.high)})${channel}`;
  const sameDay = event.peak.slice(0, 10) === event.start.slice(0, 10);
  const peak = event.peak === event.start ? "" : `, strongest at ${sameDay ? event.peak.slice(11).replace(/(\.\d+)?Z$/, "") : shortTime(event.peak)}`;
  return `${event.series ? `${event.series}, ` : ""}${shortTime(event.start)} UTC${peak}: ${what}; score ${event.score}`;
}

function summary(result) {
  const { events, parts } = result;
  const touched = parts ? parts.filter((part) => part.events).length : 0;
  const seriesText = parts ? ` in ${touched} of ${countText(parts.length, "series", "series")}` : "";
  const heading = element("h2", {}, events.length === 0 ? `No event${parts ? ` in ${parts.length} series` : ""}` : `${countText(events.length, "event")}${seriesText}`);
  if (!events.length) {
    return [heading, element("p", { class: "finding" }, `No row reached the threshold, ${result.threshold} at the start. Ask for more events to see weaker ones.`)];
  }
  const strongest = events.reduce((a, b) => (b.score > a.score ? b : a));
  return [heading, element("p", { class: "finding" }, `${events.length === 1 ? "" : "The strongest: "}${describeEvent(strongest)}.`), element("p", { class: "small rate" }, rate(result))];
}

/** The rate of events, in the two units in which a user can ask for them. */
function rate(result) {
  const { events, series } = result;
  const days = (seconds(series.end) - seconds(series.start)) / 86400;
  const digits = (value) => Number(value.toPrecision(2));
  const daily = days > 1 && !result.parts ? `, ${digits(events.length / days)} a day` : "";
  const often = digits((1000 * events.length) / series.rows);
  return `${often} ${often === 1 ? "event" : "events"} in 1,000 rows${daily}. Sort the list by strength, or run another analysis with fewer or more events.`;
}

/** The table of events; on a narrow screen each row is a card with labelled cells. */
function eventTable(events, showEvent, cell) {
  const columns = ["Start (UTC)", "Lasts", "Score", "Observed", "Expected (96 % band)", "Why", "Right?"];
  const rows = events.map((event, index) => [
    element("button", { type: "button", onclick: () => showEvent(index) }, shortTime(event.start)),
    durationText(event), event.score, isJoint(event) ? "–" : number(event.observed, decimals(event)),
    isJoint(event) ? "–" : `${number(event.expected)} (${number(event.low)} to ${number(event.high)})`, reasonText(event), cell(event),
  ]);
  const list = table(columns, rows, "Choose an event to see it in the chart");
  list.classList.add("events");
  for (const [index, row] of list.querySelectorAll("tbody tr").entries()) {
    row.dataset.place = index;
    [...row.cells].forEach((cell, column) => { cell.dataset.label = columns[column]; });
  }
  if (events.length <= MAX_UNSORTED) return list;
  const lines = [...list.querySelectorAll("tbody tr")];
  const body = list.querySelector("tbody");
  const sort = () => {
    const byStrength = order.value === "strength";
    const places = [...events.keys()].sort((a, b) => (byStrength ? events[b].score - events[a].score : a - b));
    body.replaceChildren(...places.map((index) => lines[index]));
  };
  const order = element("select", { onchange: sort }, element("option", { value: "time" }, "in order of time"), element("option", { value: "strength" }, "the strongest first"));
  if (events.length > MAX_IN_TIME_ORDER) {
    order.value = "strength";
    sort();
  }
  const minScore = element("input", { type: "search", inputMode: "decimal", size: 5, oninput: () => {
    const lowest = Number(minScore.value.replace(",", ".")) || 0;
    lines.forEach((line, index) => { line.hidden = events[index].score < lowest; });
  } });
  return element("div", {}, element("p", { class: "tools" }, element("label", {}, "Events ", order), element("label", {}, " with a score of at least ", minScore)), list);
}

/** The list of a file's series, those with the strongest events first, with a search field. */
function partList(result, chooseSeries) {
  const order = result.parts.map((part, position) => ({ part, position })).sort((a, b) => b.part.strongest - a.part.strongest);
  const buttons = new Map();
  const rows = order.map(({ part, position }) => {
    const button = element("button", { type: "button", onclick: () => chooseSeries(position) }, part.name);
    buttons.set(position, button);
    return [button, part.events, part.events ? part.strongest : "–", part.rows];
  });
  const list = table(["Series", "Events", "Strongest", "Rows"], rows, "Series, the strongest event first; choose one to see it");
  list.classList.add("parts");
  const lines = [...list.querySelectorAll("tbody tr")];
  const searchField = element("input", { type: "search", oninput: () => {
    const wanted = searchField.value.trim().toLowerCase();
    lines.forEach((line, index) => { line.hidden = !order[index].part.name.toLowerCase().includes(wanted); });
  } });
  return {
    order: order.map(({ position }) => position),
    nodes: [result.parts.length > 10 ? element("p", {}, element("label", {}, "Find a series ", searchField)) : null, list],
    markCurrent(position) {
      order.forEach((item, index) => {
        lines[index].classList.toggle("current", item.position === position);
        if (item.position === position) buttons.get(position).setAttribute("aria-current", "true");
        else buttons.get(item.position).removeAttribute("aria-current");
      });
      // Scroll the list, not the page.
      const line = lines[order.findIndex((item) => item.position === position)];
      list.scrollTop = Math.max(0, line.offsetTop - list.clientHeight / 2);
    },
  };
}

/** Scrolls the list, not the page, to a row that is out of view. */
function showRow(row) {
  const list = row.closest(".events");
  const head = row.closest("table").tHead.offsetHeight;   // stays at the top of the list
  list.scrollTop = Math.min(Math.max(list.scrollTop, row.offsetTop + row.offsetHeight - list.clientHeight), row.offsetTop - head);
}

function facts(result) {
  const series = result.series;
  const missing = series.missing ? `, ${series.missing} of them without a value` : "";
  const text = `${countText(series.rows, "row")}${missing}, from ${shortTime(series.start)} to ${shortTime(series.end)} UTC. Threshold ${result.threshold} at the start${series.threshold_at_the_end === undefined ? "" : ` and ${series.threshold_at_the_end} at the end`}; score: ${result.score}.`;
  return [element("p", { class: "facts" }, text), ...series.notes.map((note) => element("p", { class: "facts" }, `Note: ${note}.`)),
    // The notice at the top names the version that is live now.
    result.model ? element("p", { class: "facts" }, `Model: ${result.model}.`) : null].filter(Boolean);
}

/** The labelled windows of a synthetic series, in a collapsed section. */
function truthList(truth) {
  if (!truth.length) return null;
  const items = truth.map((item) => element("li", {}, `${item.kind ? `${item.kind}: ` : ""}${shortTime(item.start)} to ${shortTime(item.end)}`));
  return element("details", { class: "truth" },
    element("summary", {}, element("span", { class: "swatch" }), `Synthetic truth: ${countText(truth.length, "window")}, the strip along the top of the chart`),
    element("ul", {}, items));
}

function columnChoice(result) {
  const { columns, column, series_column } = result.series;
  if (series_column === ALL_COLUMNS) return null;
  // A case opened by its URL has no file with which to run another analysis.
  if (columns.length < 2 || lastButton === null) return element("span", {}, "Scored column: ", element("strong", {}, column));
  const choice = element("select", { onchange: () => {
    form.elements.value.value = choice.value;
    const button = lastButton;
    // The form's buttons are disabled until the result is drawn, and a disabled button ignores clicks.
    const ask = () => (button.disabled ? requestAnimationFrame(ask) : button.click());
    ask();
  } }, columns.map((name) => element("option", { value: name, selected: name === column }, name)));
  return element("label", {}, "Scored column ", choice);
}

caseForm({
  async render(answer) {
    const container = document.querySelector("#result");
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
    const statusLine = element("p", { class: "event-status", role: "status", "aria-live": "polite" });
    // Beside the chart, because the list of events is out of view there on most screens.
    const verdictPlace = element("span");
    const eventTools = element("span", { class: "view-buttons", hidden: true }, verdictPlace,
      element("button", { type: "button", onclick: () => stepEvents(-1) }, "Previous event"), element("button", { type: "button", onclick: () => stepEvents(1) }, "Next event"));
    const thinningNote = element("p", { class: "small thinning" });
    const name = element("h2", {});
    const list = element("div", {});
    const chartFrame = frame(hint.id);
    const stage = element("div", { class: "stage" }, element("div", { class: "event-line" }, statusLine, eventTools), chartFrame);

    /** The events in the order of the list, without the filtered ones. */
    const listed = () => [...list.querySelectorAll(".events tbody tr:not([hidden])")].map((row) => Number(row.dataset.place));
    const markCurrent = (index) => list.querySelectorAll(".events tbody tr").forEach((row) => {
      const here = Number(row.dataset.place) === index;
      row.classList.toggle("current", here);
      const button = row.querySelector("button");
      if (here) { button.setAttribute("aria-current", "true"); showRow(row); } else button.removeAttribute("aria-current");
    });
    const showEvent = (index) => {
      shown = index;
      chart?.show(events[index]);
      markCurrent(index);
      const order = listed();
      statusLine.textContent = `Event ${order.indexOf(index) + 1} of ${order.length}: ${describeEvent({ ...events[index], series: "" })}`;
      verdictPlace.replaceChildren(reviewed.shown(events[index]));
      eventTools.hidden = false;
      stage.scrollIntoView({ block: "nearest" });
    };
    const stepEvents = (by) => {
      const order = listed();
      const from = order.indexOf(shown);
      if (order.length) showEvent(order[from < 0 ? (by > 0 ? 0 : order.length - 1) : Math.min(Math.max(from + by, 0), order.length - 1)]);
    };
    const showAll = () => { shown = -1; chart?.all(); markCurrent(-1); eventTools.hidden = true; statusLine.textContent = "The whole series"; };
    const chooseSeries = (index) => {
      chosen = index;
      shown = -1;
      const part = parts[index];
      events = result.parts ? result.events.filter((event) => event.series === part.name) : result.events;
      name.textContent = result.parts ? `${part.name}: ${countText(events.length, "event")}` : part.name;
      reviewed = seriesReview(review, result, part, events, { chart: () => chart, times: () => drawings?.[index].times ?? [] });
      reviewPlace.replaceChildren(reviewed.node);
      list.replaceChildren(...(events.length ? [eventTable(events, showEvent, reviewed.cell)] : []));
      reviewed.update();
      statusLine.textContent = "";
      eventTools.hidden = true;
      chartFrame.setAttribute("aria-label", `Chart of ${result.parts ? `${part.name}, ` : ""}${result.series.column} with its expected band and ${countText(events.length, "event")}`);
      seriesList?.markCurrent(index);
      draw();
    };
    /** Draws the chart of the chosen series. The list stays unchanged: the user may have sorted it before the data arrived. */
    const draw = () => {
      if (!drawings) return;
      chart?.destroy();
      chartFrame.replaceChildren();
      thinningNote.textContent = "";
      const part = parts[chosen];
      const before = parts.slice(0, chosen).reduce((sum, item) => sum + item.rows, 0);
      const load = answer.files["rows.bin"] ? async () => readRows(await everyRow(), before, part.rows) : null;
      chart = drawChart(chartFrame, drawings[chosen], { events, truth, missed: reviewed.missed, interval: part.interval_s || 1, total: part.rows, load, onDraw: showThinning });
      if (shown >= 0) chart.show(events[shown]);
    };
    let loading = null;
    const everyRow = () => {
      loading ??= fetch(answer.files["rows.bin"]).then((response) => response.arrayBuffer());
      return loading;
    };
    const showThinning = (every) => {
      thinningNote.textContent = every > 1 ? `Of every ${every} rows, the one with the highest score is drawn; zoom in to see every row.` : "Every row in view is drawn.";
    };
    const seriesList = result.parts ? partList(result, chooseSeries) : null;
    const moveSeries = (by) => chooseSeries(seriesList.order.at((seriesList.order.indexOf(chosen) + by) % seriesList.order.length));
    const decide = (verdict) => () => reviewed.decide(events[shown], verdict);
    keyboard(chartFrame, () => chart, { step: stepEvents, whole: showAll });
    const letters = { n: () => stepEvents(1), p: () => stepEvents(-1), a: decide("accepted"), r: decide("rejected") };
    onShortcut(chartFrame, ({ key }) => { letters[key.toLowerCase()]?.(); return key.toLowerCase() in letters; });
    const tools = element("div", { class: "tools" }, columnChoice(result),
      seriesList && parts.length > 1 ? [element("button", { type: "button", onclick: () => moveSeries(-1) }, "Previous series"), element("button", { type: "button", onclick: () => moveSeries(1) }, "Next series")] : null,
      element("button", { type: "button", onclick: showAll }, "Whole series"), viewButtons(() => chart));
    container.append(...summary(result), ...(seriesList?.nodes ?? []).filter(Boolean),
      // For one series its events come first; for several, each series' events are below its name.
      ...(seriesList ? [name, tools, list] : [list, name, tools]),
      stage, thinningNote, hint, element("p", { class: "small keys" }, LETTER_KEYS, shortcutSwitch()), reviewPlace, review.node, ...[truthList(truth)].filter(Boolean), ...facts(result), downloads(answer));
    chooseSeries(seriesList ? seriesList.order[0] : 0);
    const response = await fetch(answer.files["series.json"]);
    if (!response.ok) throw new Error(`series.json could not be loaded (${response.status})`);
    const drawing = await response.json();
    drawings = drawing.parts ?? [drawing];
    draw();
  },
});
