// Nodules that a reader adds to the findings, at the cross or at the line that the reader measured.
import { element, replaceItems, withhold } from "../shared/case.js";
import { position, sliceName, statedGeometry } from "./volume.js";

const MIN_MM = 0.5;

/** The list of missed nodules in `review`, with the controls to add one. `viewer()` returns the slice viewer, once there is one. */
export function missedList(review, { volume, viewer }) {
  const whole = statedGeometry(volume);
  const rows = element("ol", { class: "findings missed", "aria-label": "Missed nodules" });
  const diameter = element("input", { type: "number", min: MIN_MM, max: 300, step: 0.5, value: 6, "aria-label": "Diameter of a missed nodule in mm" });
  const button = element("button", { type: "button", title: "Key M", onclick: () => add() }, "Add");
  const hint = element("span", {});
  const adding = element("p", { class: "small adding" }, "Missed a nodule? ", hint, diameter, " mm ", button);

  function add() {
    const marked = viewer()?.pointed();
    const size = Number(diameter.value);
    if (!marked || !(size >= MIN_MM && size <= 300)) return;
    review.add({ centre_lps_mm: marked.lps.map((v) => Number(v.toFixed(2))), diameter_mm: size });
    viewer().clear();
  }

  const sliceOf = (nodule) => sliceName(volume, Math.min(Math.max(Math.round(whole.toIndex(nodule.centre_lps_mm)[2]), 0), volume.size_ijk[2] - 1));

  function row(nodule) {
    return element("li", {},
      element("button", { type: "button", class: "remove", title: "Remove", "aria-label": `Remove the missed nodule in ${sliceOf(nodule)}`, onclick: () => review.remove(nodule) }, "−"),
      lookButton(nodule, {}));
  }

  /** A nodule that another reader added: it can be looked at, but is not part of this reader's review. */
  function othersRow({ missed, reader }) {
    return element("li", { class: "left-out" }, element("span", { class: "remove" }), lookButton(missed, { class: "weak" }), element("span", { class: "others" }, `Added by ${reader}`));
  }

  function lookButton(nodule, attributes) {
    return element("button", { type: "button", ...attributes, onclick: () => viewer()?.look(nodule.centre_lps_mm) },
      element("span", { class: "rank" }, "+"), element("span", { class: "size" }, `${nodule.diameter_mm.toFixed(1)} mm`), element("span", { class: "score" }, "missed"),
      element("span", { class: "where" }, `${sliceOf(nodule)} · `, element("span", { class: "nobreak" }, position(nodule.centre_lps_mm))));
  }

  let shownState = null;
  let lastMeasured = null;
  function update() {
    const others = review.othersMissed();
    const state = JSON.stringify([review.state.missed, others]);
    if (state !== shownState) {
      shownState = state;
      replaceItems(rows, [...review.state.missed.map(row), ...others.map(othersRow)], diameter);
      rows.hidden = !rows.childElementCount;
    }
    const marked = viewer()?.pointed() ?? null;
    withhold(button, "disabled", !marked, diameter);
    hint.textContent = marked ? "" : "Click it in the slice (or Shift + arrow keys), or drag across it: ";
    // The length of a line across the nodule is its diameter.
    if (marked?.diameter_mm && marked.diameter_mm !== lastMeasured) diameter.value = marked.diameter_mm.toFixed(1);
    lastMeasured = marked?.diameter_mm ?? null;
  }
  return { node: element("div", {}, rows, adding), add, update };
}
