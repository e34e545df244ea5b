// Reviews a frame: verdicts on its boxes, and missed objects, which are placed by a click in the view from above.
import { element, replaceItems, withhold } from "../shared/case.js";
import { verdictBoxes } from "../shared/review.js";

// Also the classes of a frame that does not name those of its network, such as one of an earlier version.
const DEFAULT_SIZES = { car: [4.2, 1.8, 1.5], pedestrian: [0.8, 0.6, 1.75], cyclist: [1.8, 0.6, 1.75] };
const GROUND_M = -1.7;   // height of the ground relative to the LiDAR if the frame has no boxes to estimate it from

/**
 * The review of one `frame` of boxes.json; `state.frame` has the boxes that are shown. `changed()` is called when the
 * drawing changes: `state.missed`, and `state.point`, the position [x, y] in metres at which an object is being added.
 * `cell(box)` is the node with the verdict on a box.
 */
export function frameReview(review, frame, state, changed) {
  const verdicts = new Map(frame.boxes.map((box) => [box, verdictBoxes(review, box.number, `${box.class.replaceAll("_", " ")} at ${box.distance_m.toFixed(1)} m`)]));
  const bottoms = frame.boxes.map((box) => box.centre_lidar_m[2] - box.size_m[2] / 2).sort((a, b) => a - b);
  const number = (label, value, step, attributes = {}) => {
    const input = element("input", { type: "number", step, value, oninput: () => updateAdd(), ...attributes });
    return [input, element("label", {}, `${label} `, input)];
  };
  const known = frame.classes ?? {};
  const sizes = { ...known, ...DEFAULT_SIZES };
  const names = [...new Set([...frame.boxes.map((box) => box.class), ...Object.keys(Object.keys(known).length ? known : DEFAULT_SIZES)])];
  const name = element("select", { "aria-label": "Class of the missed object", onchange: () => setSize() }, names.map((option) => element("option", { value: option }, option.replaceAll("_", " "))));
  const [ahead, aheadLabel] = number("Ahead, m", "", 0.1);
  const [left, leftLabel] = number("Left, m", "", 0.1);
  const [bottom, bottomLabel] = number("Bottom, m", (bottoms[Math.floor(bottoms.length / 2)] ?? GROUND_M).toFixed(1), 0.1);
  const sides = ["Length, m", "Width, m", "Height, m"].map((label) => number(label, "", 0.1, { min: 0.1, max: 100 }));
  const [heading, headingLabel] = number("Heading, °", 0, 5);
  const add = element("button", { type: "button", disabled: true, onclick: () => addMissed() }, "Add");
  const missedList = element("ul", { "aria-label": "Missed objects" });
  const others = element("button", { type: "button", title: "Accept each shown box of this frame that has no verdict", onclick: () => review.acceptOthers(state.frame.boxes.map((box) => box.number)) }, "Accept the others");
  const summary = element("summary", {}, "Missed an object?");
  const adding = element("details", { class: "adding" }, summary,
    element("p", { class: "small" }, "Click its position in the view from above, or enter it. Metres from the LiDAR; the heading is counter-clockwise from straight ahead."),
    element("div", { class: "controls" }, element("label", {}, "Class ", name), aheadLabel, leftLabel, bottomLabel, ...sides.map(([, label]) => label), headingLabel, add));

  /** Sets the size for the class: the mean of its boxes in the frame, else a default, else that of the network's class; if
   *  it has none, the fields are empty and must be filled in. */
  function setSize() {
    const same = frame.boxes.filter((box) => box.class === name.value);
    const size = same.length ? [0, 1, 2].map((side) => same.reduce((sum, box) => sum + box.size_m[side], 0) / same.length) : sizes[name.value];
    sides.forEach(([input], side) => { input.value = size ? size[side].toFixed(1) : ""; });
    updateAdd();
  }

  /** Enables Add once the object has a position, a heading and a size. */
  function updateAdd() {
    const complete = [ahead, left, bottom, heading].every((field) => field.value !== "");
    withhold(add, "disabled", !complete || sides.some(([input]) => !(Number(input.value) > 0)), name);
  }

  function addMissed() {
    const size = sides.map(([input]) => Number(input.value));
    const [x, y, z, degrees] = [ahead, left, bottom, heading].map((field) => Number(field.value));
    // As the server expects: an angle between -180 and 180 degrees, in radians.
    const yaw = Math.atan2(Math.sin((degrees * Math.PI) / 180), Math.cos((degrees * Math.PI) / 180));
    review.add({ frame: frame.frame, name: name.value.replace(/\s+/g, "_"), centre_lidar_m: [x, y, z + size[2] / 2].map((v) => Number(v.toFixed(3))), size_m: size, yaw: Number(yaw.toFixed(4)) });
    ahead.value = left.value = "";
    point(null);
  }

  function point(position) {
    state.point = position;
    if (position) [ahead.value, left.value, adding.open] = [position[0].toFixed(1), position[1].toFixed(1), true];
    updateAdd();
    changed();
  }

  function update() {
    for (const verdict of verdicts.values()) verdict.update();
    state.missed = review.state.missed.filter((missed) => missed.frame === frame.frame);
    replaceItems(missedList, state.missed.map((missed) => element("li", {},
      element("button", { type: "button", onclick: () => review.remove(missed), "aria-label": `Remove the missed ${missed.name.replaceAll("_", " ")}, ${Math.hypot(...missed.centre_lidar_m.slice(0, 2)).toFixed(1)} m away` }, "−"),
      ` missed: ${missed.name.replaceAll("_", " ")}, ${Math.hypot(...missed.centre_lidar_m.slice(0, 2)).toFixed(1)} m away`)), summary);
    withhold(others, "hidden", !state.frame.boxes.some((box) => review.verdict(box.number) === null), summary);
    changed();
  }

  setSize();
  return {
    node: element("div", { class: "frame-review" }, others, missedList, adding),
    cell: (box) => verdicts.get(box).node,
    /** Handles a key that accepts or rejects the chosen box; returns whether it was such a key. */
    key(letter) {
      const verdict = { a: "accepted", r: "rejected" }[letter];
      const box = state.frame.boxes[state.chosen];
      if (!verdict || !box) return false;
      review.decide(box.number, review.verdict(box.number) === verdict ? null : verdict);
      return true;
    },
    point, update,
  };
}
