// Axial slices on a canvas, with the findings circled. Needs no WebGL.
import { element } from "../shared/case.js";
import { placeLabels } from "./labels.js";
import { outline } from "./outline.js";
import { position, sideOf } from "./volume.js";

export const WINDOWS = { Lung: [-600, 1500], Mediastinum: [40, 400], Bone: [400, 1800] };
const SIGNS = { accepted: " ✓", rejected: " ✗" };
const ZOOM = 3;
const NOTCH_PX = 50;
const HELD_STEP = 4;   // voxels that the cross moves for each repeat of a key that is held down

/** A viewer of `volume` with `findings` (of result.json). `whole` is the geometry of the scan.
 *
 *  `name(k)` returns the name of the scan's slice k, `order()` the findings in the order of the list, `missed()` the
 *  nodules that a reader added, `verdict(finding)` the reader's verdict. `labels()`, if given, fetches the label map of
 *  the findings. `keys` maps further keys to functions; with `keyboard: false` no keys are handled. `onFinding(finding)`
 *  is called when a finding is shown, `onPoint()` when the cross or the measured line changes, `onSlice()` when the slice
 *  changes.
 *  Returns { node, show(finding), draw(), look(lps), pointed(), chosen(), clear(), slice(), go(slice) }. */
export function sliceViewer(volume, whole, findings, { name, order = () => findings, missed = () => [], labels = null, verdict = null, keys: moreKeys = {}, keyboard = true, onFinding = () => {}, onPoint = () => {}, onSlice = () => {} }) {
  const [width, height, depth] = volume.size;
  const marks = findings.map((finding) => ({ finding, at: volume.toIndex(finding.centre_lps_mm), ...extent(volume, finding) }));
  const state = { slice: Math.floor(depth / 2), window: "Lung", own: null, zoom: false, centre: [width / 2, height / 2], chosen: null, cross: null, ruler: null, labels: null, sliceName: "" };
  // Radiological orientation: the patient's right is on the left of the picture, the front at the top.
  const flip = [volume.axes[0][0] < -0.5, volume.axes[1][1] < -0.5];

  const pixels = new ImageData(width, height);
  const sheet = new OffscreenCanvas(width, height);
  const extentMm = [width * volume.spacing[0], height * volume.spacing[1]];
  const canvas = element("canvas", { tabindex: "0", role: "img", "aria-label": "Axial CT slice" });
  canvas.style.aspectRatio = `${extentMm[0]} / ${extentMm[1]}`;
  const slider = element("input", { type: "range", min: 0, max: depth - 1, step: 1, "aria-label": "Slice" });
  const label = element("output", {});
  const readout = element("output", { "aria-live": "off" });
  const windows = Object.entries(WINDOWS).map(([name, [level, wide]]) =>
    element("button", { type: "button", title: `level ${level}, width ${wide} HU`, onclick: () => chooseWindow(name) }, name));
  const zoom = element("button", { type: "button", title: "Key Z", onclick: () => toggleZoom() }, "Zoom");

  const outlines = labels && element("button", { type: "button", title: "Show the measured voxels. Key O", "aria-pressed": "false", onclick: () => toggleOutlines() }, "Outline");

  /** The window's level and width in HU: those of the preset, or those set by dragging with the right button. */
  const window = () => state.own ?? WINDOWS[state.window];

  function chooseWindow(name) {
    [state.window, state.own] = [name, null];
    draw();
  }

  /** Draws the current slice, windowed, onto `sheet`. */
  function drawSlice() {
    const [level, wide] = window();
    const low = level - wide / 2;
    const plane = volume.voxels.subarray(state.slice * width * height, (state.slice + 1) * width * height);
    const rgba = new Uint32Array(pixels.data.buffer);
    for (let n = 0; n < plane.length; n++) {
      const grey = Math.max(0, Math.min(255, ((plane[n] - low) * 255 / wide) | 0));
      rgba[n] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    sheet.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** The mapping from voxels to canvas pixels: [scale x, scale y, shift x, shift y]. */
  function placement() {
    const fit = Math.min(canvas.width / extentMm[0], canvas.height / extentMm[1]) * (state.zoom ? ZOOM : 1);
    const scale = [fit * volume.spacing[0] * (flip[0] ? -1 : 1), fit * volume.spacing[1] * (flip[1] ? -1 : 1)];
    const centre = state.zoom ? state.centre : [width / 2, height / 2];
    return [...scale, canvas.width / 2 - centre[0] * scale[0], canvas.height / 2 - centre[1] * scale[1]];
  }

  function draw() {
    drawSlice();
    const side = Math.round(canvas.clientWidth * devicePixelRatio) || 720;
    if (canvas.width !== side) {
      canvas.width = side;
      canvas.height = Math.round((side * extentMm[1]) / extentMm[0]);
    }
    const pen = canvas.getContext("2d");
    const [sx, sy, dx, dy] = placement();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.setTransform(sx, 0, 0, sy, dx, dy);
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(sheet, 0, 0);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const unit = canvas.width / 720;
    if (state.labels) {
      pen.strokeStyle = "#ff6f91";
      pen.lineWidth = unit;
      pen.stroke(outline(state.labels, volume, state.slice, [sx, sy, dx, dy]));
    }
    pen.font = `600 ${16 * unit}px system-ui, sans-serif`;
    const shown = marks.filter((mark) => state.slice >= mark.first && state.slice <= mark.last);
    const labels = [];
    for (const mark of shown) {
      const x = (mark.at[0] + 0.5) * sx + dx;
      const y = (mark.at[1] + 0.5) * sy + dy;
      const radius = Math.max(mark.finding.mean_diameter_mm / 2 * Math.abs(sx) / volume.spacing[0] + 5 * unit, 10 * unit);
      pen.strokeStyle = pen.fillStyle = mark.finding === state.chosen ? "#ffcf33" : "#6fd3ff";
      pen.lineWidth = 2 * unit;
      pen.setLineDash(mark.finding.above_operating_score ? [] : [5 * unit, 4 * unit]);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.stroke();
      pen.setLineDash([]);
      const text = `${mark.finding.rank}${SIGNS[verdict?.(mark.finding)] ?? ""}  ${mark.finding.mean_diameter_mm.toFixed(1)} mm`;
      labels.push({ text, x, y, radius, width: pen.measureText(text).width, colour: pen.fillStyle, chosen: mark.finding === state.chosen });
    }
    labels.sort((a, b) => b.chosen - a.chosen);
    const places = placeLabels(labels, 18 * unit, [canvas.width, canvas.height]);
    labels.forEach((label, n) => outlinedText(pen, unit, label.text, places[n].x, places[n].y, label.colour));
    for (const nodule of missed()) {
      const [i, j, k] = volume.toIndex(nodule.centre_lps_mm);
      if (Math.abs(k - state.slice) * volume.spacing[2] > Math.max(nodule.diameter_mm / 2, volume.spacing[2] / 2)) continue;
      pen.strokeStyle = "#7dff9b";
      pen.lineWidth = 2 * unit;
      pen.beginPath();
      pen.arc((i + 0.5) * sx + dx, (j + 0.5) * sy + dy, Math.max(nodule.diameter_mm / 2 * Math.abs(sx) / volume.spacing[0] + 5 * unit, 10 * unit), 0, 2 * Math.PI);
      pen.stroke();
    }
    drawCrosshair(pen, unit, [sx, sy, dx, dy]);
    drawRuler(pen, unit, [sx, sy, dx, dy]);
    drawSideLetters(pen, unit);
    const corner = volume.toLps([0, 0, state.slice]);
    const sliceName = name(Math.min(whole.size[2] - 1, Math.max(0, Math.round(whole.toIndex(corner)[2]))));
    const middle = volume.toLps([(width - 1) / 2, (height - 1) / 2, state.slice]);
    state.sliceName = sliceName;
    const hint = sliceName.startsWith("image") ? " (instance number)" : "";
    label.textContent = `${sliceName[0].toUpperCase()}${sliceName.slice(1)}${hint} · ${position(middle).split(", ")[2]}`;
    const [level, wide] = window();
    const windowText = state.own ? `window level ${level}, width ${wide} HU` : `${state.window.toLowerCase()} window`;
    canvas.setAttribute("aria-label", `Axial CT, ${sliceName}, ${windowText}`);
    outlinedText(pen, unit, `L ${level}  W ${wide}`, 8 * unit, canvas.height - 8 * unit, "#fff");
    readout.textContent = readoutText();
    slider.value = state.slice;
    windows.forEach((button, n) => button.setAttribute("aria-pressed", String(!state.own && Object.keys(WINDOWS)[n] === state.window)));
    zoom.setAttribute("aria-pressed", String(state.zoom));
  }

  /** The measured length, or the value and position at the cross; else the finding that the keys act on and its verdict, with its slice if another is shown. */
  function readoutText() {
    if (state.ruler) return `${length(state.ruler).toFixed(1)} mm measured`;
    if (!state.cross && verdict && state.chosen) {
      const findingSlice = name(state.chosen.slice - 1);
      return `Finding ${state.chosen.rank}${findingSlice === state.sliceName ? "" : ` in ${findingSlice}`}: ${verdict(state.chosen) ?? "undecided"}`;
    }
    if (!state.cross) return "";
    const [i, j, k] = state.cross.map(Math.round);
    return `${volume.voxels[(k * height + j) * width + i]} HU at ${position(volume.toLps(state.cross))}`;
  }

  function length([from, to]) {
    return Math.hypot((to[0] - from[0]) * volume.spacing[0], (to[1] - from[1]) * volume.spacing[1]);
  }

  function drawCrosshair(pen, unit, [sx, sy, dx, dy]) {
    if (!state.cross || Math.round(state.cross[2]) !== state.slice) return;
    const [x, y] = [(state.cross[0] + 0.5) * sx + dx, (state.cross[1] + 0.5) * sy + dy];
    const gap = 12 * unit;
    pen.strokeStyle = "#7dff9b";
    pen.lineWidth = unit;
    pen.beginPath();
    for (const [x1, y1, x2, y2] of [[0, y, x - gap, y], [x + gap, y, canvas.width, y], [x, 0, x, y - gap], [x, y + gap, x, canvas.height]]) {
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
    }
    pen.stroke();
  }

  function drawRuler(pen, unit, [sx, sy, dx, dy]) {
    if (!state.ruler) return;
    const [a, b] = state.ruler.map(([i, j]) => [(i + 0.5) * sx + dx, (j + 0.5) * sy + dy]);
    pen.strokeStyle = "#7dff9b";
    pen.lineWidth = 2 * unit;
    pen.beginPath();
    pen.moveTo(...a);
    pen.lineTo(...b);
    pen.stroke();
    const text = `${length(state.ruler).toFixed(1)} mm`;
    const textWidth = pen.measureText(text).width + 6 * unit;
    const [x, y] = [Math.min(b[0] + 6 * unit, canvas.width - textWidth), Math.max(b[1] - 6 * unit, 18 * unit)];
    outlinedText(pen, unit, text, x, y, "#7dff9b");
  }

  function outlinedText(pen, unit, text, x, y, colour) {
    pen.lineWidth = 4 * unit;
    pen.strokeStyle = "#000";
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }

  function drawSideLetters(pen, unit) {
    const opposite = (axis) => axis.map((v) => -v);
    const right = flip[0] ? opposite(volume.axes[0]) : volume.axes[0];
    const down = flip[1] ? opposite(volume.axes[1]) : volume.axes[1];
    const write = (text, x, y) => outlinedText(pen, unit, text, x, y, "#fff");
    write(sideOf(opposite(right)), 8 * unit, canvas.height / 2);
    write(sideOf(right), canvas.width - 20 * unit, canvas.height / 2);
    write(sideOf(opposite(down)), canvas.width / 2, 20 * unit);
    write(sideOf(down), canvas.width / 2, canvas.height - 8 * unit);
  }

  function go(slice) {
    state.slice = Math.max(0, Math.min(depth - 1, slice));
    state.ruler = null;
    draw();
    onPoint();
    onSlice();
  }

  function toggleZoom() {
    state.zoom = !state.zoom;
    if (state.cross) state.centre = state.cross.slice(0, 2);
    draw();
  }

  let fetched = null;
  async function toggleOutlines() {
    if (!labels) return;
    const isOn = outlines.getAttribute("aria-pressed") !== "true";
    outlines.setAttribute("aria-pressed", String(isOn));
    try {
      const voxels = isOn ? await (fetched ??= labels()) : null;
      if (isOn === (outlines.getAttribute("aria-pressed") === "true")) state.labels = voxels;
    } catch (error) {
      console.error(error);
      fetched = null;
      outlines.setAttribute("aria-pressed", "false");
      readout.textContent = `The outlines cannot be displayed: ${error.message}.`;
      return;
    }
    draw();
  }

  function show(finding) {
    const mark = marks.find((candidate) => candidate.finding === finding);
    state.chosen = finding;
    state.cross = null;
    state.centre = mark.at.slice(0, 2);
    onFinding(finding);
    go(Math.round(mark.at[2]));
  }

  function step(by) {
    const listed = order();
    if (!listed.length) return;
    show(listed[(listed.indexOf(state.chosen) + by + listed.length) % listed.length]);
  }

  /** Moves the cross by `by` voxels to the right and down on the picture; the first time it is placed in the middle. */
  function moveCross([right, down], by) {
    const last = [width - 1, height - 1];
    const from = state.cross ?? (state.zoom ? state.centre : [width / 2, height / 2]);
    const steps = state.cross ? [flip[0] ? -right : right, flip[1] ? -down : down] : [0, 0];
    state.ruler = null;
    state.cross = [...[0, 1].map((axis) => Math.max(0, Math.min(last[axis], Math.round(from[axis]) + by * steps[axis]))), state.slice];
    draw();
    onPoint();
  }

  const crossSteps = { ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0] };
  const sliceSteps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  const keys = { Home: () => go(0), End: () => go(depth - 1), z: toggleZoom, o: toggleOutlines, n: () => step(1), p: () => step(-1), Escape: clear, ...moreKeys };
  document.addEventListener("keydown", function pressed(event) {
    if (!node.isConnected) { document.removeEventListener("keydown", pressed); return; }
    if (!keyboard || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTaken(event, slider, canvas)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.shiftKey && key in crossSteps) moveCross(crossSteps[key], event.repeat ? HELD_STEP : 1);
    else if (key in sliceSteps) go(state.slice + sliceSteps[key]);
    else if (key in keys) keys[key]();
    else if (key in { 1: 0, 2: 0, 3: 0 }) chooseWindow(Object.keys(WINDOWS)[key - 1]); else return;
    event.preventDefault();
  });
  let scrolled = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    // One notch of a wheel is one slice; a touchpad sends small steps, which are summed.
    scrolled = event.deltaMode || Math.abs(event.deltaY) >= NOTCH_PX ? Math.sign(event.deltaY) * NOTCH_PX : scrolled + event.deltaY;
    if (Math.abs(scrolled) < NOTCH_PX) return;
    go(state.slice - Math.sign(scrolled));
    scrolled = 0;
  }, { passive: false });
  function clear() {
    state.cross = state.ruler = null;
    draw();
    onPoint();
  }

  /** Shows a position in the scan with the cross on it. */
  function look(lps) {
    const [i, j, k] = volume.toIndex(lps);
    state.centre = [i, j];
    state.cross = [i, j, Math.max(0, Math.min(depth - 1, Math.round(k)))];
    go(state.cross[2]);
  }

  /** The position of the cross, or the middle of the measured line with its length as the diameter; null without either. */
  function marked() {
    if (state.ruler) {
      const [[i, j], [x, y]] = state.ruler;
      return { lps: volume.toLps([(i + x) / 2, (j + y) / 2, state.slice]), diameter_mm: length(state.ruler) };
    }
    return state.cross && { lps: volume.toLps(state.cross), diameter_mm: null };
  }

  /** The fractional voxel index under the pointer; null outside the image. */
  function voxelAt(event) {
    const box = canvas.getBoundingClientRect();
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    const [sx, sy, dx, dy] = placement();
    const i = ((event.clientX - box.x - (box.width - canvas.width * scale) / 2) / scale - dx) / sx - 0.5;
    const j = ((event.clientY - box.y - (box.height - canvas.height * scale) / 2) / scale - dy) / sy - 0.5;
    return i < -0.5 || j < -0.5 || i >= width - 0.5 || j >= height - 0.5 ? null : [i, j];
  }

  let pressed = null;
  let windowing = null;   // the pointer position and the window when the right button was pressed
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    windowing = event.button === 2 ? [event.clientX, event.clientY, ...window()] : null;
    if (windowing) canvas.setPointerCapture(event.pointerId);
    pressed = event.button === 0 ? voxelAt(event) : null;
    if (pressed) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (windowing) {
      const [x, y, level, wide] = windowing;
      // As in other viewers, dragging right widens the window and dragging down darkens it; wide windows change faster.
      const step = Math.max(wide / 400, 0.5);
      state.own = [Math.round(level + (event.clientY - y) * step), Math.max(1, Math.round(wide + 2 * (event.clientX - x) * step))];
      draw();
      return;
    }
    const at = voxelAt(event);
    if (pressed && at && length([pressed, at]) > 1.5) {
      state.ruler = [pressed, at];
      draw();
    } else if (!pressed && !state.ruler && !state.cross) {
      const nearest = at?.map(Math.round);
      readout.textContent = nearest ? `${volume.voxels[(state.slice * height + nearest[1]) * width + nearest[0]]} HU at ${position(volume.toLps([...nearest, state.slice]))}` : readoutText();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = voxelAt(event);
    if (pressed && at && !(state.ruler && length([pressed, at]) > 1.5)) {
      state.ruler = null;
      state.cross = [...at, state.slice];
      draw();
    }
    if (pressed) onPoint();
    pressed = windowing = null;
  });
  canvas.addEventListener("pointerleave", () => { readout.textContent = readoutText(); });
  slider.addEventListener("input", () => go(Number(slider.value)));
  new ResizeObserver(() => draw()).observe(canvas);

  const node = element("div", { class: "slices" },
    element("div", { class: "bar", role: "group", "aria-label": "Window" }, ...windows, zoom, outlines, label),
    element("div", { class: "bar" }, readout),
    canvas,
    element("div", { class: "bar" }, slider),
    element("p", { class: "small" }, keyboard ? `Scroll or ↑ ↓: slices. N, P: next and previous finding. Z: zoom.${labels ? " O: outlines." : ""} 1, 2, 3: window.${moreKeys.a ? " A, R: accept or reject the finding. M: add a missed one." : ""} Click or Shift + arrow keys: place a cross and read its position; drag: measure; Esc: clear both. Right-drag: level and width.` : "Scroll: slices. Click: place a cross and read its position; drag: measure. Right-drag: level and width."));
  return { node, show, draw, look, clear, pointed: marked, chosen: () => state.chosen, slice: () => state.slice, go };
}

/** Whether the focused element handles the key itself: fields handle all keys, the slider its own, and the page scrolls by page keys. */
function isTaken(event, slider, canvas) {
  if (event.target === canvas) return false;
  if (event.target === slider) return event.key.length > 1;
  return event.target.matches("input:not([type=checkbox]), select, textarea, [contenteditable]") || /^(Page|Home|End)/.test(event.key);
}

/** The slices that a finding's box touches. */
function extent(volume, finding) {
  const box = finding.box_lps_mm;
  const ends = [volume.toIndex(box.slice(0, 3))[2], volume.toIndex(box.slice(3))[2]];
  const centre = volume.toIndex(finding.centre_lps_mm)[2];
  return { first: Math.min(Math.floor(Math.min(...ends) + 0.5), Math.round(centre)), last: Math.max(Math.ceil(Math.max(...ends) - 0.5), Math.round(centre)) };
}
