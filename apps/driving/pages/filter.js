// Which boxes are looked at: by class and by score. Nothing is computed anew, and the files keep every box.
import { element } from "../shared/case.js";

/** What is chosen once for all frames of a case: whether labels are drawn (null: as the frame has it), and the filter. */
export const freshChoices = () => ({ truth: null, least: 0, hidden: new Set() });

export const passes = (box, { least, hidden }) => !hidden.has(box.class) && (box.score === null || box.score >= least);

/** The controls of the filter for the boxes of a frame, which open on a click; null for less than two boxes. */
export function filterControls(boxes, choices, changed) {
  if (boxes.length < 2 && !choices.least && !choices.hidden.size) return null;
  const title = element("summary", {});
  const say = () => {
    const shown = boxes.filter((box) => passes(box, choices)).length;
    title.textContent = choices.least || choices.hidden.size ? `Filter: ${shown} of ${boxes.length} boxes are shown` : "Filter";
  };
  const act = () => { say(); changed(); };
  const least = element("input", { type: "number", min: 0, max: 1, step: 0.05, value: choices.least || "", placeholder: "0", oninput: () => { choices.least = Number(least.value) || 0; act(); } });
  const classes = [...new Set([...boxes.map((box) => box.class), ...choices.hidden])].sort();
  const boxOf = (name) => {
    const tick = element("input", { type: "checkbox", checked: !choices.hidden.has(name), onchange: () => {
      if (tick.checked) choices.hidden.delete(name); else choices.hidden.add(name);
      act();
    } });
    return element("label", {}, tick, ` ${name.replaceAll("_", " ")}`);
  };
  say();
  return element("details", { class: "filter", open: Boolean(choices.least || choices.hidden.size) }, title,
    element("div", { class: "controls" }, element("label", {}, "Score of at least ", least), ...classes.map(boxOf)));
}
