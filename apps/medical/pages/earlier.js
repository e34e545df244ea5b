// Compares the case with that of an earlier scan of the same patient: the changes of the findings, and both scans' slices.
import { element } from "../shared/case.js";
import { ask, isolated } from "../shared/review.js";
import { label } from "./report.js";
import { sliceViewer } from "./viewer.js";
import { loadVolume, sliceName, statedGeometry } from "./volume.js";

/** The section in which the user chooses an earlier case and compares both. `slices()` returns the volume of this case, once it is loaded. */
export function earlierScan(answer, { slices }) {
  const cases = element("select", { "aria-label": "The case of the earlier scan" });
  const days = element("input", { type: "number", min: 1, max: 36525, step: 1, placeholder: "days", "aria-label": "Days between the scans" });
  const button = element("button", { type: "button", onclick: () => compare() }, "Compare");
  const errorNode = element("p", { class: "error", role: "alert", hidden: true });
  const status = element("p", { role: "status" });
  const resultNode = element("div");
  const node = element("details", { class: "earlier" },
    element("summary", {}, "Compare with an earlier scan of this patient"),
    element("p", { class: "small" }, element("label", {}, "Case ", cases), " ", element("label", {}, "acquired ", days, " days before"), " ", button),
    errorNode, status, resultNode);
  node.addEventListener("toggle", () => { if (node.open && !cases.options.length) list(); });

  async function list() {
    try {
      const { cases: recent } = await ask("GET", `${answer.url.slice(0, answer.url.lastIndexOf("/"))}?limit=100`);
      const others = recent.filter((other) => other.case !== answer.case);
      cases.replaceChildren(...others.map((other) => element("option", { value: other.case }, `${other.created.slice(0, 16).replace("T", " ")} UTC: ${other.label}${reviewers(other)}`)));
      button.disabled = !others.length;
      showError(others.length ? "" : "There is no other case. Analyse the earlier scan first, then open this case again.");
    } catch (error) {
      showError(`The cases could not be listed: ${error.message}`);
    }
  }

  async function compare() {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";   // not disabled, which would take the keyboard's focus from it
    showError("");
    resultNode.replaceChildren();
    status.textContent = "Aligning the two scans …";
    try {
      const query = new URLSearchParams({ prior: cases.value, ...(days.value ? { days: days.value } : {}) });
      const comparison = await ask("GET", `${answer.url}/comparison?${query}`);
      const earlier = await ask("GET", `${answer.url.slice(0, answer.url.lastIndexOf("/"))}/${cases.value}`);
      await show(comparison, earlier);
      status.textContent = "The two scans are compared below.";
    } catch (error) {
      resultNode.replaceChildren();
      status.textContent = "";
      showError(`The scans could not be compared: ${error.message}`);
    }
    button.ariaDisabled = "false";
  }

  async function show(comparison, earlier) {
    const findings = answer.result.findings;
    const before = earlier.result;
    const volumes = [slices(), await loadVolume(earlier.files["slab.nii.gz"])];
    let linked = null;        // a pair of corresponding slices of both scans
    const now = sliceViewer(volumes[0], statedGeometry(answer.result.volume), findings, { name: (k) => `${sliceName(answer.result.volume, k)}, now`, keyboard: false, onSlice: () => follow() });
    const then = sliceViewer(volumes[1], statedGeometry(before.volume), before.findings, { name: (k) => `${sliceName(before.volume, k)}, before`, keyboard: false });
    // Earlier slices for each current one; negative if one scan is stored from feet to head, the other from head to feet.
    const ratio = Math.sign(volumes[0].axes[2][2] * volumes[1].axes[2][2]) * volumes[0].spacing[2] / volumes[1].spacing[2];
    /** Moves the earlier slices by as many mm as the current ones. */
    const follow = () => {
      if (linked) then.go(Math.round(linked[1] + (now.slice() - linked[0]) * ratio));
    };
    const lookAt = (lps, earlierLps) => {
      linked = null;
      now.look(lps);
      then.look(earlierLps);
      linked = [now.slice(), then.slice()];
    };
    const row = (attributes, rank, size, change, where, positions) => element("li", {}, element("button", { type: "button", ...attributes, onclick: () => lookAt(...positions) },
      element("span", { class: "rank" }, rank), element("span", { class: "size" }, size), element("span", { class: "score" }, change), element("span", { class: "where" }, where)));
    const rows = comparison.findings.map((change) => {
      const finding = findings[change.rank - 1];
      const sizes = [...(change.earlier ? [change.earlier.mean_diameter_mm.toFixed(1)] : []), change.mean_diameter_mm.toFixed(1)].join(" → ");
      return row({}, String(change.rank), `${label(finding)}${sizes} mm`, change.change === "not imaged" ? "not imaged before" : change.change, description(change, before.volume), [finding.centre_lps_mm, change.place_lps_mm]);
    });
    const gone = comparison.gone.map((finding) => row({ class: "weak" }, "–", `${finding.mean_diameter_mm.toFixed(1)} mm before`, finding.place_slice === null ? "not imaged now" : "not listed now",
      `finding ${finding.rank} before; ${finding.place_slice === null ? "this scan does not cover its position" : `its position is now in ${slicePosition(finding.place_slice, answer.result.volume)}`}`, [finding.place_lps_mm, before.findings[finding.rank - 1].centre_lps_mm]));
    const leftOut = comparison.weaker + comparison.weaker_gone;
    resultNode.replaceChildren(
      ...comparison.remarks.map((sentence) => element("p", { class: "remark" }, sentence)),
      element("ol", { class: "findings", "aria-label": "Findings compared with the earlier scan" }, ...rows, ...gone),
      ...(rows.length + gone.length ? [] : [element("p", {}, "No finding of either scan reaches the operating score.")]),
      element("p", { class: "small" }, `${leftOut ? `Left out: ${leftOut} weaker ${leftOut === 1 ? "mark" : "marks"} of either scan. ` : ""}Positions in the earlier scan are found by aligning the images and may be off by some millimetres: look at both. The earlier slices scroll with the current ones.`),
      element("div", { class: "both" }, now.node, then.node));
    const first = resultNode.querySelector(".findings button");
    if (first) first.click();
    else { now.draw(); then.draw(); }
  }

  function showError(text) {
    errorNode.textContent = text;
    errorNode.hidden = !text;
  }

  return node;
}

/** The reviewers of a case, which help to recognise it in a list, because cases do not name patients. */
function reviewers({ reviews }) {
  const names = reviews.map((review) => review.reviewer).filter(Boolean).map(isolated);
  return names.length ? `, reviewed by ${names.join(", ")}` : "";
}

function description(change, volume) {
  if (change.change === "not imaged") return "The earlier scan does not cover its position.";
  if (!change.earlier) return `The earlier scan has no listed finding at its position (${slicePosition(change.place_slice, volume)}).`;
  const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
  const parts = [`${signed(change.diameter_change_mm, 1)} mm`];
  if (change.volume_change_percent !== null) parts.push(`volume ${signed(change.volume_change_percent, 0)} %`);
  if (change.doubling_days !== null) parts.push(`volume doubles in ${change.doubling_days} days`);
  return `${parts.join(", ")} · finding ${change.earlier.rank} before, in ${slicePosition(change.place_slice, volume)}`;
}

function slicePosition(slice, volume) {
  return slice === null ? "outside the image" : sliceName(volume, slice - 1);
}
