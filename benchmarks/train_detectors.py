"""Training the nodule detector and PointPillars: MONAI's and mmdet3d's own loaders and loops against ours.

Both sides train the same network from the same weights on the same files, with AdamW, in batches of two, for the same
number of steps, each in its own process with one thread, in turns. The peers are in ``train_peers.py``: MONAI's
tutorial for LUNA16, and mmengine's ``Runner``. Ours is ``fit`` on ``Marks`` and on ``Kitti``, in fp32 and in bf16.
First it is checked that both read the same data from the files, and compute the same loss and gradients from the same
batch. Scans are synthetic chests as NIfTI files, already on the network's grid; sweeps are synthetic scenes in KITTI's
layout.

The differences: MONAI crops all patches of a batch from one scan, ours from several scans, only around the lungs, and
in 256 grey values. MONAI's tutorial reads the scan again at every step, and also zooms, rotates by up to 30 degrees,
smooths and adds noise (its first two rows); the ratios use the third row, with scans in memory and the augmentations of
ours. mmdet3d pastes objects at their original positions; ours places them on the ground. mmcv's compiled operators are
not available in this environment: both sides use the same replacement. Ours does more than the peers: it clips the
gradients of MONAI's network, and checks at every step that loss and gradients are finite.

    python -m benchmarks.train_detectors [--quick] [--only medical|driving]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.datasets.kitti import Kitti
from apps.driving.datasets.sampling import SweepSampling
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import LIDARS
from apps.driving.models import structures
from apps.driving.recipes import small
from apps.driving.types import LidarInput
from apps.medical.adapters.nifti import nifti_header
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.packed_scans import open_scans
from apps.medical.datasets.synth.phantom import volume as phantom
from apps.medical.recipes import overnight, tiny
from benchmarks import train_peers as peers
from benchmarks.report import report
from benchmarks.train_peers import Steps, Times
from shared.data.loader import Loader
from shared.data.order import Permutation
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.engine.task import Prepared
from shared.precision import cpu_gains_from_bf16
from shared.recipe import Limits, Recipe

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
MAX_GREY_DIFFERENCE = 0.003
"""Relative to a range of 1: half of one of 256 grey values, plus the rounding of MONAI's half precision."""
MAX_BOX_DIFFERENCE = 0.02
"""Metres and radians: mmdet3d's boxes are upright in the frame of the labelled camera, ours in the LiDAR frame."""
MONAI_ROW, MMDET3D_ROW = "MONAI, scans in memory, our augmentations", "mmdet3d"
"""The rows that the ratios compare with."""
BATCH = 2
CPU = torch.device("cpu")


class TimedTask:
    """Wraps a task and records the time of each call of its loss."""

    def __init__(self, task: Any, steps: Steps) -> None:
        self.task, self.steps = task, steps
        self.leaves_parameters_unused = getattr(task, "leaves_parameters_unused", False)

    def prepare(self, model: nn.Module) -> None:
        if isinstance(self.task, Prepared):
            self.task.prepare(model)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        self.steps.starts.append(Times.now())
        return self.task.loss(model, batch)

    def evaluate(self, model: nn.Module, batch: Any, scores: Any) -> None:
        self.task.evaluate(model, batch, scores)

    def scores(self) -> Any:
        return self.task.scores()


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedTaskConfig:
    """The settings of a task whose steps are timed."""

    task: Any
    steps: list[Steps] = field(default_factory=list)

    def build(self) -> TimedTask:
        return TimedTask(self.task.build(), self.steps[0])


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scans, a small network, few steps")
    parser.add_argument("--only", choices=("medical", "driving"), help="run only this comparison")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    ratios, notes = [], []
    with tempfile.TemporaryDirectory(prefix="trivium-detectors-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # packs of these scans are not needed afterwards
        for name, compare in (("medical", medical), ("driving", driving)):
            if arguments.only in (None, name):
                comparison_figures, ratio, note = compare(Path(folder) / name, quick=arguments.quick)
                figures |= {f"{name}: {title}": value for title, value in comparison_figures.items()}
                ratios.append(ratio)
                notes.append(note)
    figures["load of the machine"] = os.getloadavg()[0]
    note = (
        f"{'; '.join(notes)}. Medians of steps, data included, one thread; ratio is the smaller one of the "
        "CPU-seconds of a step, ours in the precision chosen on this machine."
    )
    report("train_detectors", figures, ratio=min(ratios), ok=min(ratios) > 1, note=note)


def medical_recipe(folder: Path, *, quick: bool) -> tuple[Any, list[dict[str, Any]]]:
    """Writes the scans. Returns the recipe that trains on them, and MONAI's data list."""
    spacing = (3.0, 3.0, 6.0) if quick else (0.703125, 0.703125, 1.25)
    source = tiny() if quick else overnight()
    input = replace(source.input, spacing_mm=spacing)
    steps = 6 if quick else 12
    scans = write_scans(folder, 2 if quick else 3, spacing)
    recipe = replace(
        source,
        input=input,
        data=Marks(root=folder, marks=Path("marks.csv"), split_column="split", train_patches=4 * steps * BATCH),
        limits=run_limits(steps, source.limits.clip_norm),
        ema_decay=None,
    )
    return recipe, scans


def medical(folder: Path, *, quick: bool) -> tuple[dict[str, float], float, str]:
    """Compares MONAI's tutorial with ours; returns the figures, the ratio, and a description of the setup."""
    recipe, scans = medical_recipe(folder, quick=quick)
    num_steps, num_turns = recipe.limits.steps, 1 if quick else 3
    differences = in_child(monai_parity, recipe, scans)
    rows: dict[str, list[tuple[Times, Times]]] = {}
    for turn in range(num_turns):
        for name, cached, tutorial in (
            ("MONAI's tutorial", False, True),
            ("the same, scans in memory", True, True),
            (MONAI_ROW, True, False),
        ):
            if name == MONAI_ROW or not (turn or quick):  # the other rows do not enter the ratio
                count = num_steps if cached else num_steps // 2
                rows.setdefault(name, []).append(in_child(monai_steps, recipe, scans, cached, tutorial, count))
        for precision in ("fp32", "bf16"):
            rows.setdefault(f"ours {precision}", []).append(in_child(our_steps, replace(recipe, precision=precision)))
    figures, ratio = summarise(rows, MONAI_ROW)
    note = f"medical: {recipe.model}, patches {recipe.input.patch_size}, batch {BATCH}, {num_steps} steps"
    return figures | differences, ratio, note


def driving_recipe(folder: Path, *, quick: bool, sweeps: int | None = None) -> Any:
    """Writes the sweeps, by default one for each step, and mmdet3d's info files. Returns the recipe that trains on
    them."""
    steps = 10 if quick else 20
    write_sweeps(folder, sweeps or steps)
    data = Kitti(root=folder, merge=(), sweeps=SweepSampling(paste=15, lift_m=0.0, most_lost=0.0, fewest_points=0))
    peers.write_kitti_infos(folder, data.frames("train"))
    return replace(small(), input=LidarInput(), data=data, limits=run_limits(steps, 35.0))


def driving(folder: Path, *, quick: bool) -> tuple[dict[str, float], float, str]:
    """Compares mmengine's Runner with ours; returns the figures, the ratio, and a description of the setup."""
    recipe = driving_recipe(folder, quick=quick)
    num_steps, num_turns = recipe.limits.steps, 1 if quick else 3
    differences = in_child(mmdet3d_parity, recipe)
    rows: dict[str, list[tuple[Times, Times]]] = {}
    for _ in range(num_turns):
        rows.setdefault(MMDET3D_ROW, []).append(in_child(mmdet3d_steps, recipe))
        for precision in ("fp32", "bf16"):
            rows.setdefault(f"ours {precision}", []).append(in_child(our_steps, replace(recipe, precision=precision)))
    figures, ratio = summarise(rows, MMDET3D_ROW)
    note = f"driving: {recipe.model}, batch {BATCH}, {num_steps} steps"
    return figures | differences, ratio, note


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in its own process, so that memory and caches of one side do not help the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def monai_steps(
    recipe: Any, scans: list[dict[str, Any]], cached: bool, tutorial: bool, steps: int
) -> tuple[Times, Times]:
    """The median times of a step of MONAI's tutorial, and of its data."""
    parts = peers.monai_transforms(recipe.input, BATCH, tutorial=tutorial)
    loader = peers.monai_loader(scans, *parts, cached=cached)
    detector = peers.monai_detector(recipe.model, first_model(recipe).network.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        return peers.train_monai(detector, loader, recipe.optimizer, steps, Path(folder)).medians()


def mmdet3d_steps(recipe: Any) -> tuple[Times, Times]:
    """The median times of a step of mmengine's Runner, and of its data."""
    weights = first_model(recipe).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        return peers.train_mmdet3d(_config(recipe), weights, Path(folder)).medians()


def _config(recipe: Any) -> Any:
    settings = recipe.model.settings(recipe.input)
    return peers.mmdet3d_config(recipe.data.root, settings, BATCH, recipe.optimizer, recipe.limits.clip_norm)


def run_limits(steps: int, clip_norm: float) -> Limits:
    """The limits of a run that only trains and reads the loss at every step."""
    never = 1_000_000
    return Limits(
        epochs=1,
        steps=steps,
        batch=BATCH,
        clip_norm=clip_norm,
        log_every=1,
        validate_every=never,
        checkpoint_every=never,
    )


def first_model(recipe: Recipe) -> Any:
    """The initial model of a run of the recipe."""
    torch.manual_seed(recipe.seed)
    return recipe.model.build(recipe.input)


def our_steps(recipe: Recipe) -> tuple[Times, Times]:
    """The median times of a step of the engine, and of its data, timed alone: a thread may prepare batches."""
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            replace(recipe, task=TimedTaskConfig(task=recipe.task, steps=[steps])),
            Run(Path(folder) / "run", "benchmark", "b"),
            device="cpu",
            quiet=True,
        )
    steps.loaded = steps.starts
    step_times, _ = steps.medians()
    dataset = recipe.data.train(recipe.input)
    loader = Loader(dataset, Permutation(seed=recipe.seed, length=len(dataset), batch=BATCH), device=CPU)
    data_steps = Steps()
    for index in range(recipe.limits.steps or 0):
        data_steps.starts.append(Times.now())
        loader.make(index)
        data_steps.loaded.append(Times.now())
    return step_times, data_steps.medians()[1]


def summarise(rows: Mapping[str, list[tuple[Times, Times]]], peer: str) -> tuple[dict[str, float], float]:
    """Medians over the turns in milliseconds, and the ratio of the peer to ours in the precision of this machine."""
    figures = {}
    for name, turns in rows.items():
        step_times, data_times = (
            np.median(np.array([turn[column] for turn in turns]), axis=0) * 1e3 for column in (0, 1)
        )
        figures |= {
            f"{name}, ms/step": float(step_times[0]),
            f"{name}, CPU-ms/step": float(step_times[1]),
            f"{name}, of which data": float(data_times[1]),
            f"{name}, the rest": float(step_times[1] - data_times[1]),
        }
    for precision in ("fp32", "bf16"):
        figures[f"ratio in {precision}"] = figures[f"{peer}, CPU-ms/step"] / figures[f"ours {precision}, CPU-ms/step"]
    return figures, figures["ratio in bf16" if cpu_gains_from_bf16() else "ratio in fp32"]


def monai_parity(recipe: Any, scans: list[dict[str, Any]]) -> dict[str, float]:
    """Checks our voxels, loss and gradients of a batch against MONAI's; returns the differences."""
    from monai.transforms import Compose

    read = Compose(peers.monai_transforms(recipe.input, BATCH, tutorial=False)[0])(scans[0])
    packed = open_scans(recipe.data.split().training, recipe.input)[0]
    corner = json.loads((packed.folder / "scan.json").read_text())["grid"]["origin_lps_mm"] * np.array([-1, -1, 1])
    first_voxel = np.rint((corner - read["image"].affine[:3, 3].numpy()) / recipe.input.spacing_mm).astype(int)
    crop = tuple(slice(start, start + size) for start, size in zip(first_voxel, packed.voxels.shape, strict=True))
    grey_difference = float(np.abs(read["image"][0][crop].float().numpy() - packed.voxels / 255.0).max())
    if grey_difference > MAX_GREY_DIFFERENCE:
        raise AssertionError(
            f"MONAI and ours read different voxels from the same file: they differ by up to {grey_difference}"
        )
    # In double precision, so that rounding does not change which anchors are chosen as hard negatives.
    ours = first_model(recipe).double().train()
    task = recipe.task.build()
    batch = recipe.data.train(recipe.input).batch(np.arange(BATCH), None)
    batch["image"] = batch["image"].double()
    peer = peers.monai_detector(recipe.model, ours.network.float().state_dict()).double()
    ours.double()
    torch.manual_seed(0)
    our_loss = sum(loss.mean for loss in task.loss(ours, batch).values())
    torch.manual_seed(0)
    targets = [{"box": boxes, "label": labels} for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)]
    losses = peer(list(batch["image"]), targets)
    return compare_losses(our_loss, ours.network, losses[peer.cls_key] + losses[peer.box_reg_key], peer.network)


def mmdet3d_parity(recipe: Any) -> dict[str, float]:
    """Checks our data, loss and gradients of a batch against mmdet3d's own pipeline; returns the differences."""
    ours = first_model(recipe).train()
    task = recipe.task.build()
    batch = recipe.data.train(recipe.input).batch(np.arange(BATCH), None)
    peer, data = peers.mmdet3d_batch(_config(recipe))
    peer.load_state_dict(ours.state_dict())
    task.prepare(ours)
    for index, sample in enumerate(data["data_samples"]):
        labels = sample.gt_instances_3d
        boxes = torch.cat([labels.bboxes_3d.gravity_center, labels.bboxes_3d.tensor[:, 3:]], dim=1)
        same = torch.equal(data["inputs"]["points"][index], batch["points"][index])
        if not same or not torch.equal(labels.labels_3d, batch["labels"][index]):
            raise AssertionError("mmdet3d's pipeline and ours read different points or labels from the same files")
        if (boxes - batch["boxes"][index]).abs().max() > MAX_BOX_DIFFERENCE:
            raise AssertionError("mmdet3d's pipeline and ours read different boxes from the same files")
    # In double precision: in single precision, rounding alone changes the first layers' gradients by a percent, through
    # the normalisation layers.
    for model in (ours, peer):
        model.double()
    batch["points"] = [points.double() for points in batch["points"]]
    data["inputs"]["points"] = batch["points"]
    data["data_samples"] = structures.lidar_data(batch["points"], batch["boxes"], batch["labels"])["data_samples"]
    our_loss = sum(loss.mean for loss in task.loss(ours, batch).values())
    data = peer.train().data_preprocessor(data, training=True)
    losses = peer(data["inputs"], data["data_samples"], mode="loss")
    peer_loss = sum(value if isinstance(value, Tensor) else sum(value) for value in losses.values())
    return compare_losses(our_loss, ours, peer_loss, peer)


def compare_losses(our_loss: Tensor, model: nn.Module, peer_loss: Tensor, peer: nn.Module) -> dict[str, float]:
    """The relative differences of the losses and of all gradients. Raises ``AssertionError`` above the tolerances."""
    our_loss.backward()
    peer_loss.backward()
    peer_parameters = dict(peer.named_parameters())
    squared_difference = squared_norm = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squared_difference += float((parameter.grad - peer_parameters[name].grad).square().sum())
            squared_norm += float(parameter.grad.square().sum())
    loss, gradient = abs(float(our_loss) / float(peer_loss) - 1), (squared_difference / squared_norm) ** 0.5
    if loss > LOSS_TOLERANCE or gradient > GRADIENT_TOLERANCE:
        raise AssertionError(
            f"not the same: losses {float(our_loss)} and {float(peer_loss)}, gradients apart by {gradient}"
        )
    return {"difference of losses": loss, "difference of gradients": gradient}


def write_scans(folder: Path, count: int, spacing_mm: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Writes synthetic chests as NIfTI files, the last for validation, and their marks; returns MONAI's data list."""
    folder.mkdir()
    rows, scans = ["scan,x,y,z,diameter_mm,split"], []
    for number in range(count):
        scan, nodules = phantom(
            np.random.default_rng((9, number)), spacing_mm=spacing_mm, nodules=6, diameters_mm=(5, 20)
        )
        # Aligned with the grid on which scans are packed, so that both sides have exactly the same voxels.
        origin = np.round(np.array(scan.origin_lps_mm) / spacing_mm) * spacing_mm
        shift_mm = origin - np.array(scan.origin_lps_mm)
        file = folder / f"{number}.nii"
        header = nifti_header(np.int16, scan.size_ijk, spacing_mm, origin, scan.direction)
        file.write_bytes(header + scan.voxels_zyx.astype("<i2").tobytes())
        boxes = []
        for nodule in nodules:
            x, y, z = np.array(nodule.centre_lps_mm) + shift_mm
            rows.append(f"{number},{x},{y},{z},{nodule.mean_diameter_mm},{'val' if number == count - 1 else 'train'}")
            boxes.append([-x, -y, z, *[nodule.mean_diameter_mm] * 3])
        scans.append({"image": str(file), "box": np.array(boxes, np.float32), "label": np.zeros(len(boxes), np.int64)})
    (folder / "marks.csv").write_text("\n".join(rows) + "\n")
    return scans[:-1]


def write_sweeps(folder: Path, count: int) -> None:
    """Writes synthetic scenes in KITTI's layout, two more for validation."""
    sensors = replace(LIDARS["hdl64e"], field_of_view_deg=90.0, image_scale=1.0)
    names = [f"{number:06d}" for number in range(count + 2)]
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        write_frame(scene(np.random.default_rng((9, number)), sensors=sensors), folder / "training", name)
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "train.txt").write_text("\n".join(names[:-2]))
    (folder / "ImageSets" / "val.txt").write_text("\n".join(names[-2:]))


if __name__ == "__main__":
    main()
