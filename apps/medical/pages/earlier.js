// The case beside that of an earlier scan of the same patient: what became of the findings, and the earlier slices.
import { element } from "../shared/case.js";
import { ask, isolated } from "../shared/review.js";
import { label } from "./report.js";
import { sliceViewer } from "./viewer.js";
import { loadVolume, sliceName, statedGeometry } from "./volume.js";

/** What asks for an earlier case and shows both. `slices()` are those of this case, once they are loaded. */
export function earlierScan(answer, { slices }) {
  const cases = element("select", { "aria-label": "The case of the earlier scan" });
  const days = element("input", { type: "number", min: 1, max: 36525, step: 1, placeholder: "days", "aria-label": "Days between the scans" });
  const button = element("button", { type: "button", onclick: () => compare() }, "Compare");
  const fault = element("p", { class: "error", role: "alert", hidden: true });
  const found = element("div", { "aria-live": "polite" });
  const node = element("details", { class: "earlier" },
    element("summary", {}, "Beside an earlier scan of this patient"),
    element("p", { class: "small" }, element("label", {}, "Case ", cases), " ", element("label", {}, "taken ", days, " days before"), " ", button),
    fault, found);
  node.addEventListener("toggle", () => { if (node.open && !cases.options.length) list(); });

  async function list() {
    try {
      const { cases: recent } = await ask("GET", `${answer.url.slice(0, answer.url.lastIndexOf("/"))}?limit=100`);
      const others = recent.filter((one) => one.case !== answer.case);
      cases.replaceChildren(...others.map((one) => element("option", { value: one.case }, `${one.created.slice(0, 16).replace("T", " ")} UTC: ${one.label}${reviewers(one)}`)));
      button.disabled = !others.length;
      say(others.length ? "" : "There is no other case. Hand in the earlier scan first, then open this case again.");
    } catch (error) {
      say(`The cases could not be listed: ${error.message}`);
    }
  }

  async function compare() {
    button.disabled = true;
    say("");
    found.replaceChildren(element("p", {}, "Aligning the two scans …"));
    try {
      const query = new URLSearchParams({ prior: cases.value, ...(days.value ? { days: days.value } : {}) });
      const compared = await ask("GET", `${answer.url}/comparison?${query}`);
      const earlier = await ask("GET", `${answer.url.slice(0, answer.url.lastIndexOf("/"))}/${cases.value}`);
      await show(compared, earlier);
    } catch (error) {
      found.replaceChildren();
      say(`The scans could not be compared: ${error.message}`);
    }
    button.disabled = false;
  }

  async function show(compared, earlier) {
    const findings = answer.result.findings;
    const before = earlier.result;
    const volumes = [slices(), await loadVolume(earlier.files["slab.nii.gz"])];
    let linked = null;        // slices of both that belong together
    const now = sliceViewer(volumes[0], statedGeometry(answer.result.volume), findings, { name: (k) => `${sliceName(answer.result.volume, k)}, now`, keyboard: false, onSlice: () => turn() });
    const then = sliceViewer(volumes[1], statedGeometry(before.volume), before.findings, { name: (k) => `${sliceName(before.volume, k)}, before`, keyboard: false });
    /** The earlier slices are turned as far as the present ones, in mm. */
    const turn = () => {
      if (linked) then.go(Math.round(linked[1] + (now.slice() - linked[0]) * volumes[0].spacing[2] / volumes[1].spacing[2]));
    };
    const look = (lps, earlierLps) => {
      linked = null;
      now.look(lps);
      then.look(earlierLps);
      linked = [now.slice(), then.slice()];
    };
    const row = (attributes, rank, size, change, where, places) => element("li", {}, element("button", { type: "button", ...attributes, onclick: () => look(...places) },
      element("span", { class: "rank" }, rank), element("span", { class: "size" }, size), element("span", { class: "score" }, change), element("span", { class: "where" }, where)));
    const rows = compared.findings.map((one) => {
      const finding = findings[one.rank - 1];
      const sizes = [...(one.earlier ? [one.earlier.mean_diameter_mm.toFixed(1)] : []), one.mean_diameter_mm.toFixed(1)].join(" → ");
      return row({}, String(one.rank), `${label(finding)}${sizes} mm`, one.change === "not imaged" ? "not imaged before" : one.change, words(one, before.volume), [finding.centre_lps_mm, one.place_lps_mm]);
    });
    const gone = compared.gone.map((one) => row({ class: "weak" }, "–", `${one.mean_diameter_mm.toFixed(1)} mm before`, one.place_slice === null ? "not imaged now" : "not listed now",
      `finding ${one.rank} before; ${one.place_slice === null ? "this scan does not reach its place" : `now it would be in ${place(one.place_slice, answer.result.volume)}`}`, [one.place_lps_mm, before.findings[one.rank - 1].centre_lps_mm]));
    const left = compared.weaker + compared.weaker_gone;
    found.replaceChildren(
      ...compared.remarks.map((sentence) => element("p", { class: "remark" }, sentence)),
      element("ol", { class: "findings", "aria-label": "Findings beside the earlier scan" }, ...rows, ...gone),
      ...(rows.length + gone.length ? [] : [element("p", {}, "No finding of either scan reaches the operating score.")]),
      element("p", { class: "small" }, `${left ? `Left out: ${left} weaker ${left === 1 ? "mark" : "marks"} of one scan or the other. ` : ""}A place in the earlier scan is found by aligning the images, and may be some millimetres off: look at both. The earlier slices turn with the present ones.`),
      element("div", { class: "both" }, now.node, then.node));
    const first = found.querySelector(".findings button");
    if (first) first.click();
    else { now.draw(); then.draw(); }
  }

  function say(text) {
    fault.textContent = text;
    fault.hidden = !text;
  }

  return node;
}

/** By whom a case was reviewed, to tell it from others in a list: it names no patient. */
function reviewers({ reviews }) {
  const names = reviews.map((one) => one.reviewer).filter(Boolean).map(isolated);
  return names.length ? `, reviewed by ${names.join(", ")}` : "";
}

function words(one, volume) {
  if (one.change === "not imaged") return "The earlier scan does not reach its place.";
  if (!one.earlier) return `No finding is listed at its place before: ${place(one.place_slice, volume)} there.`;
  const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
  const parts = [`${signed(one.diameter_change_mm, 1)} mm`];
  if (one.volume_change_percent !== null) parts.push(`volume ${signed(one.volume_change_percent, 0)} %`);
  if (one.doubling_days !== null) parts.push(`doubles in ${one.doubling_days} days`);
  return `${parts.join(", ")} · finding ${one.earlier.rank} before, ${place(one.place_slice, volume)} there`;
}

function place(slice, volume) {
  return slice === null ? "outside of the image" : sliceName(volume, slice - 1);
}
