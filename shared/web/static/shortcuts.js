// Single-key shortcuts, such as A for accept. A page that has them also has the checkbox that turns them off (WCAG 2.2,
// success criterion 2.1.4): speech input types the words it hears, and each letter would act.
import { element } from "./case.js";

const STORAGE_KEY = "trivium-shortcuts";
const FIELDS = "input:not([type=checkbox], [type=range]), select, textarea, [contenteditable]";
let isOn = readStored();

/**
 * Calls `handle(event)` for the keys pressed on the page while `node` is on it, except in fields and dialogs and with
 * Ctrl, Alt or Meta; `handle` returns whether it handled the key. While shortcuts are off, a letter or digit acts only
 * in a focused view.
 */
export function onShortcut(node, handle) {
  document.addEventListener("keydown", function pressed(event) {
    if (!node.isConnected) { document.removeEventListener("keydown", pressed); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.target.matches(FIELDS)) return;
    if (document.querySelector("dialog[open]")) return;   // its keys are not the page's
    if (event.key.length === 1 && !isOn && !event.target.closest("canvas, .chart")) return;
    if (handle(event)) event.preventDefault();
  });
}

/** The checkbox that turns the shortcuts of all pages on and off. The browser keeps the choice. */
export function shortcutSwitch() {
  const checkbox = element("input", { type: "checkbox", checked: isOn, onchange: () => store(isOn = checkbox.checked) });
  return element("label", {}, checkbox, " Keys act on the whole page");
}

// A browser may have no storage for a page, and throw an error on access.
function readStored() {
  try { return localStorage.getItem(STORAGE_KEY) !== "off"; } catch { return true; }
}

function store(on) {
  try { localStorage.setItem(STORAGE_KEY, on ? "on" : "off"); } catch { /* on again when the page is reloaded */ }
}
