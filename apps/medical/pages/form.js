// The form of the medical application: findings first, their slices beside them.
import { caseForm, downloads, element, picture } from "/static/shared/case.js";
import { sliceViewer } from "./viewer.js";
import { loadVolume, position, statedGeometry } from "./volume.js";

caseForm({ render });

async function render(answer) {
  const { findings, remarks, volume } = answer.result;
  const result = document.querySelector("#result");
  const list = element("ol", { class: "findings", "aria-label": "Findings, most suspicious first" });
  const place = element("div", { "aria-busy": "true" }, element("p", {}, "Loading the slices …"));
  const suspicious = findings.filter((finding) => finding.suspicious).length;
  const others = findings.length - suspicious;
  result.append(
    element("h2", {}, headline(answer.result, suspicious)),
    ...remarks.map((sentence) => element("p", { class: "remark" }, sentence)),
    element("div", { class: "reading" }, place,
      element("div", {},
        others ? element("p", { class: "small" }, `Dashed: ${others} weaker ${others === 1 ? "mark" : "marks"}, below the model's operating score of ${answer.result.operating_score.toFixed(2)}.`) : null,
        list,
        element("p", { class: "small" }, `${volume.size_ijk.join(" × ")} voxels of ${volume.spacing_mm.map((v) => +v.toFixed(3)).join(" × ")} mm`))),
    downloads(answer));
  try {
    const slices = await loadVolume(answer.files["slab.nii.gz"]);
    const buttons = new Map();
    const viewer = sliceViewer(slices, statedGeometry(volume), findings, {
      onFinding: (finding) => { for (const [one, button] of buttons) button.setAttribute("aria-current", String(one === finding)); },
    });
    for (const finding of findings) {
      const button = row(finding, () => viewer.show(finding));
      buttons.set(finding, button);
      list.append(element("li", {}, button));
    }
    place.replaceChildren(viewer.node);
    if (findings.length) viewer.show(findings[0]);
    else viewer.draw();
  } catch (error) {
    console.error(error);
    for (const finding of findings) list.append(element("li", {}, row(finding, () => {})));
    place.replaceChildren(element("p", { class: "error" }, `The slices cannot be shown here: ${error.message}.`), picture(answer, "The best findings on axial slices"));
  }
  place.removeAttribute("aria-busy");
}

function headline(found, suspicious) {
  if (found.lungs === null) return "Not searched";
  if (!found.findings.length) return "No nodule found";
  if (!suspicious) return "No finding above the operating score";
  return `${suspicious} ${suspicious === 1 ? "finding" : "findings"}`;
}

function row(finding, show) {
  return element("button", { type: "button", class: finding.suspicious ? null : "weak", onclick: show },
    element("span", { class: "rank" }, String(finding.rank)),
    element("span", { class: "size" }, `${finding.mean_diameter_mm.toFixed(1)} mm`),
    element("span", { class: "score" }, `score ${finding.score.toFixed(2)}`),
    element("span", { class: "where" }, `slice ${finding.slice} · ${position(finding.centre_lps_mm)}`),
    element("meter", { min: 0, max: 1, value: finding.score, "aria-label": `score ${finding.score.toFixed(2)}` }));
}
