// The rows that a chart draws: every row in view if possible, and one of every few rows elsewhere in a long series.

const MAX_ROWS = 20000;
const COLUMNS = ["times", "values", "thresholds", "low", "median", "high", "score"];

/** The rows of one series in rows.bin: `rows` rows, after `before` rows of other series. */
export function readRows(buffer, before, rows) {
  const read = (type, place) => new type(buffer, 40 * before + place * rows, rows);
  return {
    times: read(Float64Array, 0), values: read(Float64Array, 8), thresholds: read(Float64Array, 16),
    low: read(Float32Array, 24), median: read(Float32Array, 28), high: read(Float32Array, 32), score: read(Float32Array, 36),
  };
}

/** The index of the first row at or after `time`. */
function firstRow(times, time) {
  let [low, high] = [0, times.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1; else high = middle;
  }
  return low;
}

/**
 * The rows to draw for the view from `min` to `max`: from `rows` those in view and a view's width on either side, from
 * `thinned` the rest. If the former are more than `maxRows`, one of every `every` rows is drawn, that with the highest score.
 */
export function inView(thinned, rows, min, max, maxRows = MAX_ROWS) {
  const from = firstRow(rows.times, min - (max - min));
  const to = firstRow(rows.times, max + (max - min));
  const every = Math.max(1, Math.ceil((to - from) / maxRows));
  const kept = [];
  for (let start = from; start < to; start += every) {
    let best = start;
    for (let row = start + 1; row < Math.min(start + every, to); row++) if (rows.score[row] > rows.score[best]) best = row;
    kept.push(best);
  }
  const [left, right] = [firstRow(thinned.times, rows.times[from]), firstRow(thinned.times, rows.times[to] ?? Infinity)];
  const number = (value) => (Number.isFinite(value) ? value : null);
  const drawn = { every };
  for (const name of COLUMNS) {
    drawn[name] = [...thinned[name].slice(0, left), ...kept.map((row) => number(rows[name][row])), ...thinned[name].slice(right)];
  }
  return drawn;
}
