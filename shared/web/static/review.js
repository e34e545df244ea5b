// The review of a case: verdicts on its findings, what was missed, a note; saved at once, and shown when it is opened again.
//
//   import { openReview, verdictBoxes } from "../shared/review.js";
//   const review = openReview(answer, { changed() { ... } });
//   list.append(verdictBoxes(review, 1)); place.append(review.node);
//
// A finding is known by its number in result.json, from 1.
import { element } from "./case.js";

const NAME = "trivium-reviewer";
const AGAIN_MS = 4000;

const empty = () => ({ verdicts: new Map(), missed: [], note: "" });
const copied = ({ verdicts, missed, note }) => ({ verdicts: new Map(verdicts), missed: [...missed], note });
const stated = (answer) => (answer ? copied({ ...answer, verdicts: Object.entries(answer.verdicts).map(([number, verdict]) => [Number(number), verdict]) }) : empty());
const TURNING = /[\u202a-\u202e\u2066-\u2069]/g;
const RUNS_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
/** A name or a note that turns nothing beside it, whichever way its letters run (Unicode Standard Annex 9, section 2). */
export function isolated(text) {
  const plain = text.replace(TURNING, "");
  return RUNS_LEFT.test(plain) ? `\u2068${plain}\u2069` : plain;
}
const named = (reviewer) => (reviewer === null ? "a reader without a name" : isolated(reviewer));
/** What was missed as a text, whatever the order of its parts: a review that was read again has others than the page. */
const spelt = (missed) => JSON.stringify(missed, Object.keys(missed).sort());

/**
 * The reader's own review of a case, and who else reviewed it. `changed()` is called when it was loaded and whenever it
 * changes. `node` says by whom the case was reviewed, and holds the reviewer's name and a note.
 */
export function openReview(answer, { changed = () => {} } = {}) {
  const address = `${answer.url}/review`;
  const kept = !answer.remark;   // a case that could not be kept takes no review: verdicts stay on the page
  const state = empty();         // what the page shows: what was saved last, and the changes that wait
  let saved = empty();
  const waiting = [];            // changes of a review that are not saved yet, the oldest first
  let early = 0;                 // how many changes wait for the earlier review to be read
  let unnamed = [];              // changes that were made on this page while it had no name of a reader
  let found = false;             // whether there is a review without a name that this page did not begin
  let key = null;                // the name of the key, where the server requires keys
  let reviews = [];
  let reviewer = recall();
  let saving = null;
  let later = 0;
  let told = "";                 // the note as it was put into its field

  const said = element("div", { class: "small reviewers" });
  const why = element("span");
  const again = element("button", { type: "button", onclick: () => save() }, "Try again");
  const fault = element("p", { class: "error", role: "alert", hidden: true }, why, " ", again);
  const name = element("input", { type: "text", maxlength: 64, autocomplete: "name", value: reviewer ?? "", onchange: () => rename() });
  const note = element("textarea", { rows: 2, maxlength: 2000, onchange: () => write() });
  const mark = element("button", { type: "button", title: "Also where there is nothing to accept, reject or add", onclick: () => change() }, "Mark as reviewed");
  const back = element("button", { type: "button", hidden: true, onclick: () => withdraw() }, "Take the review back");
  const field = element("label", {}, "Reviewer ", name);
  const summary = element("summary", {}, "Reviewer and note");
  const more = element("details", { class: "small" }, summary, field, element("label", {}, "Note ", note), element("p", {}, mark, " ", back));
  const node = element("section", { class: "review", "aria-label": "Review" }, said, fault, more);
  node.hidden = !kept;

  const who = () => key ?? reviewer;
  const by = (one) => reviews.find((review) => review.reviewer === one);
  const others = () => reviews.filter((review) => review.reviewer !== who());

  function show() {
    const lines = reviews.map((one) => {
      const verdicts = Object.values(one.verdicts);
      const counts = [[verdicts.filter((v) => v === "accepted").length, "accepted"], [verdicts.filter((v) => v === "rejected").length, "rejected"], [one.missed.length, "missed"]];
      const what = counts.filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
      const whose = one.reviewer === null ? "" : ` by ${named(one.reviewer)}`;
      const isOwn = one.reviewer === who();
      return element("p", {}, `Reviewed${whose} at ${one.reviewed.slice(0, 16).replace("T", " ")} UTC${what ? `: ${what}` : ""}.`,
        one.note && !isOwn ? ` “${isolated(one.note)}”` : null,
        // With a key, whose name the server takes, there is none to be taken over.
        one.reviewer === null && !isOwn && key === null ? [" ", element("button", { type: "button", title: "Puts what was said without a name under yours, where you said nothing else", onclick: () => takeOver() }, "Take it over")] : null);
    });
    said.replaceChildren(...lines);
    // On a computer that several read at, the name of the one before may still be there.
    summary.textContent = `Reviewer and note${who() ? ` (${isolated(who())})` : ""}`;
    back.hidden = !by(who());
    // A note that is being written stays as it is.
    if (note.value === told) note.value = state.note;
    told = state.note;
    changed();
  }

  function say(text, tryAgain = false) {
    why.textContent = text;
    again.hidden = !tryAgain;
    fault.hidden = !text;
  }

  /** Takes `review` as what was saved last; what waits is said of it anew. */
  function take(review) {
    saved = stated(review);
    Object.assign(state, copied(saved));
    for (const apply of waiting) apply(state);
    show();
  }

  async function load() {
    const read = await ask("GET", address);
    [key, reviews] = [read.reviewer, read.reviews];
    found ||= by(null) !== undefined;
    field.hidden = key !== null;
    take(by(who()));
  }

  /** Changes the review and saves it, once the earlier one is there: what was said before must not be lost. */
  async function change(apply = () => {}) {
    early += 1;
    const read = await ready;
    early -= 1;
    if (!read) { changed(); return; }
    apply(state);
    if (kept) waiting.push(apply);
    if (kept && who() === null) unnamed.push(apply);
    changed();
    await save();
  }

  function write() {
    const text = told = note.value;
    return change((to) => { to.note = text; });
  }

  /** Saves what waits, after what is being saved already. */
  function save() {
    saving ??= send().finally(() => { saving = null; });
    return saving;
  }

  async function send() {
    clearTimeout(later);
    for (let most = Infinity; waiting.length;) {
      const now = waiting.slice(0, most);
      const { verdicts, missed, note: text } = now.reduce((to, apply) => { apply(to); return to; }, copied(saved));
      // Another window may have saved since: then its review is read, and what waits is said of that one.
      const body = { verdicts: Object.fromEntries(verdicts), missed, note: text, replaces: by(who())?.reviewed ?? null };
      if (key === null && who()) body.reviewer = who();
      try {
        const made = await ask("PUT", address, body);
        waiting.splice(0, now.length);
        saved = stated(made);
        reviews = [made, ...reviews.filter((one) => one.reviewer !== made.reviewer)];
        say("");
        show();
      } catch (refusal) {
        let error = refusal;
        try {
          if (error.status === 412) { await load(); continue; }
        } catch (unread) { error = unread; }
        if (error.status === 422 || error.status === 413) {
          // What the server will never take must not hold up the rest; one of several is found one by one.
          if (now.length > 1) { most = 1; continue; }
          const refused = waiting.shift();
          unnamed = unnamed.filter((one) => one !== refused);
          Object.assign(state, copied(saved));
          for (const apply of waiting) apply(state);
          show();
          say(`This could not be saved, and is taken back: ${error.message}`);
          if (waiting.length) continue;
        } else if (error.status === 404) {
          waiting.length = 0;
          say(`The review could not be saved: ${error.message}`);
        } else {
          const passing = !error.status || error.status >= 500 || error.status === 408 || error.status === 429;
          say(`The review could not be saved: ${error.message} ${passing ? "It is tried again every few seconds; leave this page open." : ""}`, true);
          if (passing) later = setTimeout(save, AGAIN_MS);
        }
        return;
      }
    }
  }

  async function withdraw(whose = who()) {
    await saving;
    try {
      await ask("DELETE", key === null && whose ? `${address}?reviewer=${encodeURIComponent(whose)}` : address);
      reviews = reviews.filter((one) => one.reviewer !== whose);
      if (whose === null) [unnamed, found] = [[], false];
      if (whose !== who()) { show(); return; }
      waiting.length = 0;
      clearTimeout(later);
      say("");
      take(null);
    } catch (error) {
      say(`The review could not be taken back: ${error.message}`);
    }
  }

  /** Another name: that reader's review; what was said on this page without a name goes under it. */
  async function rename() {
    const given = name.value.trim() || null;
    if (!(await ready)) return;
    await save();
    const before = reviewer;
    if (given === before) return;
    // What waits was said by the reader before.
    if (waiting.length && before !== null) { name.value = before; return; }
    reviewer = given;
    remember(given ?? "");
    const mine = before === null && given !== null ? unnamed.splice(0) : [];
    if (mine.length) waiting.splice(0, waiting.length, ...mine);
    take(by(given));
    await save();
    // Another reader may have begun the review without a name: then it stays.
    if (mine.length && !found && !waiting.length && by(null)) await withdraw(null);
  }

  /** Puts what was said without a name under the reader's own, where the reader said nothing else. */
  async function takeOver() {
    const from = stated(by(null));
    await change((to) => {
      for (const [number, verdict] of from.verdicts) if (!to.verdicts.has(number)) to.verdicts.set(number, verdict);
      const there = new Set(to.missed.map(spelt));
      to.missed = [...to.missed, ...from.missed.filter((one) => !there.has(spelt(one)))];
      to.note ||= from.note;
    });
    if (!waiting.length) await withdraw(null);
  }

  // What is written or waits would be lost with the page.
  addEventListener("beforeunload", (event) => { if (early || waiting.length || (node.isConnected && note.value !== told)) event.preventDefault(); });
  const ready = !kept ? Promise.resolve(true) : load().then(() => true, (error) => {
    say(`The reviews of this case could not be read, and so none is saved: ${error.message} Reload the page to try again.`);
    return false;
  });
  return {
    node, state,
    address,
    /** The reader's own review as it was saved, or the newest one; null where nobody reviewed the case. */
    saved: () => by(who()) ?? reviews[0] ?? null,
    verdict: (number) => state.verdicts.get(number) ?? null,
    /** What other readers said of a finding: "accepted by Ada, rejected by Grace"; empty where none did. */
    others: (number) => others().filter((one) => one.verdicts[number]).map((one) => `${one.verdicts[number]} by ${named(one.reviewer)}`).join(", "),
    /** What other readers missed, each with who did. */
    othersMissed: () => others().flatMap((one) => one.missed.map((missed) => ({ missed, reader: named(one.reviewer) }))),
    /** Accepts or rejects a finding; null leaves it undecided. */
    decide: (number, verdict) => change((to) => (verdict === null ? to.verdicts.delete(number) : to.verdicts.set(number, verdict))),
    /** Accepts those of the findings that have no verdict. */
    acceptOthers: (numbers) => change((to) => { for (const number of numbers) if (!to.verdicts.has(number)) to.verdicts.set(number, "accepted"); }),
    add: (missed) => change((to) => { to.missed = [...to.missed, missed]; }),
    remove: (missed) => change((to) => {
      const at = to.missed.findIndex((one) => spelt(one) === spelt(missed));
      if (at >= 0) to.missed = to.missed.filter((one, place) => place !== at);
    }),
  };
}

/**
 * Two boxes that accept and reject a finding, of which at most one is ticked, as `node`. `called` is what it is called:
 * "finding 1". What other readers said of it is the tip of the boxes, and the line `others` for where there is room.
 */
export function verdictBoxes(review, number, called = `finding ${number}`) {
  const boxes = { accepted: ["✓", "Accept"], rejected: ["✗", "Reject"] };
  const inputs = Object.entries(boxes).map(([verdict, [sign, word]]) => {
    const input = element("input", { type: "checkbox", "aria-label": `${word} ${called}`, onchange: () => review.decide(number, input.checked ? verdict : null) });
    return [verdict, input, element("label", { class: `verdict ${verdict}` }, input, element("span", { "aria-hidden": "true" }, sign)), word];
  });
  const node = element("span", { class: "verdicts", role: "group" }, inputs.map(([, , label]) => label));
  const others = element("span", { class: "others", hidden: true });
  return {
    node, others,
    update() {
      const said = review.others(number);
      node.setAttribute("aria-label", `Verdict on ${called}${said ? `: ${said}` : ""}`);
      for (const [verdict, input, label, word] of inputs) {
        input.checked = review.verdict(number) === verdict;
        label.title = said ? `${word}; ${said}` : word;
      }
      others.textContent = said && `${said[0].toUpperCase()}${said.slice(1)}`;
      others.hidden = !said;
    },
  };
}

/** What the server answers, as JSON; throws with its sentence where it refuses. */
export async function ask(method, url, body) {
  const given = body === undefined ? {} : { body: JSON.stringify(body) };
  const response = await fetch(url, { method, headers: { Accept: "application/json", "Content-Type": "application/json" }, ...given })
    .catch(() => { throw new Error("the server could not be reached."); });
  const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(`${answer.detail ?? `the server answered ${response.status}`}.`), { status: response.status });
  return answer;
}

// A browser may keep nothing for a page, and refuse to be asked.
function recall() {
  try { return localStorage.getItem(NAME) || null; } catch { return null; }
}

function remember(name) {
  try { localStorage.setItem(NAME, name); } catch { /* it is asked for again */ }
}
