// Outlines of the findings' masks on a slice.

/** The outlines of the labels on a slice, as a Path2D. `labels` is on the scan's own grid; `volume`, the viewer's, is a
 *  part of it, possibly with larger voxels. [sx, sy, dx, dy] maps the viewer's voxels to the canvas. */
export function outline(labels, volume, slice, [sx, sy, dx, dy]) {
  const [width, height, depth] = labels.size;
  const first = labels.toIndex(volume.toLps([0, 0, slice]));
  const k = Math.min(Math.max(Math.round(first[2]), 0), depth - 1);
  const plane = labels.voxels.subarray(k * width * height, (k + 1) * width * height);
  const toCanvas = (u, v) => [
    (((u - first[0]) * labels.spacing[0]) / volume.spacing[0] + 0.5) * sx + dx,
    (((v - first[1]) * labels.spacing[1]) / volume.spacing[1] + 0.5) * sy + dy,
  ];
  const path = new Path2D();
  const line = (from, to) => { path.moveTo(...toCanvas(...from)); path.lineTo(...toCanvas(...to)); };
  for (let n = 0; n < plane.length; n++) {
    if (!plane[n]) continue;
    const [i, j] = [n % width, Math.floor(n / width)];
    const [left, right, up, down] = [i - 0.5, i + 0.5, j - 0.5, j + 0.5];
    if (!i || plane[n - 1] !== plane[n]) line([left, up], [left, down]);
    if (i === width - 1 || plane[n + 1] !== plane[n]) line([right, up], [right, down]);
    if (!j || plane[n - width] !== plane[n]) line([left, up], [right, up]);
    if (j === height - 1 || plane[n + width] !== plane[n]) line([left, down], [right, down]);
  }
  return path;
}
