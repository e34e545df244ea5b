// Filters the displayed boxes by class and score. Nothing is recomputed, and the files keep every box.
import { element } from "../shared/case.js";

/** The choices shared by all frames of a case: whether labels are drawn (null: the frame's default), and the filter. */
export const freshChoices = () => ({ truth: null, minScore: 0, hidden: new Set() });

export const passes = (box, { minScore, hidden }) => !hidden.has(box.class) && (box.score === null || box.score >= minScore);

/** The collapsible filter controls for the boxes of a frame; null if there are fewer than two boxes and no filter is set. */
export function filterControls(boxes, choices, changed) {
  if (boxes.length < 2 && !choices.minScore && !choices.hidden.size) return null;
  const title = element("summary", {});
  const updateTitle = () => {
    const shown = boxes.filter((box) => passes(box, choices)).length;
    title.textContent = choices.minScore || choices.hidden.size ? `Filter: ${shown} of ${boxes.length} boxes are shown` : "Filter";
  };
  const apply = () => { updateTitle(); changed(); };
  const minScore = element("input", { type: "number", min: 0, max: 1, step: 0.05, value: choices.minScore || "", placeholder: "0", oninput: () => { choices.minScore = Number(minScore.value) || 0; apply(); } });
  const classes = [...new Set([...boxes.map((box) => box.class), ...choices.hidden])].sort();
  const classCheckbox = (name) => {
    const checkbox = element("input", { type: "checkbox", checked: !choices.hidden.has(name), onchange: () => {
      if (checkbox.checked) choices.hidden.delete(name); else choices.hidden.add(name);
      apply();
    } });
    return element("label", {}, checkbox, ` ${name.replaceAll("_", " ")}`);
  };
  updateTitle();
  return element("details", { class: "filter", open: Boolean(choices.minScore || choices.hidden.size) }, title,
    element("div", { class: "controls" }, element("label", {}, "Score of at least ", minScore), ...classes.map(classCheckbox)));
}
