// The findings as text, to be put into a report.
import { element } from "../shared/case.js";
import { ask, isolated } from "../shared/review.js";
import { position, sliceName, statedGeometry } from "./volume.js";

/** A line for each of `findings` (result.json's) and of what `review` adds, under what was looked at and above what limits the reading. */
export function reportText({ volume, remarks }, findings, identity, review) {
  const whole = statedGeometry(volume);
  const slice = (lps) => Math.min(Math.max(Math.round(whole.toIndex(lps)[2]), 0), volume.size_ijk[2] - 1);
  const lines = findings.map((finding, n) => {
    const axes = finding.axes_mm ? ` (${finding.axes_mm.map((v) => v.toFixed(1)).join(" x ")} mm axial)` : "";
    const cubic = finding.volume_mm3 ? `, ${finding.volume_mm3.toFixed(0)} mm3` : "";
    return `${n + 1}. ${label(finding)}${finding.mean_diameter_mm.toFixed(1)} mm mean diameter${axes}${cubic}; ${sliceName(volume, finding.slice - 1)}, ${position(finding.centre_lps_mm)}; score ${finding.score.toFixed(3)}${review.verdict(finding.rank) === "accepted" ? "; accepted by a reader" : ""}`;
  });
  lines.push(...review.state.missed.map((one, n) => `${lines.length + n + 1}. ${one.diameter_mm.toFixed(1)} mm; ${sliceName(volume, slice(one.centre_lps_mm))}, ${position(one.centre_lps_mm)}; added by a reader`));
  return [
    "Lung nodules in chest CT: automatic marks, for research, not verified.",
    ...(lines.length ? lines : ["No finding is listed. This does not mean that there is no nodule."]),
    ...remarks,
    identity,
  ].join("\n");
}

/** The class of a finding, where the model knows other classes than nodules. */
export const label = (finding) => (finding.label && finding.label !== "nodule" ? `${finding.label}, ` : "");

/** A button that copies what `text()` gives, and says so; where the browser does not allow that, the text itself. */
export function copyButton(text) {
  const said = element("span", { role: "status" });
  const area = element("textarea", { readonly: true, rows: 8, hidden: true, "aria-label": "Findings as text" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      said.textContent = " Copied.";
    } catch {
      // Over http a browser gives no access to the clipboard, but on the machine itself.
      area.value = text();
      area.hidden = false;
      area.select();
      said.textContent = " Copy the text below.";
    }
  };
  const button = element("button", { type: "button", title: "Findings that are accepted, or sure and not rejected, to be put into a report; the printed page has the same. The files keep all.", onclick: copy }, "Copy as text");
  return element("div", { class: "copy" }, button, said, area);
}

/** Among the files, the report as the reader's review leaves it: there once a review accepts or adds something. */
export function reviewedReport({ result, options }, review) {
  const link = element("a", {}, "Reviewed report (DICOM)");
  const lacks = element("span", { class: "small" });
  const node = element("li", { hidden: true }, link, lacks);
  const { StudyInstanceUID: study, SeriesInstanceUID: series } = result.volume.identifiers;
  let asked = false;

  /** A case may have none all the same, as one that an earlier version kept: then the server's reason stands there. */
  async function check(href) {
    const answer = await fetch(href, { method: "HEAD" }).catch(() => null);
    if (answer?.status !== 409) return;
    await ask("GET", href).catch((refusal) => node.replaceChildren(`${refusal.message[0].toUpperCase()}${refusal.message.slice(1)}`));
  }

  return {
    node,
    update() {
      const saved = review.saved();
      node.hidden = !(study && series && saved && (saved.missed.length || Object.values(saved.verdicts).includes("accepted")));
      if (node.hidden) return;
      const undecided = result.findings.filter((finding) => finding.above_operating_score && !saved.verdicts[finding.rank]).map((finding) => finding.rank);
      lacks.textContent = [
        options.patient === "yes" ? "" : " names no patient",
        undecided.length ? ` partial: nothing is said of ${undecided.join(", ")}` : "",
      ].filter(Boolean).join(";");
      link.title = saved.reviewer === null ? "" : `As ${isolated(saved.reviewer)} left it`;
      link.href = `${review.address}/findings.sr.dcm?reviewer=${encodeURIComponent(saved.reviewer ?? "")}`;
      if (!asked) check(link.href);
      asked = true;
    },
  };
}
