// What controls a view besides dragging: keys, and buttons that act as keys do.
import { element } from "../shared/case.js";

const BUTTONS = [["+", "+", "Zoom in"], ["-", "−", "Zoom out"], ["ArrowLeft", "←", "Left"], ["ArrowRight", "→", "Right"], ["ArrowUp", "↑", "Up"], ["ArrowDown", "↓", "Down"], ["Home", "Reset", "Reset"]];

/**
 * The keys of a view: Tab and Shift+Tab step through its boxes and leave the view after the last; Escape clears the
 * choice, and the next Tab leaves. `handle` gets the other keys and returns whether it handled them.
 */
export function viewKeys(canvas, state, choose, handle) {
  let stepping = true;
  canvas.addEventListener("focus", () => { stepping = true; });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      stepping = false;
      choose(-1);
    } else if (event.key === "Tab") {
      const next = state.chosen === -1 && event.shiftKey ? -1 : state.chosen + (event.shiftKey ? -1 : 1);
      if (!stepping || next < 0 || next >= state.frame.boxes.length) return;
      choose(next, true);
    } else if (!handle(event)) return;
    event.preventDefault();
  });
}

/**
 * Buttons for readers who do not drag, named after the view `title`; `handle` is that of `viewKeys`. With `rotates`, the
 * arrows rotate the view, and a further button lets them move it.
 */
export function viewButtons(title, handle, rotates = false) {
  const moves = element("button", { type: "button", "aria-pressed": "false", onclick: () => moves.setAttribute("aria-pressed", String(moves.getAttribute("aria-pressed") !== "true")) }, "Move");
  const press = (key) => handle({ key, shiftKey: rotates && moves.getAttribute("aria-pressed") === "true" });
  return element("span", { class: "view-buttons", role: "group", "aria-label": title },
    BUTTONS.map(([key, sign, name]) => element("button", { type: "button", title: name, "aria-label": name, onclick: () => press(key) }, sign)),
    rotates ? moves : null);
}
