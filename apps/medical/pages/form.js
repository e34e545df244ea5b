// The form of the medical application: the list of findings with the slice viewer beside it.
import { caseForm, downloads, element, picture } from "../shared/case.js";
import { openReview, verdictBoxes } from "../shared/review.js";
import { earlierScan } from "./earlier.js";
import { missedList } from "./missed.js";
import { copyButton, label, reportText, reviewedReport } from "./report.js";
import { sliceViewer } from "./viewer.js";
import { loadVolume, position, sliceName, statedGeometry } from "./volume.js";

const ORDERS = {
  "highest score first": (a, b) => a.rank - b.rank,
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
  const loadingText = element("p", {}, "Loading the slices …");
  const slicesNode = element("div", { "aria-busy": "true" }, loadingText);
  const above = findings.filter((finding) => finding.above_operating_score).length;
  const weaker = findings.length - above;
  let viewer = null;
  const review = openReview(answer, { changed: () => update() });
  const verdicts = new Map(findings.map((finding) => [finding, verdictBoxes(review, finding.rank)]));
  /** Whether a finding is copied and printed: if a reader accepts it, or it reaches the operating score and no reader rejects it. */
  const isIncluded = (finding) => (review.verdict(finding.rank) ?? (finding.above_operating_score ? "accepted" : "rejected")) === "accepted";
  const copy = copyButton(() => reportText(answer.result, listed.filter(isIncluded), identity(answer), review));
  const missed = missedList(review, { volume, viewer: () => viewer });
  const reviewed = reviewedReport(answer, review);
  const files = downloads(answer);
  files.querySelector("ul").append(reviewed.node);
  let slices = null;
  let isOpen = false;
  let shownVerdict = null;   // the verdict under the slices
  const verdictPlace = element("span");
  const underSlices = findings.length ? element("p", { class: "under-slices" }, verdictPlace,
    element("button", { type: "button", onclick: () => viewer.step(-1) }, "Previous finding"), element("button", { type: "button", onclick: () => viewer.step(1) }, "Next finding")) : "";
  const earlier = earlierScan(answer, { slices: () => slices });
  const order = element("select", {}, Object.keys(ORDERS).map((name) => element("option", {}, name)));
  result.append(
    element("h2", {}, headline(answer.result, above)),
    element("p", { class: "advice" }, advice(answer.result, synthetic)),
    ...remarks.map((sentence) => element("p", { class: "remark" }, sentence)),
    element("div", { class: "reading" }, slicesNode,
      element("div", {},
        element("div", { class: "small above" },
          findings.length > 1 ? element("label", { class: "order" }, "Order: ", order) : null,
          weaker ? element("span", {}, `Dashed: ${weaker} weaker ${weaker === 1 ? "mark" : "marks"}, below the operating score of ${answer.result.operating_score.toFixed(3)}.`) : null),
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
      item.classList.toggle("left-out", !isIncluded(finding));
    }
    shownVerdict?.update();
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
    slices = await loadVolume(answer.files["slab.nii.gz"], (fraction) => { loadingText.textContent = `Loading the slices … ${Math.round(100 * fraction)} %`; });
    viewer = sliceViewer(slices, statedGeometry(volume), findings, {
      name: (k) => sliceName(volume, k),
      order: () => listed,
      missed: () => review.state.missed,
      verdict: (finding) => review.verdict(finding.rank),
      keys: { a: decide("accepted"), r: decide("rejected"), m: missed.add },
      onPoint: missed.update,
      labels: answer.files["findings.nii.gz"] && (() => loadVolume(answer.files["findings.nii.gz"])),
      onFinding: (finding) => {
        shownVerdict = verdictBoxes(review, finding.rank, "the finding in the slices");
        shownVerdict.update();
        verdictPlace.replaceChildren(shownVerdict.node);
        for (const [listedFinding, button] of buttons) button.setAttribute("aria-current", String(listedFinding === finding));
        // Scroll the list only if the slices are beside it: slices above the list would scroll out of view. Not for the
        // first finding: the page may still be scrolling to the result, which this would stop.
        if (isOpen && list.getBoundingClientRect().left >= slicesNode.getBoundingClientRect().right) items.get(finding).scrollIntoView({ block: "nearest" });
      },
    });
    for (const [finding, button] of buttons) button.addEventListener("click", () => { viewer.show(finding); slicesNode.scrollIntoView({ block: "nearest" }); });
    slicesNode.replaceChildren(viewer.node, underSlices);
    if (findings.length) viewer.show(findings[0]);
    else viewer.draw();
    isOpen = true;
  } catch (error) {
    console.error(error);
    slicesNode.replaceChildren(element("p", { class: "error" }, `The slices cannot be displayed: ${error.message}.`), picture(answer, "The findings with the highest scores on axial slices"));
  }
  slicesNode.removeAttribute("aria-busy");
}

function headline(found, above) {
  if (found.lungs === null) return "Not searched";
  if (!found.findings.length) return "No nodule found";
  if (!above) return "No finding above the operating score";
  return `${above} ${above === 1 ? "finding" : "findings"}`;
}

/** How far the result can be trusted, and what to do with it. */
function advice(found, synthetic) {
  const limitation = synthetic ? "The model was trained on synthetic chests only and misses real nodules." : "The model misses nodules.";
  if (found.lungs === null) return "This says nothing about nodules. Look at the slices: is it a CT of the chest, in Hounsfield units? If it is another series of the examination, upload the chest series.";
  if (!found.findings.length) return `This does not mean that there are no nodules. ${limitation} Read the scan as if it had not been analysed. To see weaker marks, analyse it again with a lower score in the options.`;
  return `Each mark is a place to look at; unmarked regions are not cleared. ${limitation} The score is the model's confidence that there is a nodule, not that it is malignant.`;
}

/** The series, by which the scan is found in a PACS (its file name is not kept), and the models that analysed it. */
function identity(answer) {
  const series = answer.result.volume.identifiers.SeriesInstanceUID;
  const models = Object.entries(answer.result.versions ?? {}).map(([name, version]) => `${name} version ${version}`);
  const foundBy = models.length && answer.result.lungs !== null ? ` Found by ${models.join(" and ")}.` : "";
  return (series ? `Series ${series}.` : `Input ${answer.inputs_sha256.slice(0, 12)} (SHA-256).`) + foundBy;
}

function volumeOf(finding) {
  return finding.volume_mm3 ? ` · ${finding.volume_mm3.toFixed(0)} mm³` : "";
}

function row(finding, volume) {
  const height = (finding.box_lps_mm[5] - finding.box_lps_mm[2]).toFixed(1);
  const axes = finding.axes_mm ? `${finding.axes_mm.map((v) => v.toFixed(1)).join(" × ")} mm axial · ` : "";
  // The dashed border is not read out.
  const weak = finding.above_operating_score ? {} : { class: "weak", title: "Below the operating score" };
  return element("button", { type: "button", ...weak },
    element("span", { class: "rank" }, String(finding.rank)),
    element("span", { class: "size" }, `${label(finding)}${finding.mean_diameter_mm.toFixed(1)} mm`),
    element("span", { class: "score" }, element("meter", { min: 0, max: 1, value: finding.score, "aria-hidden": "true" }), ` score ${finding.score.toFixed(3)}`),
    element("span", { class: "where" }, `${axes}${height} mm from head to feet${volumeOf(finding)}`),
    element("span", { class: "where" }, `${sliceName(volume, finding.slice - 1)} · `, element("span", { class: "nobreak" }, position(finding.centre_lps_mm))));
}
