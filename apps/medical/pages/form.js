// The form of the medical application: findings first, their slices beside them.
import { caseForm, downloads, element, picture } from "../shared/case.js";
import { openReview, verdictBoxes } from "../shared/review.js";
import { earlierScan } from "./earlier.js";
import { missedList } from "./missed.js";
import { copyButton, label, reportText, reviewedReport } from "./report.js";
import { sliceViewer } from "./viewer.js";
import { loadVolume, position, sliceName, statedGeometry } from "./volume.js";

const ORDERS = {
  "surest first": (a, b) => a.rank - b.rank,
  "largest first": (a, b) => b.mean_diameter_mm - a.mean_diameter_mm,
  "from head to feet": (a, b) => b.centre_lps_mm[2] - a.centre_lps_mm[2],
};

caseForm({ render });

async function render(answer) {
  const { findings, remarks, volume } = answer.result;
  const result = document.querySelector("#result");
  const synthetic = "synthetic" in result.dataset;
  const listed = [...findings];
  const list = element("ol", { class: "findings" });
  const place = element("div", { "aria-busy": "true" }, element("p", {}, "Loading the slices …"));
  const above = findings.filter((finding) => finding.above_operating_score).length;
  const others = findings.length - above;
  let viewer = null;
  const review = openReview(answer, { changed: () => update() });
  const verdicts = new Map(findings.map((finding) => [finding, verdictBoxes(review, finding.rank)]));
  /** What is copied and printed: what a reader accepts, and what the model is sure of unless a reader rejects it. */
  const taken = (finding) => (review.verdict(finding.rank) ?? (finding.above_operating_score ? "accepted" : "rejected")) === "accepted";
  const copy = copyButton(() => reportText(answer.result, listed.filter(taken), identity(answer), review));
  const missed = missedList(review, { volume, viewer: () => viewer });
  const reviewed = reviewedReport(answer, review);
  const files = downloads(answer);
  files.querySelector("ul").append(reviewed.node);
  let slices = null;
  const earlier = earlierScan(answer, { slices: () => slices });
  const order = element("select", {}, Object.keys(ORDERS).map((name) => element("option", {}, name)));
  result.append(
    element("h2", {}, headline(answer.result, above)),
    element("p", { class: "advice" }, advice(answer.result, synthetic)),
    ...remarks.map((sentence) => element("p", { class: "remark" }, sentence)),
    element("div", { class: "reading" }, place,
      element("div", {},
        element("div", { class: "small above" },
          findings.length > 1 ? element("label", { class: "order" }, "Order: ", order) : null,
          others ? element("span", {}, `Dashed: ${others} weaker ${others === 1 ? "mark" : "marks"}, below the operating score of ${answer.result.operating_score.toFixed(3)}.`) : null),
        list, missed.node, review.node,
        copy,
        element("p", { class: "small" }, `${volume.size_ijk.join(" × ")} voxels of ${volume.spacing_mm.map((v) => +v.toFixed(3)).join(" × ")} mm. ${identity(answer)}`))),
    answer.result.lungs && !answer.remark ? earlier : null,
    files);
  const buttons = new Map(findings.map((finding) => [finding, row(finding, volume)]));
  const items = new Map(findings.map((finding) => [finding, element("li", {}, verdicts.get(finding).node, buttons.get(finding), verdicts.get(finding).others)]));
  const update = () => {
    for (const [finding, item] of items) {
      verdicts.get(finding).update();
      item.classList.toggle("left-out", !taken(finding));
    }
    missed.update();
    reviewed.update();
    copy.hidden = !findings.length && !review.state.missed.length;
    viewer?.draw();
  };
  const arrange = () => {
    listed.sort(ORDERS[order.value]);
    list.setAttribute("aria-label", `Findings, ${order.value}`);
    list.replaceChildren(...listed.map((finding) => items.get(finding)));
  };
  order.addEventListener("change", arrange);
  arrange();
  update();
  const decide = (verdict) => () => {
    const number = viewer.chosen()?.rank;
    if (number) review.decide(number, review.verdict(number) === verdict ? null : verdict);
  };
  try {
    slices = await loadVolume(answer.files["slab.nii.gz"]);
    viewer = sliceViewer(slices, statedGeometry(volume), findings, {
      name: (k) => sliceName(volume, k),
      order: () => listed,
      missed: () => review.state.missed,
      verdict: (finding) => review.verdict(finding.rank),
      keys: { a: decide("accepted"), r: decide("rejected"), m: missed.add },
      onPoint: missed.update,
      labels: answer.files["findings.nii.gz"] && (() => loadVolume(answer.files["findings.nii.gz"])),
      onFinding: (finding) => {
        for (const [one, button] of buttons) button.setAttribute("aria-current", String(one === finding));
        // Beside a list that is longer than the window the slices stay; above one they would be scrolled away.
        if (list.getBoundingClientRect().left >= place.getBoundingClientRect().right) items.get(finding).scrollIntoView({ block: "nearest" });
      },
    });
    for (const [finding, button] of buttons) button.addEventListener("click", () => { viewer.show(finding); viewer.node.scrollIntoView({ block: "nearest" }); });
    place.replaceChildren(viewer.node);
    if (findings.length) viewer.show(findings[0]);
    else viewer.draw();
  } catch (error) {
    console.error(error);
    place.replaceChildren(element("p", { class: "error" }, `The slices cannot be shown here: ${error.message}.`), picture(answer, "The best findings on axial slices"));
  }
  place.removeAttribute("aria-busy");
}

function headline(found, above) {
  if (found.lungs === null) return "Not searched";
  if (!found.findings.length) return "No nodule found";
  if (!above) return "No finding above the operating score";
  return `${above} ${above === 1 ? "finding" : "findings"}`;
}

/** What the answer is worth, and what to do with it. */
function advice(found, synthetic) {
  const learnt = synthetic ? "The model has learnt from synthetic chests alone and misses real nodules." : "The model misses nodules.";
  if (found.lungs === null) return "Nothing is said about nodules. Look at the slices: is it a CT of the chest, in Hounsfield units? If it is another series of the examination, hand in that of the chest.";
  if (!found.findings.length) return `This does not mean that there is none. ${learnt} Read the scan as if nothing had been run on it. Weaker marks come up in another analysis with a lower score in its options.`;
  return `Each mark is a place to look at; what is not marked is not cleared. ${learnt} The score says how sure the model is that there is a nodule, not that it is malignant.`;
}

/** By what the scan is found again in a PACS (the name of its file is not kept), and what looked at it. */
function identity(answer) {
  const series = answer.result.volume.identifiers.SeriesInstanceUID;
  const models = Object.entries(answer.result.versions ?? {}).map(([name, version]) => `${name} version ${version}`);
  const by = models.length && answer.result.lungs !== null ? ` Found by ${models.join(" and ")}.` : "";
  return (series ? `Series ${series}.` : `Input ${answer.inputs_sha256.slice(0, 12)} (SHA-256).`) + by;
}

function volumeOf(finding) {
  return finding.volume_mm3 ? ` · ${finding.volume_mm3.toFixed(0)} mm³` : "";
}

function row(finding, volume) {
  const tall = (finding.box_lps_mm[5] - finding.box_lps_mm[2]).toFixed(1);
  const axes = finding.axes_mm ? `${finding.axes_mm.map((v) => v.toFixed(1)).join(" × ")} mm axial · ` : "";
  return element("button", { type: "button", class: finding.above_operating_score ? null : "weak" },
    element("span", { class: "rank" }, String(finding.rank)),
    element("span", { class: "size" }, `${label(finding)}${finding.mean_diameter_mm.toFixed(1)} mm`),
    element("span", { class: "score" }, element("meter", { min: 0, max: 1, value: finding.score, "aria-hidden": "true" }), ` score ${finding.score.toFixed(3)}`),
    element("span", { class: "where" }, `${axes}${tall} mm from head to feet${volumeOf(finding)}`),
    element("span", { class: "where" }, `${sliceName(volume, finding.slice - 1)} · `, element("span", { class: "nobreak" }, position(finding.centre_lps_mm))));
}
