// Reviewing a series: verdicts on its events, and missed events, whose times can be taken from the chart's view.
import { element, replaceItems, withhold } from "../shared/case.js";
import { verdictBoxes } from "../shared/review.js";
import { seconds, shortTime } from "./chart.js";

/** A time in the format of events, if it is written as on the page: 2024-08-05 13:31; a day begins at midnight. */
function eventTime(text) {
  const [, day, minute, second] = text.trim().match(/^(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d(?:\.\d+)?)?)?Z?$/) ?? [];
  return day ? `${day}T${minute ?? "00:00"}${second ?? ":00"}Z` : text.trim();
}

/**
 * The review of the series `part` of a result with its own `events`. `chart()` returns its chart once it is drawn,
 * `times()` its rows' times in seconds. In the result, `cell(event)` is the element with the verdict on an event, and
 * `shown(event)` a second one for the event in the chart; `missed()` returns the missed events that were added.
 */
export function seriesReview(review, result, part, events, { chart, times }) {
  const number = (event) => result.events.indexOf(event) + 1;
  const verdicts = new Map(events.map((event) => [event, verdictBoxes(review, number(event), `the event of ${shortTime(event.start)}`)]));
  let shownVerdict = null;   // the verdict beside the chart
  const field = (label) => element("input", { type: "text", size: 24, maxlength: 40, placeholder: part.start, "aria-label": label, oninput: () => offer() });
  const [start, end] = [field("Start of the missed event"), field("End of the missed event")];
  const add = element("button", { type: "button", disabled: true, onclick: () => addMissed() }, "Add");
  const acceptOthersButton = element("button", { type: "button", title: "Accept each event of this series that has no verdict", onclick: () => review.acceptOthers(events.map(number)) }, "Accept the others");
  const missedList = element("ul", { "aria-label": "Missed events" });
  const isOwn = (event) => !result.parts || event.series === part.name;
  const missed = () => review.state.missed.filter(isOwn);
  const summary = element("summary", {}, "Missed an event?");
  const node = element("div", { class: "series-review" }, acceptOthersButton, missedList,
    element("details", {}, summary,
      element("p", { class: "small" }, "Zoom in on it, or enter its times, in UTC as in the placeholders."),
      element("p", { class: "tools" }, element("button", { type: "button", onclick: () => useView() }, "Use the times in view"), start, " to ", end, add)));

  const offer = () => withhold(add, "disabled", !(start.value.trim() && end.value.trim()), start);

  /** Fills in the times of the first and the last row in view. */
  function useView() {
    const [from, to] = chart()?.view() ?? [];
    const visibleTimes = times().filter((time) => time >= from && time <= to);
    if (!visibleTimes.length) return;
    const timeText = (time, edge) => (Math.abs(time - seconds(edge)) < 0.001 ? edge : new Date(time * 1000).toISOString());
    [start.value, end.value] = [timeText(visibleTimes[0], part.start), timeText(visibleTimes.at(-1), part.end)];
    offer();
  }

  function addMissed() {
    review.add({ ...(result.parts ? { series: part.name } : {}), start: eventTime(start.value), end: eventTime(end.value) });
    start.value = end.value = "";
    offer();
  }

  function update() {
    for (const boxes of verdicts.values()) boxes.update();
    shownVerdict?.update();
    withhold(acceptOthersButton, "hidden", !events.some((event) => review.verdict(number(event)) === null), summary);
    replaceItems(missedList, missed().map((event) => element("li", {},
      element("button", { type: "button", onclick: () => review.remove(event), "aria-label": `Remove the missed event of ${shortTime(event.start)}` }, "−"),
      ` missed: ${shortTime(event.start)} to ${shortTime(event.end)}`)), summary);
    chart()?.redraw();
  }
  return {
    node, update, missed,
    cell: (event) => verdicts.get(event).node,
    shown(event) {
      shownVerdict = verdictBoxes(review, number(event), "the event in the chart");
      shownVerdict.update();
      return shownVerdict.node;
    },
    /** Accepts or rejects an event; the same verdict again makes it undecided. */
    decide(event, verdict) { if (event) review.decide(number(event), review.verdict(number(event)) === verdict ? null : verdict); },
  };
}
