// Going from frame to frame.
import { element } from "../shared/case.js";

const FEW = 12;   // so many frames have a button each, more are a list

/**
 * What chooses a frame: a button each, or of many a list with the next and the one before, in their own order or those
 * with the most boxes first. N and P step too. `counted` says whether a box counts; `update` counts anew.
 */
export function frameSwitcher(frames, choose, counted = () => true) {
  const few = frames.length <= FEW;
  let shown = 0;
  let order = frames.map((_, index) => index);   // in which the list has the frames, and N and P go through them
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
  const step = (by) => go(order[order.indexOf(shown) + by]);
  const stepping = (by, text) => element("button", { type: "button", onclick: () => step(by) }, text);
  const title = element("span", {});
  const fullest = element("input", { type: "checkbox", onchange: () => update() });
  function update() {
    counts = frames.map((frame) => frame.boxes.filter(counted).length);
    order = frames.map((_, index) => index);
    if (fullest.checked) order.sort((one, other) => counts[other] - counts[one] || one - other);
    buttons.forEach((button, index) => {
      button.replaceChildren(frames[index].frame, element("span", { class: "count", "aria-hidden": "true" }, ` ${counts[index]}`));
      button.title = boxes(counts[index]);
    });
    if (few) return;
    title.textContent = `${frames.length} frames, ${boxes(counts.reduce((sum, count) => sum + count, 0))}: `;
    list.replaceChildren(...order.map((index) => element("option", { value: index }, `${frames[index].frame} (${boxes(counts[index])})`)));
    list.value = String(shown);
  }
  const node = element("div", { class: "frames", role: "group", "aria-label": "Frames", title: "Keys N and P: next and previous frame" },
    few ? buttons : [element("label", {}, title, list), stepping(-1, "Previous"), stepping(1, "Next"), element("label", {}, fullest, " Most boxes first")]);
  update();
  document.addEventListener("keydown", function pressed(event) {
    if (!node.isConnected) { document.removeEventListener("keydown", pressed); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const by = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (by) { event.preventDefault(); step(by); }
  });
  return { node, update };
}

const boxes = (count) => `${count} ${count === 1 ? "box" : "boxes"}`;
