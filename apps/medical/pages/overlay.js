// What is drawn over a slice: the cross, the measured line and the letters of the patient's sides. `unit` is 1/720 of the
// picture's width; [sx, sy, dx, dy] maps voxels to pixels of the canvas.
import { sideOf } from "./volume.js";

const COLOUR = "#7dff9b";

export function outlinedText(pen, unit, text, x, y, colour) {
  pen.lineWidth = 4 * unit;
  pen.strokeStyle = "#000";
  pen.strokeText(text, x, y);
  pen.fillStyle = colour;
  pen.fillText(text, x, y);
}

export function drawCrosshair(pen, unit, [sx, sy, dx, dy], [i, j]) {
  const [x, y] = [(i + 0.5) * sx + dx, (j + 0.5) * sy + dy];
  const { width, height } = pen.canvas;
  const gap = 12 * unit;
  pen.strokeStyle = COLOUR;
  pen.lineWidth = unit;
  pen.beginPath();
  for (const [x1, y1, x2, y2] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
  }
  pen.stroke();
}

/** The line between two positions, with `text` at its second end. */
export function drawRuler(pen, unit, [sx, sy, dx, dy], ends, text) {
  const [a, b] = ends.map(([i, j]) => [(i + 0.5) * sx + dx, (j + 0.5) * sy + dy]);
  pen.strokeStyle = COLOUR;
  pen.lineWidth = 2 * unit;
  pen.beginPath();
  pen.moveTo(...a);
  pen.lineTo(...b);
  pen.stroke();
  const textWidth = pen.measureText(text).width + 6 * unit;
  const [x, y] = [Math.min(b[0] + 6 * unit, pen.canvas.width - textWidth), Math.max(b[1] - 6 * unit, 18 * unit)];
  outlinedText(pen, unit, text, x, y, COLOUR);
}

/** The sides to which the picture's edges point. `right` and `down` are directions on the picture (LPS). */
export function drawSideLetters(pen, unit, right, down) {
  const opposite = (axis) => axis.map((v) => -v);
  const { width, height } = pen.canvas;
  const write = (text, x, y) => outlinedText(pen, unit, text, x, y, "#fff");
  write(sideOf(opposite(right)), 8 * unit, height / 2);
  write(sideOf(right), width - 20 * unit, height / 2);
  write(sideOf(opposite(down)), width / 2, 20 * unit);
  write(sideOf(down), width / 2, height - 8 * unit);
}
