// The standard form of an application: files or a sample in, a case out.
//
//   import { caseForm, element, table, downloads } from "../shared/case.js";
//   caseForm({ render(case_) { document.querySelector("#result").append(downloads(case_)); } });
//
// `render(case)` gets what POST /api/<app>/predict answers: { case, app, result, picture, files: {name: url},
// inputs, artifact, created, interface }. It fills the element #result, which is empty when it is called; it may be async.

/** The path that the server is reached under, as /trivium; empty where that is none. */
const root = document.body.dataset.root ?? "";

/** Makes an element: element("td", { class: "number" }, "12.5"). Text is never read as HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A table in a frame that scrolls. Cells are texts, numbers or elements; numbers are set flush right. */
export function table(columns, rows, caption = "") {
  const cell = (value) => element("td", typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : String(value ?? ""));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "Table" },
    element("table", {},
      caption ? element("caption", {}, caption) : null,
      element("thead", {}, element("tr", {}, columns.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell))))));
}

/** The case's files as a list of links. */
export function downloads(answer, heading = "Files") {
  return element("section", { class: "downloads" },
    element("h2", {}, heading),
    element("ul", {}, Object.entries(answer.files).map(([name, url]) => element("li", {}, element("a", { href: url, download: name }, name)))));
}

/** The case's picture. */
export function picture(answer, description) {
  return element("img", { class: "picture", src: answer.picture, alt: description });
}

/** Wires the form that the macro `upload` made. Returns { open(id), submit(FormData) }. */
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
  let clock = 0;
  let address = location.search;

  function showStatus(text) {
    const began = text && !part("status").textContent;
    part("status").textContent = text;
    // Below the fields it may be out of sight.
    if (began) part("status").scrollIntoView({ block: "nearest" });
  }
  function showError(text) {
    part("error").textContent = text;
    part("error").hidden = !text;
    if (!text) return;
    fold(false);
    part("error").scrollIntoView({ block: "nearest" });
  }
  /** Leaves one button of the form, so that a result comes first. */
  const fold = (on) => { form.classList.toggle("folded", on); part("again").hidden = !on; };

  /** Shows a case or a job in the address; Back leads to the case that was there before. */
  function remember(query) {
    history[new URLSearchParams(location.search).has("case") ? "pushState" : "replaceState"](null, "", query);
    address = location.search;
  }
  // A link within the page moves through the history too, and leaves the address as it is.
  addEventListener("popstate", () => { if (location.search !== address) location.reload(); });

  function showChosen() {
    const files = dropped.length ? dropped : [...input.files];
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    part("chosen").hidden = files.length === 0;
    part("chosen").textContent = files.length === 1 ? `${files[0].name} (${size(bytes)})` : `${files.length} files (${size(bytes)})`;
  }

  /** Takes files in place of what was chosen before; `stale` is the field that this overrules, the folder's if none. */
  function take(files, stale = folder) {
    dropped = files;
    if (stale) stale.value = "";
    showChosen();
    showError("");
  }

  function busy(on) {
    form.setAttribute("aria-busy", String(on));
    for (const button of form.querySelectorAll("button")) button.disabled = on;
    part("cancel").hidden = !on;
    part("cancel").disabled = !on;
    clearInterval(clock);
    if (!on) { running = null; showStatus(""); }
  }

  function working() {
    const began = Date.now();
    const tick = () => showStatus(`Working … ${Math.round((Date.now() - began) / 1000)} s`);
    showStatus("Working …");
    // A screen reader would read out every change: the clock moves every five seconds.
    clock = setInterval(tick, 5000);
  }

  async function show(answer) {
    result.replaceChildren();
    try {
      await render(answer);
      if (answer.remark) result.prepend(element("p", { class: "notice", role: "status" }, `Note: ${answer.remark}.`));
    } catch (error) {
      console.error(error);
      showError(`The result was computed, but could not be drawn: ${error.message}`);
      return;
    }
    // What was said while it ran and the form are taken away first, for they move what is below.
    busy(false);
    fold(true);
    result.focus({ preventScroll: true });
    result.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  /** Shows how far a job is until it has ended, then its case. The server goes on whether this page is open or not. */
  async function follow(job) {
    remember(`?job=${encodeURIComponent(job.job)}`);
    const began = Date.parse(job.created);
    let said = "";
    let lost = false;
    const say = (now) => {
      const stage = now.state === "queued" ? "waiting for its turn" : now.stage || "starting";
      // What counts on changes often: a screen reader is told the stage, the numbers stand beside it.
      const text = lost ? "The server cannot be reached. Trying again …" : `${stage[0].toUpperCase()}${stage.slice(1)} … ${Math.max(0, Math.round((Date.now() - began) / 1000))} s. It goes on if you close this page.`;
      if (text !== said) showStatus(said = text);
    };
    running = { abort: () => fetch(job.url, { method: "DELETE", headers: { Accept: "application/json" } }).catch(() => showError("The server could not be reached.")) };
    const ended = await new Promise((resolve, reject) => {
      const events = new EventSource(job.events);
      const end = (settle, value) => { events.close(); clearInterval(clock); settle(value); };
      let latest = job;
      const hear = (event) => {
        latest = JSON.parse(event.data);
        if (["done", "failed", "cancelled"].includes(latest.state)) end(resolve, latest);
        else say(latest);
      };
      for (const state of ["queued", "running", "done", "failed", "cancelled"]) events.addEventListener(state, hear);
      // A connection that broke is taken up again by the browser; one that is refused is not.
      events.onerror = () => {
        lost = true;
        say(latest);
        if (events.readyState === EventSource.CLOSED) end(reject, new Error("The server could not be reached. Open this page again to see how far the analysis is."));
      };
      events.onopen = () => { lost = false; say(latest); };
      say(latest);
      clock = setInterval(() => say(latest), 5000);
    });
    if (ended.state === "cancelled") { remember(location.pathname); throw new Error("Cancelled."); }
    if (ended.state === "failed") throw new Error(ended.problem);
    const answer = await read(ended.case);
    remember(`?case=${encodeURIComponent(answer.case)}`);
    await show(answer);
  }

  async function resume(id) {
    showError("");
    busy(true);
    showStatus("Opening the analysis …");
    try {
      await follow(await read(`${root}/api/${app}/jobs/${encodeURIComponent(id)}`));
    } catch (error) {
      showError(error.message);
    } finally {
      busy(false);
    }
  }

  async function submit(body) {
    if (running) return;
    const bytes = body.getAll("files").reduce((sum, file) => sum + file.size, 0);
    const { jobBytes, sampleJobs } = document.body.dataset;
    await hand(body, bytes > (Number(jobBytes) || Infinity) || (sampleJobs !== undefined && body.has("sample")));
  }

  /** Uploads a form for an answer at once, or as a job: also where it is refused so in a sentence that names the jobs. */
  async function hand(body, asJob) {
    let tooMuch = false;
    showError("");
    result.replaceChildren();
    busy(true);
    showStatus("Uploading …");
    try {
      const answer = await send(`${root}/api/${app}/${asJob ? "jobs" : "predict"}`, body, {
        started: (request) => { running = request; },
        progress: (fraction) => showStatus(`Uploading … ${Math.round(100 * fraction)} %`),
        uploaded: asJob ? () => showStatus("Uploaded …") : working,
      });
      if (asJob) { await follow(answer); return; }
      remember(`?case=${encodeURIComponent(answer.case)}`);
      await show(answer);
    } catch (error) {
      // What no memory holds, or states a size that nothing has, is 413 too, and a job would be refused alike.
      tooMuch = error.status === 413 && !asJob && error.message.includes(`/api/${app}/jobs`);
      if (!tooMuch) showError(error.message);
    } finally {
      busy(false);
    }
    if (tooMuch) await hand(body, true);
  }

  async function open(id) {
    showError("");
    fold(true);
    busy(true);
    showStatus("Opening the case …");
    try {
      await show(await read(`${root}/api/${app}/cases/${encodeURIComponent(id)}`));
    } catch (error) {
      showError(error.message);
    } finally {
      busy(false);
    }
  }

  /** The form's fields: options, and the files where `sample` is null. */
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
    if (!body.has("files")) { showError("Choose a file first, or take a sample."); input.focus(); return; }
    const bytes = body.getAll("files").reduce((sum, file) => sum + file.size, 0);
    if (bytes > limit) { showError(`The files are larger (${size(bytes)}) than this server takes (${size(limit)}).`); return; }
    submit(body);
  });
  for (const button of form.querySelectorAll("[data-sample]")) button.addEventListener("click", () => submit(fields(button.dataset.sample)));
  part("cancel").addEventListener("click", () => running?.abort());
  part("again").addEventListener("click", () => { fold(false); input.focus(); form.scrollIntoView({ block: "nearest" }); });
  input.addEventListener("change", () => take([]));
  folder?.addEventListener("change", () => take([...folder.files], input));

  // Files are taken wherever they are dropped: a browser would leave the page for one that falls beside the frame.
  const zone = part("drop");
  const ofFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => { if (ofFiles(event)) { event.preventDefault(); zone.classList.add("over"); } });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
  document.addEventListener("drop", async (event) => {
    if (!ofFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    fold(false);
    form.scrollIntoView({ block: "nearest" });
    const found = await filesIn(event.dataTransfer);
    const tooMany = !input.multiple && found.length > 1;
    take(tooMany ? [] : found);
    input.value = "";
    showChosen();
    showError(tooMany ? `One file is taken here, and ${found.length} were dropped, so none was taken; drop the one that is meant.` : "");
  });

  const asked = new URLSearchParams(location.search);
  if (asked.get("case")) open(asked.get("case"));
  else if (asked.get("job")) resume(asked.get("job"));
  return { open, submit };
}

async function read(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } }).catch(() => { throw new Error("The server could not be reached. Is it still running? Reload the page to try again."); });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail ?? `The server answered ${response.status}.`);
  return answer;
}

// fetch does not report how much of an upload is done, XMLHttpRequest does.
function send(url, body, { started, progress, uploaded }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.responseType = "json";
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("Trivium-Interface", "form");
    request.upload.onprogress = (event) => { if (event.lengthComputable && event.loaded < event.total) progress(event.loaded / event.total); };
    request.upload.onload = uploaded;
    request.onload = () => {
      if (request.status >= 200 && request.status < 300 && request.response) resolve(request.response);
      else reject(Object.assign(new Error(request.response?.detail ?? `The server answered ${request.status} without an explanation.`), { status: request.status }));
    };
    request.onerror = () => reject(new Error("The server could not be reached, or it closed the connection; is it still running?"));
    request.onabort = () => reject(new Error("Cancelled."));
    started(request);
    request.send(body);
  });
}

async function filesIn(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // readEntries gives a hundred at a time, and none when it has given all.
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return found;
    found.push(...(await Promise.all(batch.map(walk))).flat());
  }
}

function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
