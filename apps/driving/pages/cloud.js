// The point cloud with its boxes in WebGL. Throws if the browser has no WebGL; the caller then leaves this view out.
import * as THREE from "three";
import { OrbitControls } from "../shared/vendor/three/OrbitControls.js";
import { colourOf } from "./views.js";

const EDGES = [0, 1, 1, 2, 2, 3, 3, 0, 4, 5, 5, 6, 6, 7, 7, 4, 0, 4, 1, 5, 2, 6, 3, 7];

/**
 * Draws into `space`; returns { canvas, update(state), key(event), dispose() }. `choose(index)` is called when a box is
 * clicked; `key` returns whether it handled the key.
 */
export function openCloud(space, points, state, choose) {
  const renderer = new THREE.WebGLRenderer({ antialias: true });
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  space.prepend(renderer.domElement);
  renderer.domElement.tabIndex = 0;
  renderer.domElement.setAttribute("role", "application");
  renderer.domElement.setAttribute("aria-label", "Point cloud with boxes; the table lists the same boxes. Arrow keys rotate, with Shift they pan, plus and minus zoom, Home resets, Tab steps through the boxes, Escape ends that.");
  const scene = new THREE.Scene();
  scene.background = new THREE.Color("#10161d");
  const camera = new THREE.PerspectiveCamera(50, 2, 0.3, 500);
  camera.up.set(0, 0, 1);
  const controls = new OrbitControls(camera, renderer.domElement);
  controls.maxDistance = 250;
  const UP = new THREE.Vector3(0, 0, 1);
  function reset() {
    camera.position.set(-14, 0, 12);
    controls.target.set(14, 0, -1);
    controls.update();
  }
  reset();

  /** Rotates by degrees about the vertical and in elevation, limited to between just above the ground and straight down. */
  function turn(around, over) {
    const arm = camera.position.clone().sub(controls.target);
    arm.applyAxisAngle(UP, THREE.MathUtils.degToRad(around));
    const elevation = Math.asin(arm.z / arm.length());
    const limited = Math.min(Math.max(elevation + THREE.MathUtils.degToRad(over), 0.02), 1.55);
    arm.applyAxisAngle(new THREE.Vector3().crossVectors(arm, UP).normalize(), limited - elevation);
    camera.position.copy(controls.target).add(arm);
  }

  /** Pans along the ground by 8 % of the viewing distance. */
  function move(left, ahead) {
    const arm = controls.target.clone().sub(camera.position);
    const step = arm.length() * 0.08;
    const forward = arm.setZ(0).normalize();
    const shift = forward.clone().multiplyScalar(ahead * step).add(new THREE.Vector3().crossVectors(UP, forward).multiplyScalar(left * step));
    camera.position.add(shift);
    controls.target.add(shift);
  }

  function zoom(factor) {
    const arm = camera.position.clone().sub(controls.target);
    camera.position.copy(controls.target).add(arm.setLength(Math.min(Math.max(arm.length() * factor, 2), controls.maxDistance)));
  }

  const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  function key(event) {
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) move(...arrow);
    else if (arrow) turn(-6 * arrow[0], 6 * arrow[1]);
    else if (event.key === "+" || event.key === "=") zoom(0.8);
    else if (event.key === "-") zoom(1.25);
    else if (event.key === "Home") reset();
    else return false;
    controls.update();
    draw();
    return true;
  }

  const geometry = new THREE.BufferGeometry();
  const count = points.length / 4;
  const positions = new Float32Array(count * 3);
  const colours = new Float32Array(count * 3);
  const colour = new THREE.Color();
  for (let i = 0; i < count; i += 1) {
    positions.set(points.subarray(4 * i, 4 * i + 3), 3 * i);
    const fraction = Math.min(Math.max((points[4 * i + 2] + 2.2) / 4.5, 0), 1);
    colour.setHSL(0.6 - 0.45 * fraction, 0.5, 0.3 + 0.3 * points[4 * i + 3] + 0.2 * fraction);
    colours.set([colour.r, colour.g, colour.b], 3 * i);
  }
  geometry.setAttribute("position", new THREE.BufferAttribute(positions, 3));
  geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
  const dots = new THREE.Points(geometry, new THREE.PointsMaterial({ size: 0.09, vertexColors: true }));
  scene.add(dots);

  let boxes = new THREE.Group();
  const wireframe = (box, tint, opacity = 1) => {
    const shape = new THREE.BufferGeometry();
    shape.setAttribute("position", new THREE.Float32BufferAttribute(EDGES.flatMap((corner) => box.corners_lidar_m[corner]), 3));
    return new THREE.LineSegments(shape, new THREE.LineBasicMaterial({ color: tint, transparent: opacity < 1, opacity }));
  };
  const fill = (box, index, chosen) => {
    const [length, width, height] = box.size_m;
    const body = new THREE.Mesh(
      new THREE.BoxGeometry(length, width, height),
      new THREE.MeshBasicMaterial({ color: chosen ? "#ffffff" : colourOf(box.class), transparent: true, opacity: chosen ? 0.35 : 0.1, depthWrite: false }),
    );
    body.position.set(...box.centre_lidar_m);
    body.rotation.z = box.yaw;
    body.userData.index = index;
    return body;
  };

  function clear() {
    boxes.traverse((item) => { item.geometry?.dispose(); item.material?.dispose(); });
    scene.remove(boxes);
  }

  function update(current) {
    clear();
    boxes = new THREE.Group();
    current.frame.boxes.forEach((box, index) => {
      const chosen = index === current.chosen;
      boxes.add(wireframe(box, chosen ? "#ffffff" : colourOf(box.class)), fill(box, index, chosen));
    });
    if (current.truth) for (const box of current.frame.truth) boxes.add(wireframe(box, "#ffffff", 0.45));
    scene.add(boxes);
    draw();
  }

  const draw = () => renderer.render(scene, camera);
  function fit() {
    const width = space.clientWidth;
    const caption = space.querySelector("figcaption")?.offsetHeight ?? 0;
    const height = Math.max(space.clientHeight - caption, 120);
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    draw();
  }

  const caster = new THREE.Raycaster();
  let pressed = null;
  renderer.domElement.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; });
  renderer.domElement.addEventListener("pointerup", (event) => {
    if (!pressed || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;
    const frame = renderer.domElement.getBoundingClientRect();
    const pointer = new THREE.Vector2(((event.clientX - frame.left) / frame.width) * 2 - 1, 1 - ((event.clientY - frame.top) / frame.height) * 2);
    caster.setFromCamera(pointer, camera);
    const hit = caster.intersectObjects(boxes.children.filter((item) => item.isMesh), false)[0];
    choose(hit ? hit.object.userData.index : -1);
  });
  controls.addEventListener("change", draw);
  const resizeObserver = new ResizeObserver(fit);
  resizeObserver.observe(space);
  update(state);
  fit();
  return {
    canvas: renderer.domElement,
    key,
    update,
    dispose() {
      resizeObserver.disconnect();
      controls.dispose();
      clear();
      geometry.dispose();
      dots.material.dispose();
      renderer.dispose();
      renderer.domElement.remove();
    },
  };
}
