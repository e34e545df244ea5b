// Reviewing a series: verdicts on its events, and events that were missed, taken from what the chart shows.
import { element } from "../shared/case.js";
import { verdictBoxes } from "../shared/review.js";
import { seconds, shortTime } from "./chart.js";

/**
 * The review of the series `part` of a result, whose `events` are those of its own; `chart()` is its chart, once it is
 * drawn, and `times` its rows in seconds. `cell(event)` holds the verdict on an event, `missed()` gives what was added.
 */
export function seriesReview(review, result, part, events, { chart, times }) {
  const number = (event) => result.events.indexOf(event) + 1;
  const verdicts = new Map(events.map((event) => [event, verdictBoxes(review, number(event), `the event of ${shortTime(event.start)}`)]));
  const field = (label) => element("input", { type: "text", size: 24, maxlength: 40, placeholder: part.start, "aria-label": label, oninput: () => offer() });
  const [start, end] = [field("Start of the missed event"), field("End of the missed event")];
  const add = element("button", { type: "button", disabled: true, onclick: () => put() }, "Add");
  const others = element("button", { type: "button", title: "Each event of this series without a verdict", onclick: () => review.acceptOthers(events.map(number)) }, "Accept the others");
  const listed = element("ul", { "aria-label": "Missed events" });
  const mine = (one) => !result.parts || one.series === part.name;
  const missed = () => review.state.missed.filter(mine);
  const node = element("div", { class: "series-review" }, others, listed,
    element("details", {}, element("summary", {}, "Missed an event?"),
      element("p", { class: "small" }, "Zoom in to it, or write when it was, UTC as in the placeholders."),
      element("p", { class: "tools" }, element("button", { type: "button", onclick: () => take() }, "Take what is in view"), start, " to ", end, add)));

  const offer = () => { add.disabled = !(start.value.trim() && end.value.trim()); };

  /** The first and the last row in view. */
  function take() {
    const [from, to] = chart()?.view() ?? [];
    const seen = times().filter((time) => time >= from && time <= to);
    if (!seen.length) return;
    const told = (time, edge) => (Math.abs(time - seconds(edge)) < 0.001 ? edge : new Date(time * 1000).toISOString());
    [start.value, end.value] = [told(seen[0], part.start), told(seen.at(-1), part.end)];
    offer();
  }

  function put() {
    review.add({ ...(result.parts ? { series: part.name } : {}), start: start.value.trim(), end: end.value.trim() });
    start.value = end.value = "";
    offer();
  }

  function update() {
    for (const one of verdicts.values()) one.update();
    others.hidden = !events.some((event) => review.verdict(number(event)) === null);
    listed.replaceChildren(...missed().map((one) => element("li", {},
      element("button", { type: "button", onclick: () => review.remove(one), "aria-label": `Remove the missed event of ${shortTime(one.start)}` }, "−"),
      ` missed: ${shortTime(one.start)} to ${shortTime(one.end)}`)));
    chart()?.redraw();
  }
  return {
    node, update, missed,
    cell: (event) => verdicts.get(event).node,
    /** Accepts or rejects an event, or leaves it undecided once more. */
    decide(event, verdict) { if (event) review.decide(number(event), review.verdict(number(event)) === verdict ? null : verdict); },
  };
}
