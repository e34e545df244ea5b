// The findings as text for a report, and the link to the reviewed report.
import { element } from "../shared/case.js";
import { ask, isolated } from "../shared/review.js";
import { position, sliceName, statedGeometry } from "./volume.js";

/** A heading, a line for each of `findings` (of result.json) and for each nodule that `review` adds, then the remarks and the identity of the scan. */
export function reportText({ volume, remarks }, findings, identity, review) {
  const whole = statedGeometry(volume);
  const slice = (lps) => Math.min(Math.max(Math.round(whole.toIndex(lps)[2]), 0), volume.size_ijk[2] - 1);
  const lines = findings.map((finding, n) => {
    const axes = finding.axes_mm ? ` (${finding.axes_mm.map((v) => v.toFixed(1)).join(" x ")} mm axial)` : "";
    const volumeText = finding.volume_mm3 ? `, ${finding.volume_mm3.toFixed(0)} mm3` : "";
    return `${n + 1}. ${label(finding)}${finding.mean_diameter_mm.toFixed(1)} mm mean diameter${axes}${volumeText}; ${sliceName(volume, finding.slice - 1)}, ${position(finding.centre_lps_mm)}; score ${finding.score.toFixed(3)}${review.verdict(finding.rank) === "accepted" ? "; accepted by a reader" : ""}`;
  });
  lines.push(...review.state.missed.map((nodule, n) => `${lines.length + n + 1}. ${nodule.diameter_mm.toFixed(1)} mm; ${sliceName(volume, slice(nodule.centre_lps_mm))}, ${position(nodule.centre_lps_mm)}; added by a reader`));
  return [
    "Lung nodules in chest CT: automatic marks, for research, not verified.",
    ...(lines.length ? lines : ["No findings are listed. This does not mean that there are no nodules."]),
    ...remarks,
    identity,
  ].join("\n");
}

/** The class of a finding as a prefix, if it is not a plain nodule. */
export const label = (finding) => (finding.label && finding.label !== "nodule" ? `${finding.label}, ` : "");

/** A button that copies `text()` and confirms it; if the browser does not allow that, it shows the text to copy by hand. */
export function copyButton(text) {
  const status = element("span", { role: "status" });
  const area = element("textarea", { readonly: true, rows: 8, hidden: true, "aria-label": "Findings as text" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      status.textContent = " Copied.";
    } catch {
      // Without https a browser allows clipboard access only on localhost.
      area.value = text();
      area.hidden = false;
      area.select();
      status.textContent = " Copy the text below.";
    }
  };
  const button = element("button", { type: "button", title: "Copies the findings for a report: those accepted, and those above the operating score unless rejected. The printed page has the same; the files contain all.", onclick: copy }, "Copy as text");
  return element("div", { class: "copy" }, button, status, area);
}

/** The entry of the reviewed report in the list of files. It appears once a review accepts or adds a finding. */
export function reviewedReport({ result, options }, review) {
  const link = element("a", {}, "Reviewed report (DICOM)");
  const limitations = element("span", { class: "small" });
  const node = element("li", { hidden: true }, link, limitations);
  const { StudyInstanceUID: study, SeriesInstanceUID: series } = result.volume.identifiers;
  let isChecked = false;

  /** Some cases have no report, for example those stored by an earlier version. Then the server's reason is displayed instead of the link. */
  async function check(href) {
    const response = await fetch(href, { method: "HEAD" }).catch(() => null);
    if (response?.status !== 409) return;
    await ask("GET", href).catch((refusal) => node.replaceChildren(`${refusal.message[0].toUpperCase()}${refusal.message.slice(1)}`));
  }

  return {
    node,
    update() {
      const saved = review.saved();
      node.hidden = !(study && series && saved && (saved.missed.length || Object.values(saved.verdicts).includes("accepted")));
      if (node.hidden) return;
      const undecided = result.findings.filter((finding) => finding.above_operating_score && !saved.verdicts[finding.rank]).map((finding) => finding.rank);
      limitations.textContent = [
        options.patient === "yes" ? "" : " does not name the patient",
        undecided.length ? ` partial: undecided on ${undecided.join(", ")}` : "",
      ].filter(Boolean).join(";");
      link.title = saved.reviewer === null ? "" : `Reviewed by ${isolated(saved.reviewer)}`;
      link.href = `${review.address}/findings.sr.dcm?reviewer=${encodeURIComponent(saved.reviewer ?? "")}`;
      if (!isChecked) check(link.href);
      isChecked = true;
    },
  };
}
