// Nodules that a reader adds to those that were found: where the cross is, or along the line that was measured.
import { element } from "../shared/case.js";
import { position, sliceName, statedGeometry } from "./volume.js";

const MIN_MM = 0.5;

/** The list of missed nodules in `review`, and what adds one. `viewer()` is the viewer of the slices, once there is one. */
export function missedList(review, { volume, viewer }) {
  const whole = statedGeometry(volume);
  const rows = element("ol", { class: "findings missed", "aria-label": "Missed nodules" });
  const diameter = element("input", { type: "number", min: MIN_MM, max: 300, step: 0.5, value: 6, "aria-label": "Diameter of a missed nodule in mm" });
  const button = element("button", { type: "button", title: "Key M", onclick: () => add() }, "Add");
  const where = element("span", {});
  const adding = element("p", { class: "small adding" }, "Missed a nodule? ", where, diameter, " mm ", button);

  function add() {
    const pointed = viewer()?.pointed();
    const size = Number(diameter.value);
    if (!pointed || !(size >= MIN_MM && size <= 300)) return;
    review.add({ centre_lps_mm: pointed.lps.map((v) => Number(v.toFixed(2))), diameter_mm: size });
    viewer().clear();
  }

  const sliceOf = (one) => sliceName(volume, Math.min(Math.max(Math.round(whole.toIndex(one.centre_lps_mm)[2]), 0), volume.size_ijk[2] - 1));

  function row(one) {
    return element("li", {},
      element("button", { type: "button", class: "remove", title: "Remove", "aria-label": `Remove the missed nodule in ${sliceOf(one)}`, onclick: () => review.remove(one) }, "−"),
      place(one, {}));
  }

  /** What another reader added: to look at, and no part of this reader's review. */
  function othersRow({ missed, reader }) {
    return element("li", { class: "left-out" }, element("span", { class: "remove" }), place(missed, { class: "weak" }), element("span", { class: "others" }, `Added by ${reader}`));
  }

  function place(one, attributes) {
    return element("button", { type: "button", ...attributes, onclick: () => viewer()?.look(one.centre_lps_mm) },
      element("span", { class: "rank" }, "+"), element("span", { class: "size" }, `${one.diameter_mm.toFixed(1)} mm`), element("span", { class: "score" }, "missed"),
      element("span", { class: "where" }, `${sliceOf(one)} · `, element("span", { class: "nobreak" }, position(one.centre_lps_mm))));
  }

  let shown = null;
  let measured = null;
  function update() {
    const others = review.othersMissed();
    const now = JSON.stringify([review.state.missed, others]);
    if (now !== shown) {
      shown = now;
      rows.replaceChildren(...review.state.missed.map(row), ...others.map(othersRow));
      rows.hidden = !rows.childElementCount;
    }
    const pointed = viewer()?.pointed() ?? null;
    button.disabled = !pointed;
    where.textContent = pointed ? "" : "Click it in the slice, or drag across it: ";
    // A line that was drawn across it is its diameter.
    if (pointed?.diameter_mm && pointed.diameter_mm !== measured) diameter.value = pointed.diameter_mm.toFixed(1);
    measured = pointed?.diameter_mm ?? null;
  }
  return { node: element("div", {}, rows, adding), add, update };
}
