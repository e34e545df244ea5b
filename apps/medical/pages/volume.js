// A NIfTI-1 volume (int16 or uint8, gzip) and its geometry, in the DICOM patient frame LPS, in mm.

/** Fetches and unpacks a .nii.gz of int16 or uint8. */
export async function loadVolume(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the slices could not be fetched (${response.status})`);
  const bytes = await new Response(response.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const header = new DataView(bytes);
  const type = { 2: Uint8Array, 4: Int16Array }[header.getInt16(70, true)];
  if (!type) throw new Error("the slices are neither int16 nor uint8");
  const size = [42, 44, 46].map((at) => header.getInt16(at, true));
  const row = (n) => [0, 1, 2, 3].map((m) => header.getFloat32(280 + 16 * n + 4 * m, true));
  // NIfTI is RAS: x and y change sign.
  const rows = [row(0).map((v) => -v), row(1).map((v) => -v), row(2)];
  const columns = [0, 1, 2].map((m) => rows.map((r) => r[m]));
  const spacing = columns.map((c) => Math.hypot(...c));
  return {
    voxels: new type(bytes, header.getFloat32(108, true), size[0] * size[1] * size[2]),
    ...geometry({ size, spacing, origin: rows.map((r) => r[3]), axes: columns.map((c, m) => c.map((v) => v / spacing[m])) }),
  };
}

/** The geometry that result.json states for the whole scan. */
export function statedGeometry(volume) {
  const axes = [0, 1, 2].map((m) => volume.direction.map((r) => r[m]));
  return geometry({ size: volume.size_ijk, spacing: volume.spacing_mm, origin: volume.origin_lps_mm, axes });
}

function geometry({ size, spacing, origin, axes }) {
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  return {
    size, spacing, origin, axes,
    toIndex: (lps) => axes.map((axis, m) => dot(axis, lps.map((v, n) => v - origin[n])) / spacing[m]),
    toLps: (index) => [0, 1, 2].map((n) => origin[n] + axes.reduce((sum, axis, m) => sum + axis[n] * index[m] * spacing[m], 0)),
  };
}

/** A position as it is read out: each distance with the letter of the side of the origin that it lies on. */
export function position(lps) {
  return lps.map((v) => Number(v.toFixed(1))).map((v, n) => `${["LR", "PA", "HF"][n][v < 0 ? 1 : 0]} ${Math.abs(v).toFixed(1)}`).join(", ") + " mm";
}

/** The letter of the patient's side towards which a direction points: L, R, P, A, H or F. */
export function sideOf(direction) {
  const n = direction.map(Math.abs).indexOf(Math.max(...direction.map(Math.abs)));
  return ["LR", "PA", "HF"][n][direction[n] > 0 ? 0 : 1];
}

/** A slice (from 0) as it is looked up: by DICOM's instance number, which a PACS shows, where `volume` (result.json's) has it. */
export function sliceName(volume, k) {
  const count = volume.size_ijk[2];
  const numbers = volume.instance_numbers;
  if (!numbers) return `slice ${k + 1} of ${count}${volume.source === "file" ? " in the file" : ""}`;
  const whole = Math.min(...numbers) === 1 && Math.max(...numbers) === count;
  return `image ${numbers[k]}${whole ? ` of ${count}` : ""}`;
}
