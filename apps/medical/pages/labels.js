// Where labels of marks stand, so that none covers another.

/** Rectangles { x, y } (left, baseline) for labels of `width` beside circles { x, y, radius, width }, in their order: the
 *  first has the first choice. `height` is a line's, `most` [width, height] of the canvas. */
export function placeLabels(marks, height, most) {
  const taken = [];
  return marks.map((mark) => {
    const beside = 0.75 * mark.radius + 3;
    const right = mark.x + beside;
    const left = mark.x - beside - mark.width;
    // At the right edge of the image a label stands to the left of its mark.
    const sides = right + mark.width > most[0] ? [left, right] : [right, left];
    const rows = [-0.75 * mark.radius, 0.75 * mark.radius + height];
    const choices = rows.flatMap((row) => sides.map((x) => ({ x, y: mark.y + row })));
    for (let step = 1; step <= 12; step++) {
      for (const row of [rows[1] + step * height, rows[0] - step * height]) choices.push({ x: sides[0], y: mark.y + row });
    }
    const inside = ({ y }) => y >= height && y <= most[1];
    const free = (place) => taken.every((other) => apart(place, mark.width, other, height));
    const place = choices.find((one) => inside(one) && free(one)) ?? choices[0];
    taken.push({ ...place, width: mark.width });
    return place;
  });
}

function apart(place, width, other, height) {
  return place.x + width < other.x || other.x + other.width < place.x || Math.abs(place.y - other.y) >= height;
}
