// Axial slices on a canvas, with the findings circled. Needs no WebGL.
import { element } from "../shared/case.js";
import { placeLabels } from "./labels.js";
import { outline } from "./outline.js";
import { position, sideOf } from "./volume.js";

export const WINDOWS = { Lung: [-600, 1500], Mediastinum: [40, 400], Bone: [400, 1800] };
const SIGNS = { accepted: " ✓", rejected: " ✗" };
const ZOOM = 3;
const NOTCH_PX = 50;

/** A viewer of `volume` with `findings` (result.json's); `whole` is the scan's geometry, `name(k)` what its slice k is
 *  called, `order()` the findings as they are listed, `missed()` nodules that a reader added, `labels()` fetches the
 *  findings' voxels, where there are some, `verdict(finding)` is what the reader said of one; `keys` are further keys, and without `keyboard` there are none, `onPoint()` hears of a cross or a measured line,
 *  `onSlice()` of another slice.
 *  Returns { node, show(finding), draw(), look(lps), pointed(), chosen(), clear(), slice(), go(slice) }. */
export function sliceViewer(volume, whole, findings, { name, order = () => findings, missed = () => [], labels = null, verdict = null, keys: more = {}, keyboard = true, onFinding = () => {}, onPoint = () => {}, onSlice = () => {} }) {
  const [width, height, depth] = volume.size;
  const marks = findings.map((finding) => ({ finding, at: volume.toIndex(finding.centre_lps_mm), ...extent(volume, finding) }));
  const state = { slice: Math.floor(depth / 2), window: "Lung", own: null, zoom: false, centre: [width / 2, height / 2], chosen: null, cross: null, ruler: null, labels: null, called: "" };
  // Radiologists look from the feet: the patient's right is on the left of the picture, the front at the top.
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
    element("button", { type: "button", title: `level ${level}, width ${wide} HU`, onclick: () => choose(name) }, name));
  const zoom = element("button", { type: "button", title: "Key Z", onclick: () => toggleZoom() }, "Zoom");

  const outlines = labels && element("button", { type: "button", title: "The voxels that were measured. Key O", "aria-pressed": "false", onclick: () => toggleOutlines() }, "Outline");

  /** Level and width in HU: those of the window that was chosen, or that the right button dragged to. */
  const window = () => state.own ?? WINDOWS[state.window];

  function choose(name) {
    [state.window, state.own] = [name, null];
    draw();
  }

  function slab() {
    const [level, wide] = window();
    const low = level - wide / 2;
    const plane = volume.voxels.subarray(state.slice * width * height, (state.slice + 1) * width * height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let n = 0; n < plane.length; n++) {
      const grey = Math.max(0, Math.min(255, ((plane[n] - low) * 255 / wide) | 0));
      words[n] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    sheet.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** Pixels of the canvas for a voxel: [scale x, scale y, shift x, shift y]. */
  function placement() {
    const fit = Math.min(canvas.width / extentMm[0], canvas.height / extentMm[1]) * (state.zoom ? ZOOM : 1);
    const scale = [fit * volume.spacing[0] * (flip[0] ? -1 : 1), fit * volume.spacing[1] * (flip[1] ? -1 : 1)];
    const centre = state.zoom ? state.centre : [width / 2, height / 2];
    return [...scale, canvas.width / 2 - centre[0] * scale[0], canvas.height / 2 - centre[1] * scale[1]];
  }

  function draw() {
    slab();
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
    labels.forEach((one, n) => outlined(pen, unit, one.text, places[n].x, places[n].y, one.colour));
    for (const one of missed()) {
      const [i, j, k] = volume.toIndex(one.centre_lps_mm);
      if (Math.abs(k - state.slice) * volume.spacing[2] > Math.max(one.diameter_mm / 2, volume.spacing[2] / 2)) continue;
      pen.strokeStyle = "#7dff9b";
      pen.lineWidth = 2 * unit;
      pen.beginPath();
      pen.arc((i + 0.5) * sx + dx, (j + 0.5) * sy + dy, Math.max(one.diameter_mm / 2 * Math.abs(sx) / volume.spacing[0] + 5 * unit, 10 * unit), 0, 2 * Math.PI);
      pen.stroke();
    }
    crosshair(pen, unit, [sx, sy, dx, dy]);
    ruler(pen, unit, [sx, sy, dx, dy]);
    letters(pen, unit);
    const corner = volume.toLps([0, 0, state.slice]);
    const called = name(Math.min(whole.size[2] - 1, Math.max(0, Math.round(whole.toIndex(corner)[2]))));
    const middle = volume.toLps([(width - 1) / 2, (height - 1) / 2, state.slice]);
    state.called = called;
    const hint = called.startsWith("image") ? " (instance number)" : "";
    label.textContent = `${called[0].toUpperCase()}${called.slice(1)}${hint} · ${position(middle).split(", ")[2]}`;
    const [level, wide] = window();
    const windowed = state.own ? `window level ${level}, width ${wide} HU` : `${state.window.toLowerCase()} window`;
    canvas.setAttribute("aria-label", `Axial CT, ${called}, ${windowed}`);
    outlined(pen, unit, `L ${level}  W ${wide}`, 8 * unit, canvas.height - 8 * unit, "#fff");
    readout.textContent = words();
    slider.value = state.slice;
    windows.forEach((button, n) => button.setAttribute("aria-pressed", String(!state.own && Object.keys(WINDOWS)[n] === state.window)));
    zoom.setAttribute("aria-pressed", String(state.zoom));
  }

  /** What was pointed at or measured, in words; else which finding the keys are about, its slice where that is not the one shown; also with the list out of sight. */
  function words() {
    if (state.ruler) return `${length(state.ruler).toFixed(1)} mm measured`;
    if (!state.cross && verdict && state.chosen) {
      const there = name(state.chosen.slice - 1);
      return `Finding ${state.chosen.rank}${there === state.called ? "" : ` in ${there}`}: ${verdict(state.chosen) ?? "undecided"}`;
    }
    if (!state.cross) return "";
    const [i, j, k] = state.cross.map(Math.round);
    return `${volume.voxels[(k * height + j) * width + i]} HU at ${position(volume.toLps(state.cross))}`;
  }

  function length([from, to]) {
    return Math.hypot((to[0] - from[0]) * volume.spacing[0], (to[1] - from[1]) * volume.spacing[1]);
  }

  function crosshair(pen, unit, [sx, sy, dx, dy]) {
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

  function ruler(pen, unit, [sx, sy, dx, dy]) {
    if (!state.ruler) return;
    const [a, b] = state.ruler.map(([i, j]) => [(i + 0.5) * sx + dx, (j + 0.5) * sy + dy]);
    pen.strokeStyle = "#7dff9b";
    pen.lineWidth = 2 * unit;
    pen.beginPath();
    pen.moveTo(...a);
    pen.lineTo(...b);
    pen.stroke();
    const text = `${length(state.ruler).toFixed(1)} mm`;
    const across = pen.measureText(text).width + 6 * unit;
    const [x, y] = [Math.min(b[0] + 6 * unit, canvas.width - across), Math.max(b[1] - 6 * unit, 18 * unit)];
    outlined(pen, unit, text, x, y, "#7dff9b");
  }

  function outlined(pen, unit, text, x, y, colour) {
    pen.lineWidth = 4 * unit;
    pen.strokeStyle = "#000";
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }

  function letters(pen, unit) {
    const turned = (axis, flipped) => (flipped ? axis.map((v) => -v) : axis);
    const across = turned(volume.axes[0], flip[0]);
    const down = turned(volume.axes[1], flip[1]);
    const back = (axis) => axis.map((v) => -v);
    const write = (text, x, y) => outlined(pen, unit, text, x, y, "#fff");
    write(sideOf(back(across)), 8 * unit, canvas.height / 2);
    write(sideOf(across), canvas.width - 20 * unit, canvas.height / 2);
    write(sideOf(back(down)), canvas.width / 2, 20 * unit);
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
    const on = outlines.getAttribute("aria-pressed") !== "true";
    outlines.setAttribute("aria-pressed", String(on));
    try {
      const voxels = on ? await (fetched ??= labels()) : null;
      if (on === (outlines.getAttribute("aria-pressed") === "true")) state.labels = voxels;
    } catch (error) {
      console.error(error);
      fetched = null;
      outlines.setAttribute("aria-pressed", "false");
      readout.textContent = `The outlines cannot be shown: ${error.message}.`;
      return;
    }
    draw();
  }

  function show(finding) {
    const mark = marks.find((one) => one.finding === finding);
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

  const moves = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  const keys = { Home: () => go(0), End: () => go(depth - 1), z: toggleZoom, o: toggleOutlines, n: () => step(1), p: () => step(-1), Escape: clear, ...more };
  document.addEventListener("keydown", function pressed(event) {
    if (!node.isConnected) { document.removeEventListener("keydown", pressed); return; }
    if (!keyboard || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTaken(event, slider, canvas)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in moves) go(state.slice + moves[key]);
    else if (key in keys) keys[key]();
    else if (key in { 1: 0, 2: 0, 3: 0 }) choose(Object.keys(WINDOWS)[key - 1]); else return;
    event.preventDefault();
  });
  let turned = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    // A notch of a wheel is a slice; a touchpad tells small steps, which are summed up.
    turned = event.deltaMode || Math.abs(event.deltaY) >= NOTCH_PX ? Math.sign(event.deltaY) * NOTCH_PX : turned + event.deltaY;
    if (Math.abs(turned) < NOTCH_PX) return;
    go(state.slice - Math.sign(turned));
    turned = 0;
  }, { passive: false });
  function clear() {
    state.cross = state.ruler = null;
    draw();
    onPoint();
  }

  /** Shows a place of the scan with the cross on it. */
  function look(lps) {
    const [i, j, k] = volume.toIndex(lps);
    state.centre = [i, j];
    state.cross = [i, j, Math.max(0, Math.min(depth - 1, Math.round(k)))];
    go(state.cross[2]);
  }

  /** Where a reader points: at the cross, or at the middle of the line that was measured, whose length is the diameter. */
  function marked() {
    if (state.ruler) {
      const [[i, j], [x, y]] = state.ruler;
      return { lps: volume.toLps([(i + x) / 2, (j + y) / 2, state.slice]), diameter_mm: length(state.ruler) };
    }
    return state.cross && { lps: volume.toLps(state.cross), diameter_mm: null };
  }

  /** The voxel under the pointer, in fractions; null beside the image. */
  function pointed(event) {
    const box = canvas.getBoundingClientRect();
    const shown = Math.min(box.width / canvas.width, box.height / canvas.height);
    const [sx, sy, dx, dy] = placement();
    const i = ((event.clientX - box.x - (box.width - canvas.width * shown) / 2) / shown - dx) / sx - 0.5;
    const j = ((event.clientY - box.y - (box.height - canvas.height * shown) / 2) / shown - dy) / sy - 0.5;
    return i < -0.5 || j < -0.5 || i >= width - 0.5 || j >= height - 0.5 ? null : [i, j];
  }

  let pressed = null;
  let windowing = null;   // where the right button was pressed, and the window then
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    windowing = event.button === 2 ? [event.clientX, event.clientY, ...window()] : null;
    if (windowing) canvas.setPointerCapture(event.pointerId);
    pressed = event.button === 0 ? pointed(event) : null;
    if (pressed) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (windowing) {
      const [x, y, level, wide] = windowing;
      // To the right is wider, down is darker, as in other viewers; faster where the window is wide.
      const step = Math.max(wide / 400, 0.5);
      state.own = [Math.round(level + (event.clientY - y) * step), Math.max(1, Math.round(wide + 2 * (event.clientX - x) * step))];
      draw();
      return;
    }
    const at = pointed(event);
    if (pressed && at && length([pressed, at]) > 1.5) {
      state.ruler = [pressed, at];
      draw();
    } else if (!pressed && !state.ruler && !state.cross) {
      const near = at?.map(Math.round);
      readout.textContent = near ? `${volume.voxels[(state.slice * height + near[1]) * width + near[0]]} HU at ${position(volume.toLps([...near, state.slice]))}` : words();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = pointed(event);
    if (pressed && at && !(state.ruler && length([pressed, at]) > 1.5)) {
      state.ruler = null;
      state.cross = [...at, state.slice];
      draw();
    }
    if (pressed) onPoint();
    pressed = windowing = null;
  });
  canvas.addEventListener("pointerleave", () => { readout.textContent = words(); });
  slider.addEventListener("input", () => go(Number(slider.value)));
  new ResizeObserver(() => draw()).observe(canvas);

  const node = element("div", { class: "slices" },
    element("div", { class: "bar", role: "group", "aria-label": "Window" }, ...windows, zoom, outlines, label),
    element("div", { class: "bar" }, readout),
    canvas,
    element("div", { class: "bar" }, slider),
    element("p", { class: "small" }, keyboard ? `Scroll or ↑ ↓: slices. N, P: next and previous finding. Z: zoom.${labels ? " O: outlines." : ""} 1, 2, 3: window.${more.a ? " A, R: accept or reject the finding. M: add a missed one." : ""} Click: place a cross and read its position; drag: measure; Esc: neither. Right-drag: level and width.` : "Scroll: slices. Click: place a cross and read its position; drag: measure. Right-drag: level and width."));
  return { node, show, draw, look, clear, pointed: marked, chosen: () => state.chosen, slice: () => state.slice, go };
}

/** Whether a key belongs to what has the focus: a field takes all, the slider its own, and the page scrolls by pages. */
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
