"""The vectorised evaluation equals a plain implementation of the protocol with loops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from apps.driving.adapters.kitti import to_rectified
from apps.driving.adapters.projection import image_boxes
from apps.driving.datasets.synth.scenes import scene
from apps.driving.metrics.kitti_ap import DIFFICULTIES, MIN_OVERLAPS, NEIGHBOURING_CLASSES, evaluate


def solid_overlap(first, second):
    plane = first["base"].intersection(second["base"]).area
    height = min(first["top"], second["top"]) - max(first["bottom"], second["bottom"])
    common = plane * max(height, 0)
    return common / (first["volume"] + second["volume"] - common)


def image_overlap(first, second, over_first=False):
    if np.isnan(first["box"]).any() or np.isnan(second["box"]).any():
        return 0.0
    first_polygon, second_polygon = box(*first["box"]), box(*second["box"])
    common = first_polygon.intersection(second_polygon).area
    return common / (first_polygon.area if over_first else first_polygon.union(second_polygon).area)


def objects(frame, boxes, box_2d):
    camera = frame.cameras["image_2"]
    location, rotation = to_rectified(boxes, camera)
    listed = []
    for i, (place, turn) in enumerate(zip(location, rotation, strict=True)):
        length, width, height = boxes.size_m[i].astype(float)
        corners = [
            (
                place[0] + np.cos(turn) * a * length / 2 + np.sin(turn) * b * width / 2,
                place[2] - np.sin(turn) * a * length / 2 + np.cos(turn) * b * width / 2,
            )
            for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
        ]
        listed.append(
            {
                "name": boxes.names[i],
                "box": box_2d[i].astype(float),
                "base": Polygon(corners),
                "top": height - place[1],
                "bottom": -place[1],
                "volume": length * width * height,
                "alpha": turn - np.arctan2(place[0], place[2]),
                "score": 0.0 if boxes.scores is None else float(boxes.scores[i]),
                "occlusion": 0 if boxes.occlusion is None else boxes.occlusion[i],
                "truncation": 0 if boxes.truncation is None else boxes.truncation[i],
            }
        )
    return listed


def plain(frames, predictions, name, level, overlap, care):
    """AP and AOS of one class, difficulty and overlap, as the kit computes them; DontCare where ``care``."""
    limits, least = DIFFICULTIES[level], MIN_OVERLAPS[name]
    cases, total = [], 0
    for frame, found in zip(frames, predictions, strict=True):
        camera = frame.cameras["image_2"]
        size = camera.image_HWC.shape[:2]
        shown, _ = image_boxes(found, camera.intrinsics, camera.lidar_to_camera, size)
        truth, claims = objects(frame, frame.truth, frame.truth.box_2d), objects(frame, found, shown)
        for item in truth:
            height = item["box"][3] - item["box"][1]
            hard = not height > limits.height_px or item["occlusion"] > limits.occlusion
            hard = hard or item["truncation"] > limits.truncation
            if item["name"] == name:
                item["state"] = 1 if hard else 0
            else:
                item["state"] = 1 if item["name"] in NEIGHBOURING_CLASSES.get(name, ()) else -1
            total += item["state"] == 0
        for item in claims:
            tall = item["box"][3] - item["box"][1] >= limits.height_px
            item["state"] = 1 if not tall else 0 if item["name"] == name else -1
        cases.append((truth, claims, [{"box": b} for b in frame.ignore_boxes_2d.get("image_2", [])]))
    scores = []
    for truth, claims, _ in cases:
        matched = set()
        for item in truth:
            if item["state"] == -1:
                continue
            best = None
            for j, claim in enumerate(claims):
                fits = j not in matched and claim["state"] != -1 and overlap(item, claim) > least
                if fits and (best is None or claim["score"] > claims[best]["score"]):
                    best = j
            if best is not None:
                matched.add(best)
                if item["state"] == 0 and claims[best]["state"] == 0:
                    scores.append(claims[best]["score"])
    scores.sort(reverse=True)
    thresholds, recall = [], 0.0
    for i, score in enumerate(scores):
        left, right = (i + 1) / total, (i + 2) / total if i < len(scores) - 1 else (i + 1) / total
        if right - recall < recall - left and i < len(scores) - 1:
            continue
        thresholds.append(score)
        recall += 1 / 40
    precision, orientation = [0.0] * 41, [0.0] * 41
    for k, threshold in enumerate(thresholds):
        hits = alarms = 0
        alike = 0.0
        for truth, claims, ignored in cases:
            matched = set()
            for item in truth:
                if item["state"] == -1:
                    continue
                best, largest, spare = None, 0.0, False
                for j, claim in enumerate(claims):
                    if j in matched or claim["state"] == -1 or claim["score"] < threshold:
                        continue
                    share = overlap(item, claim)
                    if share > least and claim["state"] == 0 and (share > largest or spare):
                        best, largest, spare = j, share, False
                    elif share > least and claim["state"] == 1 and best is None:
                        best, spare = j, True
                if best is None:
                    continue
                matched.add(best)
                if item["state"] == 0 and claims[best]["state"] == 0:
                    hits += 1
                    alike += (1 + np.cos(item["alpha"] - claims[best]["alpha"])) / 2
            for j, claim in enumerate(claims):
                if j in matched or claim["state"] != 0 or claim["score"] < threshold:
                    continue
                excused = care and any(image_overlap(claim, region, over_first=True) > least for region in ignored)
                alarms += not excused
        precision[k], orientation[k] = hits / max(hits + alarms, 1), alike / max(hits + alarms, 1)
    best_from = [max(precision[k:]) for k in range(41)]
    alike_from = [max(orientation[k:]) for k in range(41)]
    return 100 * sum(best_from[1:]) / 40, 100 * sum(alike_from[1:]) / 40


@pytest.fixture(scope="module")
def scenes():
    frames = [scene(np.random.default_rng(seed), kind="street") for seed in (31, 32, 33)]
    region = np.array([[500, 150, 700, 240]], np.float32)
    return [replace(frame, ignore_boxes_2d={"image_2": region}) for frame in frames]


def guesses(frame, draw):
    """Ground truth moved and rotated a little, some of it lost, doubled or of another class, and random boxes."""
    picked = frame.truth.take(draw.choice(len(frame.truth), len(frame.truth) + 4))
    move = draw.normal(0, 0.12, picked.centre_lidar_m.shape)
    wild = draw.random(len(picked)) < 0.15
    move[wild] += draw.normal(0, 8, (wild.sum(), 3)) * [1, 1, 0]
    names = [
        str(draw.choice(["car", "pedestrian", "cyclist"])) if w else n for n, w in zip(picked.names, wild, strict=True)
    ]
    return replace(
        picked,
        centre_lidar_m=(picked.centre_lidar_m + move).astype(np.float32),
        yaw=(picked.yaw + draw.normal(0, 0.1, len(picked)) + np.pi * (draw.random(len(picked)) < 0.2)).astype(
            np.float32
        ),
        names=tuple(names),
        scores=draw.random(len(picked)).astype(np.float32),
        truncation=None,
        occlusion=None,
        box_2d=None,
    )


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=416)  # a car that a van excuses
def test_the_plain_protocol_gives_the_same_figures(scenes, seed):
    draw = np.random.default_rng(seed)
    predictions = [guesses(frame, draw) for frame in scenes]
    result = evaluate(scenes, predictions)
    for level in DIFFICULTIES:
        assert result[f"car/objects/{level}"] > 0
        in_space, _ = plain(scenes, predictions, "car", level, solid_overlap, care=False)
        in_image, alike = plain(scenes, predictions, "car", level, image_overlap, care=True)
        assert result[f"car/3d/{level}"] == pytest.approx(in_space, abs=1e-6)
        assert result[f"car/2d/{level}"] == pytest.approx(in_image, abs=1e-6)
        assert result[f"car/aos/{level}"] == pytest.approx(alike, abs=1e-6)
