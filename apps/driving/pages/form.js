// The form of the driving application: boxes in the image, from above, in the point cloud and in a table, all linked.
import { caseForm, downloads, element, picture } from "../shared/case.js";
import { openReview } from "../shared/review.js";
import { onShortcut, shortcutSwitch } from "../shared/shortcuts.js";
import { viewButtons, viewKeys } from "./controls.js";
import { filterControls, freshChoices, passes } from "./filter.js";
import { frameSwitcher } from "./frames.js";
import { frameReview } from "./review.js";
import { colourOf, dragPlan, drawImage, drawPlan, initialPlan, movePlan, pickImage, pickPlan, pointPlan } from "./views.js";

const numberFormat = new Intl.NumberFormat("en");
let cloud = null;
let shownReview = null;   // the review of the frame that is shown
let requested = null;   // the frame requested last; a frame that finishes loading after another was requested is not shown

caseForm({ render });

async function render(answer) {
  const result = document.querySelector("#result");
  cloud?.dispose();
  cloud = null;
  if (!answer.files["boxes.json"]) {
    result.append(element("h2", {}, "Result"), picture(answer, "Boxes found in the frame"), downloads(answer));
    return;
  }
  const { frames } = await load(answer.files["boxes.json"], "json");
  const stage = element("div");
  const choices = freshChoices();
  // Boxes of cases from earlier versions have no numbers, which a review needs to identify them.
  const numbered = Array.isArray(answer.result.boxes) && frames.every((frame) => frame.boxes.every((box) => box.number));
  shownReview = null;
  choices.review = numbered ? openReview(answer, { changed: () => shownReview?.update() }) : null;
  if (frames.length > 1) {
    const switcher = frameSwitcher(frames, (frame) => show(answer, frame, stage, choices).catch((error) => showError(stage, frame, error)), (box) => passes(box, choices));
    [choices.changed, choices.announce] = [switcher.update, switcher.announce];
    result.append(switcher.node);
  }
  result.append(stage, ...(choices.review ? [choices.review.node] : []), details(answer));
  await show(answer, frames[0], stage, choices);
}

function showError(stage, frame, error) {
  if (frame !== requested) return;
  console.error(error);
  stage.replaceChildren(element("p", { class: "error", role: "alert" }, `The frame ${frame.frame} could not be shown: ${error.message}. Choose it again, or reload the page.`));
}

/** The collapsed part of the page: all files, and the picture for a report. */
function details(answer) {
  return element("details", {}, element("summary", {}, "Files and picture"), downloads(answer, "Files"), picture(answer, "Boxes in the image and from above"));
}

async function show(answer, frame, stage, choices) {
  requested = frame;
  const { model, remarks = [] } = answer.result.frames?.find?.(({ name }) => name === frame.frame) ?? {};
  const version = answer.result.versions?.[model];
  const focused = stage.contains(document.activeElement) ? document.activeElement : null;
  cloud?.dispose();
  cloud = null;
  // The generated sample has exact ground truth, which is shown by default; labels of real frames are shown on request.
  const synthetic = frame.frame === "synthetic";
  const filtered = () => ({ ...frame, boxes: frame.boxes.filter((box) => passes(box, choices)) });
  // `frame` of the state has the filtered boxes, `whole` has all of them.
  const state = { frame: filtered(), whole: frame, chosen: -1, truth: Boolean(frame.truth?.length) && (choices.truth ?? synthetic), plan: initialPlan() };
  const [images, points] = await Promise.all([
    Promise.all(frame.cameras.map((camera) => load(answer.files[camera.file], "image"))),
    frame.points_file ? load(answer.files[frame.points_file], "points") : null,
  ]);
  if (frame !== requested) return;
  const plan = element("canvas", { tabindex: "0", role: "application", "aria-label": "Objects and LiDAR points seen from above. Arrow keys pan, plus and minus zoom, Home resets, Tab steps through the boxes, Escape ends that." });
  const views = images.map((image, index) => ({
    image, camera: frame.cameras[index], canvas: element("canvas", { role: "img", "aria-label": `Camera ${frame.cameras[index].name} with boxes` }),
  }));
  const review = choices.review && frameReview(choices.review, frame, state, () => drawPlan(plan, points, state));
  shownReview = review;
  const list = objectTable(state, choose, review, Boolean(choices.announce));

  function redraw() {
    for (const view of views) drawImage(view.canvas, view.image, view.camera, state);
    drawPlan(plan, points, state);
    cloud?.update(state);
  }

  function choose(index, scroll = false) {
    if (index === state.chosen) return;
    state.chosen = index;
    list.select(index, scroll);
    redraw();
  }

  for (const view of views) choosable(view.canvas, (event) => pickImage(view.canvas, view.camera, state, event), choose);
  const wasDragged = dragPlan(plan, state, () => drawPlan(plan, points, state));
  choosable(plan, (event) => (wasDragged() ? state.chosen : pickPlan(plan, state, event)), choose);
  if (review) plan.addEventListener("click", (event) => { if (!wasDragged() && pickPlan(plan, state, event) < 0) review.point(pointPlan(plan, state, event)); });
  // A and R accept and reject the chosen box.
  if (review) onShortcut(plan, (event) => review.key(event.key.toLowerCase()));
  const planKey = ({ key }) => {
    if (!movePlan(state, key)) return false;
    drawPlan(plan, points, state);
    return true;
  };
  viewKeys(plan, state, choose, planKey);

  const controls = element("div", { class: "controls" });
  if (frame.truth?.length) {
    const checkbox = element("input", { type: "checkbox", checked: state.truth, onchange: () => { state.truth = choices.truth = checkbox.checked; redraw(); } });
    const title = synthetic ? "Synthetic truth" : "Labels that came with the frame";
    controls.append(element("label", {}, checkbox, ` ${title} (${frame.truth.length}, white and dashed)`));
  }
  const filter = filterControls(frame.boxes, choices, () => {
    state.frame = filtered();
    state.chosen = -1;
    choices.changed?.();
    list.fill();
    redraw();
    review?.update();
  });
  if (filter) controls.append(filter);
  const space = element("figure", { class: "figure cloud" });
  stage.replaceChildren(
    element("h2", { class: "found" }, summary(frame)),
    ...remarks.map((text) => element("p", { class: "notice", role: "note" }, text)),
    controls,
    ...(views.length ? [element("div", { class: views.length === 1 ? "cameras one" : "cameras" }, views.map((view) => figure(view.canvas, views.length > 1 ? view.camera.name : null)))] : []),
    element("div", { class: "split" },
      figure(plan, ["From above; up is forward, rings every 20 m. Drag to pan, wheel to zoom once clicked. Keys: arrows, + and −, Home; Tab steps through the boxes, Esc ends that. ", viewButtons("View from above", planKey)]),
      element("div", { class: "objects" }, list.node, model ? element("p", { class: "small" }, `Model: ${model}${version ? ` version ${version}` : ""}.`) : null, review?.node ?? null)),
    ...(points ? [space] : []),
  );
  // N and P are pressed in a view or in the table, whose successor gets the focus.
  if (focused && document.activeElement === document.body) (focused.closest(".objects") ? list.node.firstChild : plan).focus({ preventScroll: true });
  choices.announce?.(`${frame.frame}: ${summary(frame)}`);
  redraw();
  review?.update();
  // Not awaited: a browser may need seconds for it, and the page moves to the result when this function ends.
  if (points) showCloud(space, points, state, choose);
}

/** Hovering a box with a mouse chooses it, and so does a click; a click outside all boxes clears the choice. */
function choosable(canvas, pick, choose) {
  canvas.addEventListener("click", (event) => choose(pick(event), true));
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || event.buttons) return;
    const index = pick(event);
    if (index >= 0) choose(index, true);
  });
}

/** Shows the point cloud if the browser has WebGL; the other views work without it. */
async function showCloud(space, points, state, choose) {
  try {
    const { openCloud } = await import("./cloud.js");
    if (state.whole !== requested) return;
    cloud = openCloud(space, points, state, (index) => choose(index, true));
    viewKeys(cloud.canvas, state, (index) => choose(index, true), cloud.key);
    space.append(element("figcaption", {}, "Point cloud. Drag to rotate, right-drag to pan, wheel to zoom. Keys: arrows, with Shift to pan, + and −, Home; Tab steps through the boxes, Esc ends that. ", viewButtons("Point cloud", cloud.key, true)));
  } catch (error) {
    console.warn("no point cloud:", error);
    space.replaceWith(element("p", { class: "small" }, "This browser cannot show the point cloud in 3D (WebGL is not available). The image and the view from above show the same boxes."));
  }
}

function summary(frame) {
  const counts = new Map();
  for (const box of frame.boxes) counts.set(box.class, (counts.get(box.class) ?? 0) + 1);
  if (!counts.size) return "Nothing was found in this frame.";
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${plural(name, count)}`);
  const nearest = frame.boxes[0];
  return `${parts.join(", ")}. The nearest: a ${nearest.class.replaceAll("_", " ")} at ${nearest.distance_m.toFixed(1)} m.`;
}

const plural = (name, count) => `${name.replaceAll("_", " ")}${count === 1 ? "" : name.endsWith("s") ? "es" : "s"}`;

function figure(canvas, caption) {
  return element("figure", { class: "figure" }, canvas, caption ? element("figcaption", {}, caption) : null);
}

/** The position of a box relative to the LiDAR, in words. */
function bearing([x, y]) {
  return `${Math.abs(x).toFixed(1)} m ${x < 0 ? "behind" : "ahead"}, ${Math.abs(y).toFixed(1)} m to the ${y < 0 ? "right" : "left"}`;
}

/** The table of boxes; hovering or focusing a row highlights its box in every view. `isOneOfMany`: the case has more frames. */
function objectTable(state, choose, review, isOneOfMany) {
  const row = (box, index) => {
    const name = element("button", { type: "button", onfocus: () => choose(index), onclick: () => choose(index) },
      element("span", { class: "swatch", style: `background:${colourOf(box.class)}` }), box.class.replaceAll("_", " "));
    return element("tr", { onmouseenter: () => choose(index), onclick: () => choose(index) },
      element("td", {}, name),
      element("td", { class: "number" }, box.score === null ? "" : box.score.toFixed(2)),
      element("td", { class: "number" }, `${box.distance_m.toFixed(1)} m`),
      element("td", { class: "number nobreak" }, box.size_m.map((side) => side.toFixed(1)).join(" × ")),
      element("td", { class: "number" }, `${Math.round((box.yaw * 180) / Math.PI)}°`),
      review && element("td", {}, review.cell(box)));
  };
  const head = ["Class", "Score", "Distance", "L × W × H, m", "Heading", ...(review ? ["Right?"] : [])];
  const { points, points_drawn: drawn } = state.frame;
  const note = points === null ? "" : drawn < points ? `${numberFormat.format(drawn)} of ${numberFormat.format(points)} LiDAR points are drawn.` : `${numberFormat.format(points)} LiDAR points.`;
  const status = element("p", { class: "small", role: "status" }, "");
  const body = element("tbody", {});
  const frame = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Objects" },
    element("table", {},
      element("thead", {}, element("tr", {}, head.map((text, index) => element("th", { scope: "col", class: index ? "number" : null }, text)))),
      body));
  const node = element("div", {}, frame, status,
    element("p", { class: "small" }, `L × W × H: length, width, height. Heading is counter-clockwise from straight ahead. ${note}`),
    review || isOneOfMany ? element("p", { class: "small" }, `${isOneOfMany ? "N, P: next and previous frame. " : ""}${review ? "A, R: accept or reject the chosen box. " : ""}`, shortcutSwitch()) : null);
  function select(index, scroll) {
    [...body.rows].forEach((row, rowIndex) => row.setAttribute("aria-selected", String(rowIndex === index)));
    const box = state.frame.boxes[index];
    status.textContent = box ? `Chosen: ${box.class.replaceAll("_", " ")}, ${box.distance_m.toFixed(1)} m away (${bearing(box.centre_lidar_m)}), ${index + 1} of ${body.rows.length} by distance.` : "";
    // Scrolls only the table, so that the focused view stays in place.
    if (box && scroll) frame.scrollTop = body.rows[index].offsetTop - frame.clientHeight / 2;
  }
  function fill() {
    body.replaceChildren(...state.frame.boxes.map(row));
    status.textContent = "";
  }
  fill();
  return { node, select, fill };
}

async function load(url, kind) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`a file of the case could not be read (${response.status})`);
  if (kind === "json") return response.json();
  if (kind === "points") return new Float32Array(await response.arrayBuffer());
  return createImageBitmap(await response.blob());
}
