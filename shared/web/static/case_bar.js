// The line beside a result: which case it is, and the button that deletes it.
import { element } from "./elements.js";
import { ask, isolated } from "./review.js";

/** A case in a few words, as its tab and its line show it: "scan.bin and 2 more, 2026-11-30 05:06 UTC". */
export function caseTitle({ case: id, created, inputs }) {
  const names = inputs.map(({ name }) => name);
  const [first = id, ...others] = names;
  const isKind = others.length > 0 && others.every((name) => name === first);   // medical cases keep no names of files
  const label = isKind ? `${names.length} ${first}s` : others.length ? `${first} and ${others.length} more` : first;
  return `${label}, ${created.slice(0, 16).replace("T", " ")} UTC`;
}

/** The line of a case. `deleted()` is called when its user has deleted it. */
export function caseBar(answer, { deleted }) {
  return element("span", { class: "case-bar" },
    element("span", { class: "small" }, caseTitle(answer)), " ",
    element("button", { type: "button", onclick: () => confirmDeletion(answer, deleted) }, "Delete this case"));
}

/** Asks before it deletes. The browser keeps the focus in an open dialog, closes it on Escape, and returns the focus. */
function confirmDeletion(answer, deleted) {
  const reviewText = element("p", { role: "status" });
  const errorText = element("p", { class: "error", role: "alert", hidden: true });
  const keepButton = element("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Keep it");
  const deleteButton = element("button", { type: "button", class: "danger", onclick: () => deleteCase() }, "Delete the case");
  const dialog = element("dialog", { "aria-labelledby": "deletion", "aria-describedby": "deletion-extent", onclose: () => dialog.remove() },
    element("h2", { id: "deletion" }, "Delete this case?"),
    element("p", { id: "deletion-extent" }, `This deletes the result of ${caseTitle(answer)}, with all files and reviews that the server has of it. It cannot be undone. Your own files, and what was downloaded or sent elsewhere, stay as they are.`),
    reviewText, errorText,
    element("p", { class: "actions" }, keepButton, " ", deleteButton));

  async function deleteCase() {
    if (deleteButton.ariaDisabled === "true") return;
    deleteButton.ariaDisabled = "true";   // not disabled, which would take the keyboard's focus from it
    deleteButton.textContent = "Deleting …";
    try {
      await ask("DELETE", answer.url);
    } catch (error) {
      // Another window may have deleted it.
      if (error.status !== 404) {
        errorText.textContent = `The case could not be deleted: ${error.message}`;
        errorText.hidden = false;
        deleteButton.ariaDisabled = "false";
        deleteButton.textContent = "Delete the case";
        return;
      }
    }
    dialog.close();
    deleted();
  }

  document.body.append(dialog);
  dialog.showModal();
  ask("GET", `${answer.url}/review`).then(({ reviews }) => {
    if (!reviews.length) return;
    const names = reviews.map(({ reviewer }) => (reviewer === null ? "a reader without a name" : isolated(reviewer)));
    reviewText.textContent = `It has been reviewed by ${names.join(", ")}.`;
  }, () => { /* the deletion reports what prevents it */ });
}
