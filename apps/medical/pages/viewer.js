// Axial slices on a canvas, with the findings circled. Needs no WebGL.
import { element } from "../shared/case.js";
import { placeLabels } from "./labels.js";
import { outline } from "./outline.js";
import { drawCrosshair, drawRuler, drawSideLetters, outlinedText } from "./overlay.js";
import { onShortcut, shortcutSwitch } from "../shared/shortcuts.js";
import { position } from "./volume.js";

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
 *  Returns { node, show(finding), step(by), draw(), look(lps), pointed(), chosen(), clear(), slice(), go(slice) }. */
export function sliceViewer(volume, whole, findings, { name, order = () => findings, missed = () => [], labels = null, verdict = null, keys: moreKeys = {}, keyboard = true, onFinding = () => {}, onPoint = () => {}, onSlice = () => {} }) {
  const [width, height, depth] = volume.size;
  const marks = findings.map((finding) => ({ finding, at: volume.toIndex(finding.centre_lps_mm), ...extent(volume, finding) }));
  const state = { slice: Math.floor(depth / 2), window: "Lung", own: null, zoom: false, centre: [width / 2, height / 2], chosen: null, cross: null, ruler: null, measuring: false, from: null, labels: null, sliceName: "" };
  // Radiological orientation: the patient's right is on the left of the picture, the front at the top.
  const flip = [volume.axes[0][0] < -0.5, volume.axes[1][1] < -0.5];

  const pixels = new ImageData(width, height);
  const sheet = new OffscreenCanvas(width, height);
  const extentMm = [width * volume.spacing[0], height * volume.spacing[1]];
  const canvas = element("canvas", keyboard ? { tabindex: "0", role: "application", "aria-describedby": "slice-keys" } : { role: "img" });
  canvas.style.aspectRatio = `${extentMm[0]} / ${extentMm[1]}`;
  const slider = element("input", { type: "range", min: 0, max: depth - 1, step: 1, "aria-label": "Slice" });
  const label = element("output", {});
  const readout = element("output", {});
  const windowField = (name, attributes) => element("input", { type: "number", step: 10, "aria-label": `${name} of the window in HU`, onchange: () => setWindow(), ...attributes });
  const [levelField, widthField] = [windowField("Level", {}), windowField("Width", { min: 1 })];
  const windows = Object.entries(WINDOWS).map(([name, [level, wide]]) =>
    element("button", { type: "button", title: `level ${level}, width ${wide} HU`, onclick: () => chooseWindow(name) }, name));
  const zoom = element("button", { type: "button", title: "Key Z", onclick: () => toggleZoom() }, "Zoom");
  const measure = element("button", { type: "button", title: "The distance between two points. Key L", "aria-pressed": "false", onclick: () => toggleMeasure() }, "Measure");
  const outlines = labels && element("button", { type: "button", title: "Show the measured voxels. Key O", "aria-pressed": "false", onclick: () => toggleOutlines() }, "Outline");

  /** The window's level and width in HU: those of the preset, or those entered or set by dragging with the right button. */
  const window = () => state.own ?? WINDOWS[state.window];

  function chooseWindow(name) {
    [state.window, state.own] = [name, null];
    draw();
  }

  function setWindow() {
    if (levelField.value && widthField.value) state.own = [Math.round(Number(levelField.value)), Math.max(1, Math.round(Number(widthField.value)))];
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
    const onPicture = (isFlipped, n) => volume.axes[n].map((v) => (isFlipped ? -v : v));
    if (state.cross && Math.round(state.cross[2]) === state.slice) drawCrosshair(pen, unit, [sx, sy, dx, dy], state.cross);
    if (state.ruler) drawRuler(pen, unit, [sx, sy, dx, dy], state.ruler, `${length(state.ruler).toFixed(1)} mm`);
    drawSideLetters(pen, unit, ...flip.map(onPicture));
    const corner = volume.toLps([0, 0, state.slice]);
    const sliceName = name(Math.min(whole.size[2] - 1, Math.max(0, Math.round(whole.toIndex(corner)[2]))));
    const middle = volume.toLps([(width - 1) / 2, (height - 1) / 2, state.slice]);
    state.sliceName = sliceName;
    const hint = sliceName.startsWith("image") ? " (instance number)" : "";
    announce(label, `${sliceName[0].toUpperCase()}${sliceName.slice(1)}${hint} · ${position(middle).split(", ")[2]}`);
    const [level, wide] = window();
    const windowText = state.own ? `window level ${level}, width ${wide} HU` : `${state.window.toLowerCase()} window`;
    canvas.setAttribute("aria-label", `Axial CT, ${sliceName}, ${windowText}`);
    outlinedText(pen, unit, `L ${level}  W ${wide}`, 8 * unit, canvas.height - 8 * unit, "#fff");
    [levelField.value, widthField.value] = [level, wide];
    announce(readout, readoutText());
    slider.value = state.slice;
    slider.setAttribute("aria-valuetext", sliceName);
    measure.setAttribute("aria-pressed", String(state.measuring));
    windows.forEach((button, n) => button.setAttribute("aria-pressed", String(!state.own && Object.keys(WINDOWS)[n] === state.window)));
    zoom.setAttribute("aria-pressed", String(state.zoom));
  }

  /** Sets the text of a live region, which is read out: not if it is unchanged, and not what is under the pointer. */
  function announce(region, text, live = "polite") {
    region.setAttribute("aria-live", live);
    if (region.textContent !== text) region.textContent = text;
  }

  /** The measured length, or the value and position at the cross; else the finding that the keys act on and its verdict, with its slice if another is shown. */
  function readoutText() {
    if (state.ruler) return `${length(state.ruler).toFixed(1)} mm measured`;
    if (state.measuring) return `Measure: click ${state.from ? "the other end, or use Shift + arrow keys" : "one end"}`;
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

  /** Starts measuring, at the cross if there is one on the slice; the second time it ends, and the measured line stays. */
  function toggleMeasure() {
    const cross = state.cross && Math.round(state.cross[2]) === state.slice ? state.cross.slice(0, 2) : null;
    state.measuring = !state.measuring || Boolean(cross && !state.from);
    state.from = state.measuring ? cross : null;
    if (state.measuring) state.ruler = null;
    draw();
    onPoint();
  }

  /** Places the cross or, while measuring, the ends of the line. */
  function place(at) {
    const from = state.from;
    Object.assign(state, from ? { ruler: [from, at], cross: null, from: null, measuring: false } : { ruler: null, cross: [...at, state.slice], from: state.measuring ? at : null });
    draw();
  }

  function go(slice) {
    state.slice = Math.max(0, Math.min(depth - 1, slice));
    state.ruler = state.from = null;
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
      announce(readout, `The outlines cannot be displayed: ${error.message}.`);
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

  /** Moves the cross by `by` voxels to the right and down on the picture; the first time it is placed in the middle. While
   *  measuring, moves the second end of the line. */
  function moveCross([right, down], by) {
    const last = [width - 1, height - 1];
    const moved = state.from ? state.ruler?.[1] ?? state.from : state.cross;
    const start = moved ?? (state.zoom ? state.centre : [width / 2, height / 2]);
    const steps = moved ? [flip[0] ? -right : right, flip[1] ? -down : down] : [0, 0];
    const at = [0, 1].map((axis) => Math.max(0, Math.min(last[axis], Math.round(start[axis]) + by * steps[axis])));
    Object.assign(state, state.from ? { ruler: [state.from, at] } : { ruler: null, cross: [...at, state.slice] });
    draw();
    onPoint();
  }

  const crossSteps = { ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0] };
  const sliceSteps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  const keys = { Home: () => go(0), End: () => go(depth - 1), z: toggleZoom, o: toggleOutlines, l: toggleMeasure, n: () => step(1), p: () => step(-1), Escape: clear, ...moreKeys };
  const press = (event) => {
    // The slider handles its own keys, and the page scrolls by page keys.
    if (event.target === slider ? event.key.length > 1 : event.target !== canvas && /^(Page|Home|End)/.test(event.key)) return false;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.shiftKey && key in crossSteps) moveCross(crossSteps[key], event.repeat ? HELD_STEP : 1);
    else if (key in sliceSteps) go(state.slice + sliceSteps[key]);
    else if (key in keys) keys[key]();
    else if (key in { 1: 0, 2: 0, 3: 0 }) chooseWindow(Object.keys(WINDOWS)[key - 1]);
    else return false;
    return true;
  };
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
    state.cross = state.ruler = state.from = null;
    state.measuring = false;
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
      Object.assign(state, { ruler: [pressed, at], from: null, measuring: false });
      draw();
    } else if (!pressed && !state.ruler && !state.cross && !state.measuring) {
      const nearest = at?.map(Math.round);
      announce(readout, nearest ? `${volume.voxels[(state.slice * height + nearest[1]) * width + nearest[0]]} HU at ${position(volume.toLps([...nearest, state.slice]))}` : readoutText(), "off");
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = voxelAt(event);
    if (pressed && at && !(state.ruler && length([pressed, at]) > 1.5)) place(at);
    if (pressed) onPoint();
    pressed = windowing = null;
  });
  canvas.addEventListener("pointerleave", () => announce(readout, readoutText(), "off"));
  slider.addEventListener("input", () => go(Number(slider.value)));
  new ResizeObserver(() => draw()).observe(canvas);

  const keyHints = `Scroll or ↑ ↓: slices. N, P: next and previous finding. Z: zoom.${labels ? " O: outlines." : ""} 1, 2, 3: window.${moreKeys.a ? " A, R: accept or reject the finding. M: add a missed one." : ""} Click or Shift + arrow keys: place a cross and read its position; drag or L: measure; Esc: clear both. Right-drag: level and width.`;
  const node = element("div", { class: "slices" },
    element("div", { class: "bar", role: "group", "aria-label": "Window and tools" }, ...windows, zoom, outlines, measure, label),
    element("div", { class: "bar" }, readout, element("span", { class: "window" }, "Level ", levelField, " Width ", widthField)),
    canvas,
    element("div", { class: "bar" }, slider),
    element("p", { class: "small" }, element("span", { id: keyboard ? "slice-keys" : null }, keyboard ? keyHints : "Scroll: slices. Click: place a cross and read its position; drag: measure. Right-drag: level and width."), keyboard ? [" ", shortcutSwitch()] : null));
  if (keyboard) onShortcut(node, press);
  return { node, show, step, draw, look, clear, pointed: marked, chosen: () => state.chosen, slice: () => state.slice, go };
}

/** The slices that a finding's box touches. */
function extent(volume, finding) {
  const box = finding.box_lps_mm;
  const ends = [volume.toIndex(box.slice(0, 3))[2], volume.toIndex(box.slice(3))[2]];
  const centre = volume.toIndex(finding.centre_lps_mm)[2];
  return { first: Math.min(Math.floor(Math.min(...ends) + 0.5), Math.round(centre)), last: Math.max(Math.ceil(Math.max(...ends) - 0.5), Math.round(centre)) };
}
