"""KITTI's protocol against mmdet3d's own evaluation of the same files.

mmdet3d computes overlaps of rotated boxes only on a GPU; here shapely computes them, and all else is mmdet3d's code.
"""

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import shapely

from apps.driving.app import app

KINDS = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck")
SIZES = dict(
    zip(
        KINDS,
        ((1.5, 1.6, 3.9), (1.75, 0.65, 0.8), (1.7, 0.6, 1.8), (2, 1.9, 5), (1.3, 0.6, 0.8), (3, 2.5, 9)),
        strict=True,
    )
)


def row(random, name, place, turn, size, *, jitter=0.0, score=None):
    """A line of a label or result file: what a camera of KITTI's focal length would see at ``place``."""
    x, z = place + random.normal(0, jitter, 2)
    height, width, length = np.array(size) * np.exp(random.normal(0, jitter / 3, 3))
    turn = turn + random.normal(0, jitter)
    u, v, tall, wide = 609 + 721 * x / z, 172 + 721 * 1.65 / z, 721 * height / z, 360 * (width + length) / z
    box_2d = [u - wide / 2, v - tall, u + wide / 2, v]
    cut, hidden = (random.choice([0, 0, 0.2, 0.4]), random.choice([0, 0, 1, 2])) if score is None else (-1, -1)
    numbers = [turn - np.arctan2(x, z), *box_2d, height, width, length, x, 1.65, z, turn]
    text = f"{name} {cut:.2f} {hidden} " + " ".join(f"{number:.2f}" for number in numbers)
    return text if score is None else f"{text} {score:.4f}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """150 frames of synthetic labels and results: moved, doubled, missed and false detections, and DontCare."""
    random = np.random.default_rng(11)
    labels, results = tmp_path_factory.mktemp("labels"), tmp_path_factory.mktemp("results")
    for number in range(150):
        truth, found = [], []
        for _ in range(random.integers(2, 14)):
            name = str(random.choice(KINDS, p=(0.5, 0.2, 0.12, 0.1, 0.05, 0.03)))
            z = random.uniform(5, 45)
            place, turn = np.array([random.uniform(-0.4, 0.4) * z, z]), random.uniform(-3, 3)
            truth.append(row(random, name, place, turn, SIZES[name]))
            merged_name = {"Van": "Car", "Person_sitting": "Pedestrian"}.get(name, name)
            for _ in range(random.integers(0, 4)):
                found.append(row(random, merged_name, place, turn, SIZES[name], jitter=0.08, score=random.beta(4, 2)))
        for _ in range(random.integers(0, 8)):
            name, z = str(random.choice(KINDS[:3])), random.uniform(5, 45)
            place = np.array([random.uniform(-0.4, 0.4) * z, z])
            found.append(row(random, name, place, 0.0, SIZES[name], score=random.beta(2, 4)))
        truth.append("DontCare -1 -1 -10 500.00 100.00 700.00 260.00 -1 -1 -1 -1000 -1000 -1000 -10")
        (labels / f"{number:06d}.txt").write_text("\n".join(truth) + "\n")
        (results / f"{number:06d}.txt").write_text("\n".join(found) + "\n")
    return labels, results


def annotations(file):
    """A file as mmdet3d keeps it in memory."""
    lines = [line.split() for line in file.read_text().splitlines()]
    values = np.array([line[1:] + ["0"] * (16 - len(line)) for line in lines], float).reshape(-1, 15)
    return {
        "name": np.array([line[0] for line in lines]),
        "truncated": values[:, 0],
        "occluded": values[:, 1].astype(int),
        "alpha": values[:, 2],
        "bbox": values[:, 3:7],
        "dimensions": values[:, [9, 7, 8]],
        "location": values[:, 10:13],
        "rotation_y": values[:, 13],
        "score": values[:, 14],
    }


def shapely_overlap(first, second, criterion=-1):
    """What ``rotate_iou_gpu_eval`` computes: of x, z, length, width, turn, over the union or (2) the area in common."""

    def polygons(boxes):
        half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes[:, None, 2:4]
        cosine, sine = np.cos(boxes[:, 4])[:, None], np.sin(boxes[:, 4])[:, None]
        x, z = half[..., 0], half[..., 1]
        return shapely.polygons(np.stack([x * cosine + z * sine, z * cosine - x * sine], axis=-1) + boxes[:, None, :2])

    mine, theirs = polygons(np.asarray(first, float)), polygons(np.asarray(second, float))
    common = shapely.area(shapely.intersection(mine[:, None], theirs[None]))
    if criterion == 2:
        return common
    return common / (shapely.area(mine)[:, None] + shapely.area(theirs)[None] - common)


@pytest.fixture(scope="module")
def mmdet3d_evaluation():
    """Loads mmdet3d's module from its file, so that its GPU code is not imported."""
    root = importlib.util.find_spec("mmdet3d")
    if root is None or root.origin is None:
        pytest.skip("mmdet3d is not installed")
    folder = Path(root.origin).parent / "evaluation" / "functional" / "kitti_utils"
    package = types.ModuleType("kitti_utils_of_mmdet3d")
    package.__path__ = [str(folder)]
    overlap = types.ModuleType("kitti_utils_of_mmdet3d.rotate_iou")
    overlap.rotate_iou_gpu_eval = shapely_overlap
    sys.modules["kitti_utils_of_mmdet3d"], sys.modules[overlap.__name__] = package, overlap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("kitti_utils_of_mmdet3d.eval")
    for name in [name for name in sys.modules if name.startswith("kitti_utils_of_mmdet3d")]:
        del sys.modules[name]


def test_the_table_is_that_of_mmdet3d(folders, mmdet3d_evaluation):
    labels, results = folders
    table = app.score_files({"labels": labels, "results": results})
    rows = {(name, measure.split()[0]): values for name, measure, *values in table.rows}
    truth, found = ([annotations(file) for file in sorted(folder.iterdir())] for folder in folders)
    least = np.array([[[0.7, 0.5, 0.5]] * 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, image, bev, space, orientation = mmdet3d_evaluation.do_eval(
            truth, found, [0, 1, 2], least, ["bbox", "bev", "3d", "aos"]
        )
    for index, name in enumerate(("car", "pedestrian", "cyclist")):
        for measure, values in (("2D", image), ("BEV", bev), ("3D", space), ("AOS", orientation)):
            expected = [f"{value:.2f}" for value in values[index, :, 0]]
            assert rows[name, measure] == expected, (name, measure)
            assert float(expected[1]) > 10
