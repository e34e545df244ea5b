// The review of a case: verdicts on its findings, what was missed, a note; saved at once, and shown when it is opened again.
//
//   import { openReview, verdictBoxes } from "../shared/review.js";
//   const review = openReview(answer, { changed() { ... } });
//   list.append(verdictBoxes(review, 1)); place.append(review.node);
//
// A finding is known by its number in result.json, from 1.
import { element } from "./case.js";

const NAME = "trivium-reviewer";

/**
 * The reader's own review of a case, and who else reviewed it. `changed()` is called when it was loaded and whenever it
 * changes. `node` says by whom the case was reviewed, and holds the reviewer's name and a note.
 */
export function openReview(answer, { changed = () => {} } = {}) {
  const address = `${answer.url}/review`;
  const kept = !answer.remark;   // a case that could not be kept takes no review: verdicts stay on the page
  const state = { verdicts: new Map(), missed: [], note: "" };
  let key = null;                // the name of the key, where the server requires keys
  let reviews = [];
  let called = recall();         // as whom it was saved last
  let saving = Promise.resolve();

  const said = element("div", { class: "small reviewers" });
  const fault = element("p", { class: "error", role: "alert", hidden: true });
  const name = element("input", { type: "text", maxlength: 64, autocomplete: "name", value: called ?? "", onchange: () => rename() });
  const note = element("textarea", { rows: 2, maxlength: 2000, onchange: () => change(() => { state.note = note.value; }) });
  const mark = element("button", { type: "button", title: "Also where there is nothing to accept, reject or add", onclick: () => change() }, "Mark as reviewed");
  const back = element("button", { type: "button", hidden: true, onclick: () => withdraw() }, "Take the review back");
  const named = element("label", {}, "Reviewer ", name);
  const more = element("details", { class: "small" }, element("summary", {}, "Reviewer and note"), named, element("label", {}, "Note ", note), element("p", {}, mark, " ", back));
  const node = element("section", { class: "review", "aria-label": "Review" }, said, fault, more);
  node.hidden = !kept;

  const who = () => key ?? (name.value.trim() || null);
  const own = () => reviews.find((one) => one.reviewer === who());

  function show() {
    const lines = reviews.map((one) => {
      const verdicts = Object.values(one.verdicts);
      const counts = [[verdicts.filter((v) => v === "accepted").length, "accepted"], [verdicts.filter((v) => v === "rejected").length, "rejected"], [one.missed.length, "missed"]];
      const what = counts.filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
      const by = one.reviewer === null ? "" : ` by ${one.reviewer}`;
      return element("p", {}, `Reviewed${by} at ${one.reviewed.slice(0, 16).replace("T", " ")} UTC${what ? `: ${what}` : ""}.`);
    });
    said.replaceChildren(...lines);
    back.hidden = !own();
    note.value = state.note;
    changed();
  }

  function say(text) {
    fault.textContent = text;
    fault.hidden = !text;
  }

  function take(review) {
    state.verdicts = new Map(Object.entries(review?.verdicts ?? {}).map(([number, verdict]) => [Number(number), verdict]));
    state.missed = review?.missed ?? [];
    state.note = review?.note ?? "";
  }

  async function load() {
    try {
      const found = await ask("GET", address);
      [key, reviews] = [found.reviewer, found.reviews];
      named.hidden = key !== null;
      take(own());
      show();
      return true;
    } catch (error) {
      say(`The reviews of this case could not be read, and so none is saved: ${error.message} Reload the page to try again.`);
      return false;
    }
  }

  /** Changes the review and saves it, once the earlier one is there: what was said before must not be lost. */
  async function change(apply = () => {}) {
    if (!(await ready)) { changed(); return; }
    apply();
    await save();
  }

  /** Saves what is said now, after what is being saved already. */
  function save() {
    changed();
    if (!kept) return saving;
    saving = saving.then(async () => {
      const body = { verdicts: Object.fromEntries(state.verdicts), missed: state.missed, note: state.note };
      if (key === null && who()) body.reviewer = who();
      try {
        const made = await ask("PUT", address, body);
        reviews = [made, ...reviews.filter((one) => one.reviewer !== made.reviewer)];
        called = made.reviewer;
        say("");
        show();
      } catch (error) {
        say(`The review could not be saved: ${error.message} Change it once more to try again.`);
      }
    });
    return saving;
  }

  async function withdraw(reviewer = who()) {
    await saving;
    try {
      await ask("DELETE", key === null && reviewer ? `${address}?reviewer=${encodeURIComponent(reviewer)}` : address);
      reviews = reviews.filter((one) => one.reviewer !== reviewer);
      if (reviewer === who()) take(null);
      show();
    } catch (error) {
      say(`The review could not be taken back: ${error.message}`);
    }
  }

  /** Another name: that reader's review where there is one; what was said without a name goes under the new one. */
  async function rename() {
    await ready;
    remember(name.value.trim());
    const [before, mine] = [called, own()];
    if (mine) take(mine);
    else if (before === null && who() !== null && reviews.some((one) => one.reviewer === null)) {
      await save();
      if (own()) await withdraw(null);
    } else if (before !== null) take(null);
    called = who();
    show();
  }

  const ready = kept ? load() : Promise.resolve(true);
  return {
    node, state,
    verdict: (number) => state.verdicts.get(number) ?? null,
    /** Accepts or rejects a finding; null leaves it undecided. */
    decide: (number, verdict) => change(() => (verdict === null ? state.verdicts.delete(number) : state.verdicts.set(number, verdict))),
    /** Accepts those of the findings that have no verdict. */
    acceptOthers: (numbers) => change(() => { for (const number of numbers) if (!state.verdicts.has(number)) state.verdicts.set(number, "accepted"); }),
    add: (missed) => change(() => { state.missed = [...state.missed, missed]; }),
    remove: (missed) => change(() => { state.missed = state.missed.filter((one) => one !== missed); }),
  };
}

/** Two boxes that accept and reject a finding, of which at most one is ticked. `called` is what it is called: "finding 1". */
export function verdictBoxes(review, number, called = `finding ${number}`) {
  const boxes = { accepted: ["✓", "Accept"], rejected: ["✗", "Reject"] };
  const inputs = Object.entries(boxes).map(([verdict, [sign, word]]) => {
    const input = element("input", { type: "checkbox", "aria-label": `${word} ${called}`, onchange: () => review.decide(number, input.checked ? verdict : null) });
    return [verdict, input, element("label", { class: `verdict ${verdict}`, title: word }, input, element("span", { "aria-hidden": "true" }, sign))];
  });
  const node = element("span", { class: "verdicts", role: "group", "aria-label": `Verdict on ${called}` }, inputs.map(([, , label]) => label));
  return { node, update() { for (const [verdict, input] of inputs) input.checked = review.verdict(number) === verdict; } };
}

async function ask(method, url, body) {
  const given = body === undefined ? {} : { body: JSON.stringify(body) };
  const response = await fetch(url, { method, headers: { Accept: "application/json", "Content-Type": "application/json" }, ...given })
    .catch(() => { throw new Error("the server could not be reached."); });
  const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(`${answer.detail ?? `the server answered ${response.status}`}.`);
  return answer;
}

// A browser may keep nothing for a page, and refuse to be asked.
function recall() {
  try { return localStorage.getItem(NAME) || null; } catch { return null; }
}

function remember(name) {
  try { localStorage.setItem(NAME, name); } catch { /* it is asked for again */ }
}
