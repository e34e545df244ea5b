// Going from frame to frame.
import { element } from "../shared/case.js";

const FEW = 12;   // so many frames have a button each, more are a list

/** What chooses a frame: a button each, or of many a list with the next and the one before. N and P step too. */
export function frameSwitcher(frames, choose) {
  const few = frames.length <= FEW;
  let shown = 0;
  const go = (index) => {
    if (!frames[index]) return;
    shown = index;
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    list.value = String(index);
    choose(frames[index]);
  };
  const buttons = few ? frames.map((frame, index) => element("button", { type: "button", "aria-pressed": String(index === 0), onclick: () => go(index) }, frame.frame)) : [];
  const list = element("select", { onchange: () => go(Number(list.value)) }, frames.map((frame, index) => element("option", { value: index }, frame.frame)));
  const step = (by) => element("button", { type: "button", onclick: () => go(shown + by) }, by < 0 ? "Previous" : "Next");
  const node = element("div", { class: "frames", role: "group", "aria-label": "Frames", title: "Keys N and P: next and previous frame" },
    few ? buttons : [element("label", {}, `${frames.length} frames: `, list), step(-1), step(1)]);
  document.addEventListener("keydown", function pressed(event) {
    if (!node.isConnected) { document.removeEventListener("keydown", pressed); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    const by = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (by) { event.preventDefault(); go(shown + by); }
  });
  return node;
}
