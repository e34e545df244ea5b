// The review of a case: verdicts on its findings, missed findings and a note. Each change is saved at once, and the review
// is shown when the case is opened again.
//
//   import { openReview, verdictBoxes } from "../shared/review.js";
//   const review = openReview(answer, { changed() { ... } });
//   list.append(verdictBoxes(review, 1)); place.append(review.node);
//
// A finding is identified by its number in result.json, from 1.
import { element, replaceItems, withhold } from "./elements.js";

const STORAGE_KEY = "trivium-reviewer";
const RETRY_INTERVAL_MS = 4000;

const emptyReview = () => ({ verdicts: new Map(), missed: [], note: "" });
const copyReview = ({ verdicts, missed, note }) => ({ verdicts: new Map(verdicts), missed: [...missed], note });
const fromAnswer = (answer) => (answer ? copyReview({ ...answer, verdicts: Object.entries(answer.verdicts).map(([number, verdict]) => [Number(number), verdict]) }) : emptyReview());
const BIDI_CONTROLS = /[\u202a-\u202e\u2066-\u2069]/g;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
/** A name or note that does not change the direction of the text beside it (Unicode Standard Annex 9, section 2). */
export function isolated(text) {
  const plain = text.replace(BIDI_CONTROLS, "");
  return RIGHT_TO_LEFT.test(plain) ? `\u2068${plain}\u2069` : plain;
}
const displayName = (reviewer) => (reviewer === null ? "a reader without a name" : isolated(reviewer));
/** A missed finding as text, with its fields sorted, because the server may return them in another order than the page. */
const asText = (missed) => JSON.stringify(missed, Object.keys(missed).sort());

/** The numbers of verdicts and missed findings of a review: "2 accepted, 1 missed". */
function totalsOf({ verdicts, missed }) {
  const given = Object.values(verdicts);
  const counts = [[given.filter((v) => v === "accepted").length, "accepted"], [given.filter((v) => v === "rejected").length, "rejected"], [missed.length, "missed"]];
  return counts.filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
}

/**
 * The reader's own review of a case, and the list of its other reviewers. `changed()` is called when the review is loaded
 * and whenever it changes. `node` shows who reviewed the case, and has fields for the reviewer's name and a note.
 */
export function openReview(answer, { changed = () => {} } = {}) {
  const address = `${answer.url}/review`;
  const kept = !answer.remark;   // the review of a case that could not be kept is not saved: verdicts stay on the page
  const state = emptyReview();   // what the page shows: the saved review with the pending changes
  let saved = emptyReview();
  const pending = [];            // changes that are not saved yet, the oldest first
  let beforeLoad = 0;            // how many changes wait until the earlier review is loaded
  let unnamedChanges = [];       // changes that were made on this page before a reviewer's name was entered
  let foundUnnamed = false;      // whether there is a review without a name that this page did not start
  let key = null;                // the name of the key, if the server requires keys
  let reviews = [];
  let reviewer = readStoredName();
  let saving = null;
  let retryTimer = 0;
  let shownNote = "";            // the note that was last put into its field

  const reviewList = element("div", { class: "small reviewers" });
  const errorText = element("span");
  const retryButton = element("button", { type: "button", onclick: () => save() }, "Try again");
  const announcement = element("p", { class: "unseen", "aria-live": "polite" });
  const errorBox = element("p", { class: "error", role: "alert", hidden: true }, errorText, " ", retryButton);
  const nameInput = element("input", { type: "text", maxlength: 64, autocomplete: "name", value: reviewer ?? "", onchange: () => changeReviewer() });
  const noteInput = element("textarea", { rows: 2, maxlength: 2000, onchange: () => saveNote() });
  const markButton = element("button", { type: "button", title: "Also if there is nothing to accept, reject or add", onclick: () => change() }, "Mark as reviewed");
  const withdrawButton = element("button", { type: "button", hidden: true, onclick: () => withdraw() }, "Withdraw the review");
  const nameLabel = element("label", {}, "Reviewer ", nameInput);
  const summary = element("summary", {}, "Reviewer and note");
  const details = element("details", { class: "small" }, summary, nameLabel, element("label", {}, "Note ", noteInput), element("p", {}, markButton, " ", withdrawButton));
  const node = element("section", { class: "review", "aria-label": "Review" }, reviewList, announcement, errorBox, details);
  node.hidden = !kept;

  const ownName = () => key ?? reviewer;
  const reviewBy = (name) => reviews.find((review) => review.reviewer === name);
  const otherReviews = () => reviews.filter((review) => review.reviewer !== ownName());

  function show() {
    const lines = reviews.map((review) => {
      const totals = totalsOf(review);
      const byWhom = review.reviewer === null ? "" : ` by ${displayName(review.reviewer)}`;
      const isOwn = review.reviewer === ownName();
      return element("p", {}, `Reviewed${byWhom} at ${review.reviewed.slice(0, 16).replace("T", " ")} UTC${totals ? `: ${totals}` : ""}.`,
        review.note && !isOwn ? ` “${isolated(review.note)}”` : null,
        // With a key, the server uses the key's name, so there is no unnamed review to adopt.
        review.reviewer === null && !isOwn && key === null ? [" ", element("button", { type: "button", title: "Moves the verdicts, missed findings and note that were entered without a name to your review, where yours has none", onclick: () => adoptUnnamed() }, "Add it to my review")] : null);
    });
    replaceItems(reviewList, lines, summary);
    // On a shared computer, the name of the previous reader may still be stored.
    summary.textContent = `Reviewer and note${ownName() ? ` (${isolated(ownName())})` : ""}`;
    withhold(withdrawButton, "hidden", !reviewBy(ownName()), markButton);
    // Does not overwrite a note that is being edited.
    if (noteInput.value === shownNote) noteInput.value = state.note;
    shownNote = state.note;
    changed();
  }

  function showError(text, canRetry = false) {
    errorText.textContent = text;
    retryButton.hidden = !canRetry;
    withhold(errorBox, "hidden", !text, summary);
  }

  /** Sets `review` as the saved one, and applies the pending changes to it again. */
  function setSaved(review) {
    saved = fromAnswer(review);
    Object.assign(state, copyReview(saved));
    for (const apply of pending) apply(state);
    show();
  }

  async function load() {
    const loaded = await ask("GET", address);
    [key, reviews] = [loaded.reviewer, loaded.reviews];
    foundUnnamed ||= reviewBy(null) !== undefined;
    nameLabel.hidden = key !== null;
    setSaved(reviewBy(ownName()));
  }

  /** Changes the review and saves it, after the earlier review is loaded, so that its content is not lost. */
  async function change(apply = () => {}) {
    beforeLoad += 1;
    const loaded = await ready;
    beforeLoad -= 1;
    if (!loaded) { changed(); return; }
    apply(state);
    if (kept) pending.push(apply);
    if (kept && ownName() === null) unnamedChanges.push(apply);
    changed();
    await save();
  }

  function saveNote() {
    const text = shownNote = noteInput.value;
    return change((target) => { target.note = text; });
  }

  /** Saves the pending changes, after a save that is already running. */
  function save() {
    saving ??= sendPending().finally(() => { saving = null; });
    return saving;
  }

  async function sendPending() {
    clearTimeout(retryTimer);
    for (let maxChanges = Infinity; pending.length;) {
      const batch = pending.slice(0, maxChanges);
      const { verdicts, missed, note } = batch.reduce((target, apply) => { apply(target); return target; }, copyReview(saved));
      // If another window has saved since, the server refuses this; then its review is loaded, and the changes are applied to it.
      const body = { verdicts: Object.fromEntries(verdicts), missed, note, replaces: reviewBy(ownName())?.reviewed ?? null };
      if (key === null && ownName()) body.reviewer = ownName();
      try {
        const stored = await ask("PUT", address, body);
        pending.splice(0, batch.length);
        saved = fromAnswer(stored);
        reviews = [stored, ...reviews.filter((review) => review.reviewer !== stored.reviewer)];
        showError("");
        show();
        announcement.textContent = `Review saved: ${totalsOf(stored) || "no verdict"}`;
      } catch (refusal) {
        let error = refusal;
        try {
          if (error.status === 412) { await load(); continue; }
        } catch (loadError) { error = loadError; }
        if (error.status === 422 || error.status === 413) {
          // A change that the server will never accept must not block the others; sending them one by one finds it.
          if (batch.length > 1) { maxChanges = 1; continue; }
          const refused = pending.shift();
          unnamedChanges = unnamedChanges.filter((apply) => apply !== refused);
          Object.assign(state, copyReview(saved));
          for (const apply of pending) apply(state);
          show();
          showError(`This change could not be saved and was undone: ${error.message}`);
          if (pending.length) continue;
        } else if (error.status === 404) {
          pending.length = 0;
          showError(`The review could not be saved: ${error.message}`);
        } else {
          const temporary = !error.status || error.status >= 500 || error.status === 408 || error.status === 429;
          showError(`The review could not be saved: ${error.message} ${temporary ? "Saving is retried every few seconds; leave this page open." : ""}`, true);
          if (temporary) retryTimer = setTimeout(save, RETRY_INTERVAL_MS);
        }
        return;
      }
    }
  }

  async function withdraw(name = ownName()) {
    await saving;
    try {
      await ask("DELETE", key === null && name ? `${address}?reviewer=${encodeURIComponent(name)}` : address);
      reviews = reviews.filter((review) => review.reviewer !== name);
      if (name === null) [unnamedChanges, foundUnnamed] = [[], false];
      announcement.textContent = "Review withdrawn";
      if (name !== ownName()) { show(); return; }
      pending.length = 0;
      clearTimeout(retryTimer);
      showError("");
      setSaved(null);
    } catch (error) {
      showError(`The review could not be withdrawn: ${error.message}`);
    }
  }

  /** Switches to the review of the reader with the entered name; changes made on this page without a name move to it. */
  async function changeReviewer() {
    const entered = nameInput.value.trim() || null;
    if (!(await ready)) return;
    await save();
    const previous = reviewer;
    if (entered === previous) return;
    // The pending changes are those of the previous reader.
    if (pending.length && previous !== null) { nameInput.value = previous; return; }
    reviewer = entered;
    storeName(entered ?? "");
    const own = previous === null && entered !== null ? unnamedChanges.splice(0) : [];
    if (own.length) pending.splice(0, pending.length, ...own);
    setSaved(reviewBy(entered));
    await save();
    // Another reader may have started the review without a name: then it is kept.
    if (own.length && !foundUnnamed && !pending.length && reviewBy(null)) await withdraw(null);
  }

  /** Merges the review without a name into the reader's own, whose verdicts and note have priority. */
  async function adoptUnnamed() {
    const unnamed = fromAnswer(reviewBy(null));
    await change((target) => {
      for (const [number, verdict] of unnamed.verdicts) if (!target.verdicts.has(number)) target.verdicts.set(number, verdict);
      const existing = new Set(target.missed.map(asText));
      target.missed = [...target.missed, ...unnamed.missed.filter((missed) => !existing.has(asText(missed)))];
      target.note ||= unnamed.note;
    });
    if (!pending.length) await withdraw(null);
  }

  // Unsaved text and pending changes would be lost with the page.
  addEventListener("beforeunload", (event) => { if (beforeLoad || pending.length || (node.isConnected && noteInput.value !== shownNote)) event.preventDefault(); });
  const ready = !kept ? Promise.resolve(true) : load().then(() => true, (error) => {
    showError(`The reviews of this case could not be read, so nothing is saved: ${error.message} Reload the page to try again.`);
    return false;
  });
  return {
    node, state,
    address,
    /** The reader's own saved review, else the newest review; null if there is none. */
    saved: () => reviewBy(ownName()) ?? reviews[0] ?? null,
    verdict: (number) => state.verdicts.get(number) ?? null,
    /** Other readers' verdicts on a finding: "accepted by Ada, rejected by Grace"; empty if there are none. */
    others: (number) => otherReviews().filter((review) => review.verdicts[number]).map((review) => `${review.verdicts[number]} by ${displayName(review.reviewer)}`).join(", "),
    /** The missed findings that other readers added, each with the reader's name. */
    othersMissed: () => otherReviews().flatMap((review) => review.missed.map((missed) => ({ missed, reader: displayName(review.reviewer) }))),
    /** Accepts or rejects a finding; null makes it undecided. */
    decide: (number, verdict) => change((target) => (verdict === null ? target.verdicts.delete(number) : target.verdicts.set(number, verdict))),
    /** Accepts those of the findings that have no verdict. */
    acceptOthers: (numbers) => change((target) => { for (const number of numbers) if (!target.verdicts.has(number)) target.verdicts.set(number, "accepted"); }),
    add: (missed) => change((target) => { target.missed = [...target.missed, missed]; }),
    remove: (missed) => change((target) => {
      const index = target.missed.findIndex((finding) => asText(finding) === asText(missed));
      if (index >= 0) target.missed = target.missed.filter((finding, position) => position !== index);
    }),
  };
}

/**
 * Two checkboxes, as `node`, to accept or reject a finding; at most one of them is checked. `title` is the name of the
 * finding: "finding 1". The tooltip of the boxes shows the verdicts of other readers; so does the element `others`, for
 * pages that have room for it.
 */
export function verdictBoxes(review, number, title = `finding ${number}`) {
  const boxes = { accepted: ["✓", "Accept"], rejected: ["✗", "Reject"] };
  const inputs = Object.entries(boxes).map(([verdict, [sign, word]]) => {
    const input = element("input", { type: "checkbox", "aria-label": `${word} ${title}`, onchange: () => review.decide(number, input.checked ? verdict : null) });
    return [verdict, input, element("label", { class: `verdict ${verdict}` }, input, element("span", { "aria-hidden": "true" }, sign)), word];
  });
  const node = element("span", { class: "verdicts", role: "group" }, inputs.map(([, , label]) => label));
  const others = element("span", { class: "others", hidden: true });
  return {
    node, others,
    update() {
      const otherVerdicts = review.others(number);
      node.setAttribute("aria-label", `Verdict on ${title}${otherVerdicts ? `: ${otherVerdicts}` : ""}`);
      for (const [verdict, input, label, word] of inputs) {
        input.checked = review.verdict(number) === verdict;
        label.title = otherVerdicts ? `${word}; ${otherVerdicts}` : word;
      }
      others.textContent = otherVerdicts && `${otherVerdicts[0].toUpperCase()}${otherVerdicts.slice(1)}`;
      others.hidden = !otherVerdicts;
    },
  };
}

/** Sends a request and returns the server's answer as JSON; throws an error with the server's message if it refuses. */
export async function ask(method, url, body) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const response = await fetch(url, { method, headers: { Accept: "application/json", "Content-Type": "application/json" }, ...content })
    .catch(() => { throw new Error("the server could not be reached."); });
  const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(`${answer.detail ?? `the server answered ${response.status}`}.`), { status: response.status });
  return answer;
}

// A browser may have no storage for a page, and throw an error on access.
function readStoredName() {
  try { return localStorage.getItem(STORAGE_KEY) || null; } catch { return null; }
}

function storeName(name) {
  try { localStorage.setItem(STORAGE_KEY, name); } catch { /* the page asks for the name again */ }
}
