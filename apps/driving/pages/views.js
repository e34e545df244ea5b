// The flat views: boxes over an image, and boxes and points seen from above. Canvas only, no WebGL.
const COLOURS = { car: "#ff9f1c", van: "#ffd166", truck: "#ffd166", bus: "#ffd166", pedestrian: "#2ec4b6", cyclist: "#e056fd", bicycle: "#e056fd", motorcycle: "#e056fd" };
const OTHER = "#8ecae6";
const TRUTH = "rgb(255 255 255 / .75)";
const MAX_RANGE_M = 75;

export const colourOf = (name) => COLOURS[name] ?? OTHER;

export function drawImage(canvas, image, camera, state) {
  canvas.width = camera.width;
  canvas.height = camera.height;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, camera.width, camera.height);
  // Image pixels per screen pixel: six cameras side by side are drawn at a quarter of their size.
  const pixel = camera.width / (canvas.clientWidth || camera.width);
  const line = Math.max(camera.width / 600, 1.5 * pixel);
  if (state.truth) {
    pen.setLineDash([4 * line, 3 * line]);
    for (const box of state.frame.truth) edges(pen, box, camera, TRUTH, line * 0.7);
    pen.setLineDash([]);
  }
  state.frame.boxes.forEach((box, index) => {
    if (index !== state.chosen) edges(pen, box, camera, colourOf(box.class), line);
  });
  const chosen = state.frame.boxes[state.chosen];
  if (!chosen) return;
  edges(pen, chosen, camera, "#000000", line * 2.4);
  edges(pen, chosen, camera, "#ffffff", line * 1.2);
  const extent = extentOf(chosen, camera);
  if (!extent) return;
  const text = `${chosen.class}${chosen.score === null ? "" : ` ${chosen.score.toFixed(2)}`} · ${chosen.distance_m.toFixed(1)} m`;
  const fontSize = Math.max(camera.width / 75, 13 * pixel);
  pen.font = `600 ${Math.round(fontSize)}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + 10;
  const height = 1.4 * fontSize;
  const x = Math.min(Math.max(extent[0], 0), camera.width - width);
  const y = Math.max(extent[1] - height - 4, 0);
  pen.fillStyle = "rgb(0 0 0 / .75)";
  pen.fillRect(x, y, width, height);
  pen.fillStyle = "#ffffff";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 5, y + height / 2);
}

function edges(pen, box, camera, colour, width) {
  const lines = box.edges_px[camera.name];
  if (!lines) return;
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = "round";
  pen.beginPath();
  for (const [x1, y1, x2, y2] of lines) { pen.moveTo(x1, y1); pen.lineTo(x2, y2); }
  pen.stroke();
}

function extentOf(box, camera) {
  const lines = box.edges_px[camera.name];
  if (!lines) return null;
  const x = lines.flatMap((edge) => [edge[0], edge[2]]);
  const y = lines.flatMap((edge) => [edge[1], edge[3]]);
  return [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)];
}

/** The box under the pointer, the smallest if there are several; -1 for none. */
export function pickImage(canvas, camera, state, event) {
  const [x, y] = canvasPosition(canvas, event);
  let best = -1;
  let area = Infinity;
  state.frame.boxes.forEach((box, index) => {
    const extent = extentOf(box, camera);
    if (!extent || x < extent[0] || y < extent[1] || x > extent[2] || y > extent[3]) return;
    const size = (extent[2] - extent[0]) * (extent[3] - extent[1]);
    if (size < area) { area = size; best = index; }
  });
  return best;
}

// The view from above: up is forward. KITTI labels only what is ahead, so a frame with one forward camera shows only that.
function viewOf(state) {
  const allRound = state.frame.cameras.length !== 1 || state.frame.all_round;
  const { boxes } = state.whole;
  const farthest = Math.max(30, ...boxes.map((box) => Math.hypot(box.centre_lidar_m[0], box.centre_lidar_m[1]) + 6));
  const range = Math.min(farthest, MAX_RANGE_M);
  const lateral = allRound ? range : Math.min(range, Math.max(18, ...boxes.map((box) => Math.abs(box.centre_lidar_m[1]) + 5)));
  const width = 900;
  const scale = width / (2 * lateral);
  const height = Math.min(Math.round(allRound ? width : (range + 5) * scale), 1100);
  const fitted = Math.min(scale, height / (allRound ? 2 * range : range + 5));
  const { zoom, ahead, left } = state.plan;
  const middle = allRound ? 0 : height / (2 * fitted) - 4;
  return { width, height, scale: fitted * zoom, x0: width / 2 + left * fitted * zoom, y0: height / 2 + (middle + ahead) * fitted * zoom };
}

export const initialPlan = () => ({ zoom: 1, ahead: 0, left: 0 });

/** Pans or zooms the view from above by a key; returns whether it handled the key. */
export function movePlan(state, key) {
  const view = viewOf(state);
  const step = view.height / view.scale / 10;
  const plan = state.plan;
  if (key === "ArrowUp") plan.ahead += step;
  else if (key === "ArrowDown") plan.ahead -= step;
  else if (key === "ArrowLeft") plan.left += step;
  else if (key === "ArrowRight") plan.left -= step;
  else if (key === "+" || key === "=") plan.zoom = Math.min(plan.zoom * 1.25, 20);
  else if (key === "-") plan.zoom = Math.max(plan.zoom / 1.25, 0.5);
  else if (key === "Home") state.plan = initialPlan();
  else return false;
  return true;
}

/** Pans the view from above by dragging, and zooms it by the wheel around the pointer if it has the focus; returns a
 *  function that says whether the last pointer action was a drag rather than a click. */
export function dragPlan(canvas, state, moved) {
  let from = null;
  let dragged = false;
  canvas.addEventListener("pointerdown", (event) => { from = event.button === 0 && event.pointerType === "mouse" ? canvasPosition(canvas, event) : null; dragged = false; });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !(event.buttons & 1)) return;
    const here = canvasPosition(canvas, event);
    if (!dragged && Math.hypot(here[0] - from[0], here[1] - from[1]) < 6) return;
    const { scale } = viewOf(state);
    state.plan.left += (here[0] - from[0]) / scale;
    state.plan.ahead += (here[1] - from[1]) / scale;
    [from, dragged] = [here, true];
    moved();
  });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return;
    event.preventDefault();
    const [column, row] = canvasPosition(canvas, event);
    const before = viewOf(state);
    const plan = state.plan;
    plan.zoom = Math.min(Math.max(plan.zoom * 1.25 ** (-event.deltaY / 100), 0.5), 20);
    const { scale } = viewOf(state);
    // The point under the pointer stays in place.
    plan.left += (column - before.width / 2) * (1 / scale - 1 / before.scale);
    plan.ahead += (row - before.height / 2) * (1 / scale - 1 / before.scale);
    moved();
  }, { passive: false });
  return () => dragged;
}

/** The corners of a box's bottom face, front left first, in the same order as in boxes.json. */
function baseOf({ centre_lidar_m: [x, y], size_m: [length, width], yaw }) {
  const [c, s] = [Math.cos(yaw), Math.sin(yaw)];
  return [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([ahead, left]) => [x + (c * ahead * length - s * left * width) / 2, y + (s * ahead * length + c * left * width) / 2]);
}

const toCanvas = (view, x, y) => [view.x0 - y * view.scale, view.y0 - x * view.scale];

export function drawPlan(canvas, points, state) {
  const view = viewOf(state);
  canvas.width = view.width;
  canvas.height = view.height;
  const pen = canvas.getContext("2d");
  pen.putImageData(scatter(pen, points ?? [], view), 0, 0);
  pen.strokeStyle = "#2c3a48";
  pen.fillStyle = "#8296a8";
  pen.font = "20px system-ui, sans-serif";
  pen.lineWidth = 1.5;
  for (let ring = 20; ring <= 100; ring += 20) {
    pen.beginPath();
    pen.arc(view.x0, view.y0, ring * view.scale, 0, 2 * Math.PI);
    pen.stroke();
    pen.fillText(`${ring} m`, view.x0 + 6, view.y0 - ring * view.scale - 5);
  }
  outline(pen, view, [[2.2, 0], [1.5, 0.9], [-2.5, 0.9], [-2.5, -0.9], [1.5, -0.9]], "#ffffff", 2);
  state.frame.boxes.forEach((box, index) => {
    const chosen = index === state.chosen;
    const base = box.corners_lidar_m.slice(0, 4);
    if (chosen) outline(pen, view, base, "#ffffff", 7);
    outline(pen, view, base, colourOf(box.class), chosen ? 4 : 3);
    const front = [(base[0][0] + base[3][0]) / 2, (base[0][1] + base[3][1]) / 2];
    outline(pen, view, [box.centre_lidar_m, front], chosen ? "#ffffff" : colourOf(box.class), 3);
  });
  for (const missed of state.missed ?? []) outline(pen, view, baseOf(missed), "#7dff9b", 3);
  if (state.point) {
    const [column, row] = toCanvas(view, ...state.point);
    outline(pen, view, [[state.point[0] - 9 / view.scale, state.point[1]], [state.point[0] + 9 / view.scale, state.point[1]]], "#7dff9b", 2);
    pen.strokeRect(column - 9, row, 18, 0);
  }
  // Drawn last, because boxes would cover the labels that they match.
  if (state.truth) for (const box of state.frame.truth) label(pen, view, box.corners_lidar_m.slice(0, 4));
}

/** The outline of a label: white dashes on black, visible on boxes and on points. */
function label(pen, view, corners) {
  outline(pen, view, corners, "rgb(0 0 0 / .8)", 5);
  pen.setLineDash([8, 6]);
  outline(pen, view, corners, "#ffffff", 3);
  pen.setLineDash([]);
}

function scatter(pen, points, view) {
  const image = pen.createImageData(view.width, view.height);
  new Uint32Array(image.data.buffer).fill(0xff1d1610);
  for (let i = 0; i < points.length; i += 4) {
    const column = Math.round(view.x0 - points[i + 1] * view.scale);
    const row = Math.round(view.y0 - points[i] * view.scale);
    if (column < 0 || row < 0 || column >= view.width - 1 || row >= view.height - 1) continue;
    const fraction = Math.min(Math.max((points[i + 2] + 2) / 4, 0), 1);
    const colour = [60 + 140 * fraction, 100 + 100 * fraction, 150 + 40 * fraction];
    for (const [dx, dy] of [[0, 0], [1, 0], [0, 1], [1, 1]]) image.data.set(colour, 4 * ((row + dy) * view.width + column + dx));
  }
  return image;
}

function outline(pen, view, corners, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.beginPath();
  corners.forEach(([x, y], index) => { if (index) pen.lineTo(...toCanvas(view, x, y)); else pen.moveTo(...toCanvas(view, x, y)); });
  pen.closePath();
  pen.stroke();
}

/** The position under the pointer in the view from above: metres ahead and to the left. */
export function pointPlan(canvas, state, event) {
  const view = viewOf(state);
  const [column, row] = canvasPosition(canvas, event);
  return [(view.y0 - row) / view.scale, (view.x0 - column) / view.scale];
}

export function pickPlan(canvas, state, event) {
  const [x, y] = pointPlan(canvas, state, event);
  const distances = state.frame.boxes.map((box) => {
    const dx = x - box.centre_lidar_m[0];
    const dy = y - box.centre_lidar_m[1];
    return Math.hypot(dx, dy) - box.size_m[0] / 2;
  });
  const nearest = distances.indexOf(Math.min(...distances));
  return nearest >= 0 && distances[nearest] < 1.5 ? nearest : -1;
}

function canvasPosition(canvas, event) {
  const frame = canvas.getBoundingClientRect();
  return [((event.clientX - frame.left) * canvas.width) / frame.width, ((event.clientY - frame.top) * canvas.height) / frame.height];
}
