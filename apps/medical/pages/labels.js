// Positions of the marks' labels, so that they do not overlap.

/** Positions { x, y } (left, baseline) of the labels of circles { x, y, radius, width }, where `width` is the label's.
 *  Earlier marks have priority. `height` is the height of a line, `canvasSize` [width, height]. */
export function placeLabels(marks, height, canvasSize) {
  const placed = [];
  return marks.map((mark) => {
    const offset = 0.75 * mark.radius + 3;
    const right = mark.x + offset;
    const left = mark.x - offset - mark.width;
    // A label that would cross the right edge of the image goes to the left of its mark.
    const sides = right + mark.width > canvasSize[0] ? [left, right] : [right, left];
    const rows = [-0.75 * mark.radius, 0.75 * mark.radius + height];
    const choices = rows.flatMap((row) => sides.map((x) => ({ x, y: mark.y + row })));
    for (let step = 1; step <= 12; step++) {
      for (const row of [rows[1] + step * height, rows[0] - step * height]) choices.push({ x: sides[0], y: mark.y + row });
    }
    const isInside = ({ y }) => y >= height && y <= canvasSize[1];
    const isFree = (position) => placed.every((other) => areApart(position, mark.width, other, height));
    const position = choices.find((choice) => isInside(choice) && isFree(choice)) ?? choices[0];
    placed.push({ ...position, width: mark.width });
    return position;
  });
}

function areApart(position, width, other, height) {
  return position.x + width < other.x || other.x + other.width < position.x || Math.abs(position.y - other.y) >= height;
}
