// Building blocks of a page: elements, tables, and the files and the picture of a case.

/** Creates an element: element("td", { class: "number" }, "12.5"). Text is never parsed as HTML. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Replaces the items of a list. The keyboard's focus stays at its place in the list, or moves to `next` if no item is left. */
export function replaceItems(list, items, next) {
  const focused = document.activeElement;
  const place = [...list.children].findIndex((item) => item.contains(focused));
  const position = place < 0 ? -1 : [...list.children[place].querySelectorAll("button")].indexOf(focused);
  list.replaceChildren(...items);
  if (place < 0) return;
  const buttons = items[Math.min(place, items.length - 1)]?.querySelectorAll("button") ?? [];
  (buttons[position] ?? buttons[0] ?? next).focus();
}

/** Hides or disables a button, by the attribute `how`. If it has the keyboard's focus, that moves to `next`. */
export function withhold(button, how, on, next) {
  if (on && button.contains(document.activeElement)) next.focus();
  button[how] = on;
}

/** A table in a scrollable frame. Cells are texts, numbers or elements; numbers are right-aligned. */
export function table(columns, rows, caption = "") {
  const cell = (value) => element("td", typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : String(value ?? ""));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "Table" },
    element("table", {},
      caption ? element("caption", {}, caption) : null,
      element("thead", {}, element("tr", {}, columns.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell))))));
}

/** The files of a case as a list of links. */
export function downloads(answer, heading = "Files") {
  return element("section", { class: "downloads" },
    element("h2", {}, heading),
    element("ul", {}, Object.entries(answer.files).map(([name, url]) => element("li", {}, element("a", { href: url, download: name }, name)))));
}

/** The picture of a case. */
export function picture(answer, description) {
  return element("img", { class: "picture", src: answer.picture, alt: description });
}
