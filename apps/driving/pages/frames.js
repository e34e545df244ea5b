// Switches between the frames of a case.
import { element } from "../shared/case.js";
import { onShortcut } from "../shared/shortcuts.js";

const MAX_BUTTONS = 12;   // up to this many frames have a button each; more are in a list

/**
 * The frame switcher: one button per frame or, for many frames, a list with Previous and Next, in the original order or
 * with the most boxes first. Keys N and P also step. `counted` says whether a box counts; `update` recounts; what is
 * passed to `announce` is read out by a screen reader.
 */
export function frameSwitcher(frames, choose, counted = () => true) {
  const few = frames.length <= MAX_BUTTONS;
  let shown = 0;
  let order = frames.map((_, index) => index);   // the order of the frames in the list, and for N and P
  let counts = [];
  const go = (index) => {
    if (!frames[index]) return;
    shown = index;
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    list.value = String(index);
    choose(frames[index]);
  };
  const buttons = few ? frames.map((frame, index) => element("button", { type: "button", "aria-pressed": String(index === 0), onclick: () => go(index) })) : [];
  const list = element("select", { onchange: () => go(Number(list.value)) });
  const step = (offset) => go(order[order.indexOf(shown) + offset]);
  const stepButton = (offset, text) => element("button", { type: "button", onclick: () => step(offset) }, text);
  const title = element("span", {});
  const mostBoxesFirst = element("input", { type: "checkbox", onchange: () => update() });
  function update() {
    counts = frames.map((frame) => frame.boxes.filter(counted).length);
    order = frames.map((_, index) => index);
    if (mostBoxesFirst.checked) order.sort((a, b) => counts[b] - counts[a] || a - b);
    buttons.forEach((button, index) => {
      button.replaceChildren(frames[index].frame, element("span", { class: "count", "aria-hidden": "true" }, ` ${counts[index]}`));
      button.title = boxes(counts[index]);
    });
    if (few) return;
    title.textContent = `${frames.length} frames, ${boxes(counts.reduce((sum, count) => sum + count, 0))}: `;
    list.replaceChildren(...order.map((index) => element("option", { value: index }, `${frames[index].frame} (${boxes(counts[index])})`)));
    list.value = String(shown);
  }
  const announcement = element("span", { class: "unseen", "aria-live": "polite" });
  const node = element("div", { class: "frames", role: "group", "aria-label": "Frames", title: "Keys N and P: next and previous frame" }, announcement,
    few ? buttons : [element("label", {}, title, list), stepButton(-1, "Previous"), stepButton(1, "Next"), element("label", {}, mostBoxesFirst, " Most boxes first")]);
  update();
  onShortcut(node, (event) => {
    const offset = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (offset) step(offset);
    return Boolean(offset);
  });
  return { node, update, announce: (text) => { announcement.textContent = text; } };
}

const boxes = (count) => `${count} ${count === 1 ? "box" : "boxes"}`;
