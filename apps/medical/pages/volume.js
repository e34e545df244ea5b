// A NIfTI-1 volume (int16 or uint8, gzip) and its geometry, in the DICOM patient frame LPS, in mm.

/** Fetches and decompresses a .nii.gz of int16 or uint8. `progress(fraction)` is called while it arrives, if its size is known. */
export async function loadVolume(url, progress = () => {}) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the slices could not be fetched (${response.status})`);
  const sizeBytes = Number(response.headers.get("Content-Length"));
  let receivedBytes = 0;
  const counter = new TransformStream({ transform(chunk, controller) {
    receivedBytes += chunk.length;
    if (sizeBytes) progress(receivedBytes / sizeBytes);
    controller.enqueue(chunk);
  } });
  const bytes = await new Response(response.body.pipeThrough(counter).pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const header = new DataView(bytes);
  const type = { 2: Uint8Array, 4: Int16Array }[header.getInt16(70, true)];
  if (!type) throw new Error("the slices are neither int16 nor uint8");
  const size = [42, 44, 46].map((offset) => header.getInt16(offset, true));
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

/** The geometry of the whole scan, from `volume` of result.json. */
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

/** A position in the notation of radiologists: each distance from the origin with the letter of its side (L, R, P, A, H, F). */
export function position(lps) {
  return lps.map((v) => Number(v.toFixed(1))).map((v, n) => `${["LR", "PA", "HF"][n][v < 0 ? 1 : 0]} ${Math.abs(v).toFixed(1)}`).join(", ") + " mm";
}

/** The letter of the patient's side that a direction points to: L, R, P, A, H or F. */
export function sideOf(direction) {
  const n = direction.map(Math.abs).indexOf(Math.max(...direction.map(Math.abs)));
  return ["LR", "PA", "HF"][n][direction[n] > 0 ? 0 : 1];
}

/** The name of a slice (from 0): by the DICOM instance number, which a PACS displays, if `volume` (of result.json) has it. */
export function sliceName(volume, k) {
  const count = volume.size_ijk[2];
  const numbers = volume.instance_numbers;
  if (!numbers) return `slice ${k + 1} of ${count}${volume.source === "file" ? " in the file" : ""}`;
  const isComplete = Math.min(...numbers) === 1 && Math.max(...numbers) === count;
  return `image ${numbers[k]}${isComplete ? ` of ${count}` : ""}`;
}
