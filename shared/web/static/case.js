// The standard form of an application: takes files or a sample, and shows the resulting case.
//
//   import { caseForm, element, table, downloads } from "../shared/case.js";
//   caseForm({ render(case_) { document.querySelector("#result").append(downloads(case_)); } });
//
// `render(case)` gets the answer of POST /api/<app>/predict: { case, app, result, picture, files: {name: url}, inputs,
// artifact, created, interface }. It fills the element #result, which is empty when it is called; it may be async.
import { caseBar, caseTitle } from "./case_bar.js";
import { element } from "./elements.js";
import { filesIn, formatSize, postForm } from "./upload.js";

export { downloads, element, picture, replaceItems, table, withhold } from "./elements.js";

/** The path under which the server is reached, such as /trivium; empty by default. */
const root = document.body.dataset.root ?? "";

/** Connects the form of the macro `upload` to the server. Returns { open(id), submit(FormData) }. */
export function caseForm({ render, app = document.body.dataset.app } = {}) {
  const form = document.querySelector("[data-case-form]");
  const part = (name) => form.querySelector(`[data-${name}]`);
  const input = form.querySelector("input[type=file]");
  const folder = part("folder");
  const result = document.querySelector("#result") ?? form.insertAdjacentElement("afterend", element("section", { id: "result" }));
  result.tabIndex = -1;
  result.setAttribute("aria-label", "Result");
  const limit = Number(document.body.dataset.maxUploadBytes) || Infinity;
  let dropped = [];
  let running = null;
  let started = null;   // the button that started the analysis
  let clock = 0;
  let address = location.search;
  let bar = null;   // the line of the case that is shown
  const pageTitle = document.title;

  function showStatus(text) {
    const appeared = text && !part("status").textContent;
    part("status").textContent = text;
    // It is below the fields and may be out of view.
    if (appeared) part("status").scrollIntoView({ block: "nearest" });
  }
  /** `isFile` says that the chosen files are at fault. */
  function showError(text, isFile = false) {
    part("error").textContent = text;
    part("error").hidden = !text;
    markFields(text);
    input.setAttribute("aria-invalid", String(isFile));
    if (!text) return;
    fold(false);
    part("error").scrollIntoView({ block: "nearest" });
  }
  /** Marks the fields of the options that a refusal names, because their labels are longer, and opens their sections. */
  function markFields(text) {
    for (const field of form.querySelectorAll(".options [name]")) {
      const isNamed = new RegExp(`option '?${field.name}\\b|\\b${field.name}=`).test(text);
      field.setAttribute("aria-invalid", String(isNamed));
      field.setAttribute("aria-describedby", isNamed ? "upload-error" : "");
      if (isNamed) field.closest("details")?.setAttribute("open", "");
    }
  }
  /** Collapses the form to one button, so that the result is at the top. */
  const fold = (on) => { form.classList.toggle("folded", on); part("again").hidden = !on; };

  /** Puts a case or a job into the page's address; the Back button returns to the previous case. */
  function setAddress(query) {
    history[new URLSearchParams(location.search).has("case") ? "pushState" : "replaceState"](null, "", query);
    address = location.search;
  }
  // A link within the page also fires popstate, but does not change the query.
  addEventListener("popstate", () => { if (location.search !== address) location.reload(); });

  function showChosen() {
    const files = dropped.length ? dropped : [...input.files];
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    part("chosen").hidden = files.length === 0;
    part("chosen").textContent = files.length === 1 ? `${files[0].name} (${formatSize(bytes)})` : `${files.length} files (${formatSize(bytes)})`;
  }

  /** Replaces the chosen files; `overruled` is the input field to clear, by default that of the folder. */
  function choose(files, overruled = folder) {
    dropped = files;
    if (overruled) overruled.value = "";
    showChosen();
    showError("");
  }

  /** A disabled or hidden button loses the keyboard's focus: it moves to Cancel and, afterwards, back. */
  function setBusy(on) {
    const focused = form.contains(document.activeElement) ? document.activeElement : null;
    form.setAttribute("aria-busy", String(on));
    for (const button of form.querySelectorAll("button")) button.disabled = on;
    part("cancel").hidden = !on;
    part("cancel").disabled = !on;
    if (on && focused) part("cancel").focus();
    if (on) started = focused;
    else if (focused === part("cancel")) started?.focus({ preventScroll: true });
    clearInterval(clock);
    if (!on) { running = null; showStatus(""); }
  }

  function showElapsedTime() {
    const started = Date.now();
    const request = running;
    let loaded = false;
    const tick = async () => {
      // The first analysis after the server's start waits for its models, on a new machine for a minute or two.
      const state = loaded ? {} : await getJson(`${root}/api/${app}/model`).catch(() => ({}));
      if (running !== request) return;
      loaded ||= state.predictor === "loaded";
      showStatus(`${capitalised(state.stage ?? "working")} … ${Math.round((Date.now() - started) / 1000)} s`);
    };
    showStatus("Working …");
    // A screen reader reads every change aloud, so the time is updated only every five seconds.
    clock = setInterval(tick, 5000);
  }

  async function show(answer) {
    result.replaceChildren();
    bar?.remove();
    try {
      await render(answer);
      if (answer.remark) result.prepend(element("p", { class: "notice", role: "status" }, `Note: ${answer.remark}.`));
    } catch (error) {
      console.error(error);
      showError(`The result was computed, but could not be displayed: ${error.message}`);
      return;
    }
    bar = caseBar(answer, { deleted: leaveDeletedCase });
    part("again").after(" ", bar);
    document.title = `${caseTitle(answer)} · ${pageTitle}`;
    // The status and the form are hidden before scrolling, because that moves the result.
    setBusy(false);
    fold(true);
    result.focus({ preventScroll: true });
    result.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  /** Shows the empty form. The address of a case that no longer exists is not left in the history. */
  function leaveDeletedCase() {
    result.replaceChildren();
    history.replaceState(null, "", location.pathname);
    address = location.search;
    document.title = pageTitle;
    fold(false);
    input.focus();
    showStatus("The case was deleted.");
  }

  /** Shows the progress of a job until it has ended, then its case. The job continues if this page is closed. */
  async function followJob(job) {
    setAddress(`?job=${encodeURIComponent(job.job)}`);
    const created = Date.parse(job.created);
    let shownText = "";
    let disconnected = false;
    const showStage = (current) => {
      const stage = current.state === "queued" ? "waiting for its turn" : current.stage || "starting";
      // The status is a live region, so it is updated only if its text has changed.
      const text = disconnected ? "The server cannot be reached. Trying again …" : `${capitalised(stage)} … ${Math.max(0, Math.round((Date.now() - created) / 1000))} s. The analysis continues if you close this page.`;
      if (text !== shownText) showStatus(shownText = text);
    };
    running = { abort: () => fetch(job.url, { method: "DELETE", headers: { Accept: "application/json" } }).catch(() => showError("The server could not be reached.")) };
    const ended = await new Promise((resolve, reject) => {
      const events = new EventSource(job.events);
      const end = (settle, value) => { events.close(); clearInterval(clock); settle(value); };
      let latest = job;
      const onEvent = (event) => {
        latest = JSON.parse(event.data);
        if (["done", "failed", "cancelled"].includes(latest.state)) end(resolve, latest);
        else showStage(latest);
      };
      for (const state of ["queued", "running", "done", "failed", "cancelled"]) events.addEventListener(state, onEvent);
      // The browser reconnects after a broken connection, but not after a refused one.
      events.onerror = () => {
        disconnected = true;
        showStage(latest);
        if (events.readyState === EventSource.CLOSED) end(reject, new Error("The server could not be reached. Reload this page to see the progress of the analysis."));
      };
      events.onopen = () => { disconnected = false; showStage(latest); };
      showStage(latest);
      clock = setInterval(() => showStage(latest), 5000);
    });
    if (ended.state === "cancelled") { setAddress(location.pathname); throw new Error("Cancelled."); }
    if (ended.state === "failed") throw new Error(ended.problem);
    const answer = await getJson(ended.case);
    setAddress(`?case=${encodeURIComponent(answer.case)}`);
    await show(answer);
  }

  async function openJob(id) {
    showError("");
    setBusy(true);
    showStatus("Opening the analysis …");
    try {
      await followJob(await getJson(`${root}/api/${app}/jobs/${encodeURIComponent(id)}`));
    } catch (error) {
      showError(error.message);
    } finally {
      setBusy(false);
    }
  }

  async function submit(body) {
    if (running) return;
    const bytes = body.getAll("files").reduce((sum, file) => sum + file.size, 0);
    const { jobBytes, sampleJobs } = document.body.dataset;
    await upload(body, bytes > (Number(jobBytes) || Infinity) || (sampleJobs !== undefined && body.has("sample")));
  }

  /** Uploads the form, for an immediate answer or as a job. If the error message names the jobs, it retries as a job. */
  async function upload(body, asJob) {
    let retryAsJob = false;
    showError("");
    result.replaceChildren();
    setBusy(true);
    showStatus("Uploading …");
    try {
      const answer = await postForm(`${root}/api/${app}/${asJob ? "jobs" : "predict"}`, body, {
        started: (request) => { running = request; },
        progress: (fraction) => showStatus(`Uploading … ${Math.round(100 * fraction)} %`),
        uploaded: asJob ? () => showStatus("Uploaded …") : showElapsedTime,
      });
      if (asJob) { await followJob(answer); return; }
      setAddress(`?case=${encodeURIComponent(answer.case)}`);
      await show(answer);
    } catch (error) {
      // Inputs that exceed the memory or state an impossible size also get 413; a job would refuse them as well.
      retryAsJob = error.status === 413 && !asJob && error.message.includes(`/api/${app}/jobs`);
      if (!retryAsJob) showError(error.message);
    } finally {
      setBusy(false);
    }
    if (retryAsJob) await upload(body, true);
  }

  async function open(id) {
    showError("");
    fold(true);
    setBusy(true);
    part("cancel").hidden = true;   // there is nothing to cancel
    showStatus("Opening the case …");
    try {
      await show(await getJson(`${root}/api/${app}/cases/${encodeURIComponent(id)}`));
    } catch (error) {
      showError(error.message);
    } finally {
      setBusy(false);
    }
  }

  /** The fields of the form: the options, with the name of the sample or, if `sample` is null, the files. */
  function fields(sample) {
    const body = new FormData(form);
    body.delete("files");
    for (const [name, value] of [...body]) if (value === "") body.delete(name);
    if (sample !== null) body.set("sample", sample);
    else for (const file of dropped.length ? dropped : input.files) body.append("files", file, file.name);
    return body;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const body = fields(null);
    if (!body.has("files")) { showError("Choose a file or a sample first.", true); input.focus(); return; }
    const bytes = body.getAll("files").reduce((sum, file) => sum + file.size, 0);
    if (bytes > limit) { showError(`The files are larger (${formatSize(bytes)}) than this server accepts (${formatSize(limit)}).`, true); input.focus(); return; }
    submit(body);
  });
  for (const button of form.querySelectorAll("[data-sample]")) button.addEventListener("click", () => submit(fields(button.dataset.sample)));
  part("cancel").addEventListener("click", () => running?.abort());
  // An upload, and an analysis that is not a job, would be lost with the page.
  addEventListener("beforeunload", (event) => { if (running instanceof XMLHttpRequest) event.preventDefault(); });
  // It gets the focus when an analysis starts, and the Enter that started it may still be held down.
  part("cancel").addEventListener("keydown", (event) => { if (event.repeat) event.preventDefault(); });
  part("again").addEventListener("click", () => { fold(false); input.focus(); form.scrollIntoView({ block: "nearest" }); });
  input.addEventListener("change", () => choose([]));
  folder?.addEventListener("change", () => choose([...folder.files], input));

  // Files can be dropped anywhere on the page, because a browser would open a file that is dropped beside the frame.
  const zone = part("drop");
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) { event.preventDefault(); zone.classList.add("over"); } });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    fold(false);
    form.scrollIntoView({ block: "nearest" });
    const found = await filesIn(event.dataTransfer);
    const tooMany = !input.multiple && found.length > 1;
    choose(tooMany ? [] : found);
    input.value = "";
    showChosen();
    showError(tooMany ? `Only one file can be analysed at a time. ${found.length} files were dropped and none was chosen; drop a single file.` : "", tooMany);
  });

  const query = new URLSearchParams(location.search);
  if (query.get("case")) open(query.get("case"));
  else if (query.get("job")) openJob(query.get("job"));
  return { open, submit };
}

const capitalised = (text) => text[0].toUpperCase() + text.slice(1);

async function getJson(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } }).catch(() => { throw new Error("The server could not be reached. Is it still running? Reload the page to try again."); });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail ?? `The server answered ${response.status}.`);
  return answer;
}
