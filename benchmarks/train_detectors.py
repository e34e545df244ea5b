"""Training the nodule detector and PointPillars: MONAI's and mmdet3d's own loaders and loops against ours.

Both sides train the same network from the same weights, on the same files, in batches of two, for as many steps, in one
thread of a process each, in turns, with AdamW. The peers are in ``train_peers.py``: MONAI's tutorial for LUNA16,
and mmengine's ``Runner``. Ours is ``fit`` on ``Marks`` and on ``Kitti``, in fp32 and in bf16. First it is checked that
both compute the same loss and gradients from the same batch, and read the same from the files. Scans are synthetic
chests as NIfTI files, already on the network's grid; sweeps are synthetic scenes in KITTI's layout.

Not the same: MONAI cuts all patches of a batch out of one scan, ours out of several, and only from about the lungs, in
256 grey values. Its tutorial reads the scan anew at every step, and also zooms, turns by up to 30 degrees, smooths and
adds noise (its first two rows); ratios are of the third, with scans in memory and the augmentations that ours has too.
mmdet3d pastes objects where they stood; ours sets them onto the ground. mmcv's compiled operators are not in this
environment: both sides use the same stand-in for them. Ours does what the peers do not: it clips MONAI's gradients, and
judges at every step whether loss and gradients are finite.

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
GREY_APART = 0.003
"""Of 1: half of one of 256 grey values, and the rounding of MONAI's half precision."""
BOXES_APART = 0.02
"""Metres and radians: mmdet3d has boxes upright in the camera that the labels are for, ours in the LiDAR's frame."""
MONAI, MMDET3D = "MONAI, scans in memory, our augmentations", "mmdet3d"
"""What ratios are of."""
BATCH = 2
CPU = torch.device("cpu")


class Clock:
    """A task that notes when its loss is asked for."""

    def __init__(self, task: Any, noted: Steps) -> None:
        self.task, self.noted = task, noted
        self.leaves_parameters_unused = getattr(task, "leaves_parameters_unused", False)

    def prepare(self, model: nn.Module) -> None:
        if isinstance(self.task, Prepared):
            self.task.prepare(model)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        self.noted.began.append(Times.now())
        return self.task.loss(model, batch)

    def evaluate(self, model: nn.Module, batch: Any, scores: Any) -> None:
        self.task.evaluate(model, batch, scores)

    def scores(self) -> Any:
        return self.task.scores()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Settings of a task whose steps are noted."""

    task: Any
    noted: list[Steps] = field(default_factory=list)

    def build(self) -> Clock:
        return Clock(self.task.build(), self.noted[0])


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scans, a small network, few steps")
    parser.add_argument("--only", choices=("medical", "driving"), help="one of the two")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    ratios, notes = [], []
    with tempfile.TemporaryDirectory(prefix="trivium-detectors-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # packs of these scans are of no use afterwards
        for name, compare in (("medical", medical), ("driving", driving)):
            if chosen.only in (None, name):
                found, ratio, note = compare(Path(folder) / name, quick=chosen.quick)
                figures |= {f"{name}: {what}": value for what, value in found.items()}
                ratios.append(ratio)
                notes.append(note)
    figures["load of the machine"] = os.getloadavg()[0]
    note = (
        f"{'; '.join(notes)}. Medians of steps, data included, one thread; ratio is the smaller one of the "
        "CPU-seconds of a step, ours in the precision that is chosen here."
    )
    report("train_detectors", figures, ratio=min(ratios), ok=min(ratios) > 1, note=note)


def medical_recipe(folder: Path, *, quick: bool) -> tuple[Any, list[dict[str, Any]]]:
    """Writes the scans. Returns the recipe that learns from them, and MONAI's list of them."""
    spacing = (2.0, 2.0, 4.0) if quick else (0.703125, 0.703125, 1.25)
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
    """MONAI's tutorial and ours: figures, the ratio, and what was compared."""
    recipe, scans = medical_recipe(folder, quick=quick)
    steps, turns = recipe.limits.steps, 1 if quick else 3
    differences = in_child(monai_parity, recipe, scans)
    rows: dict[str, list[tuple[Times, Times]]] = {}
    for turn in range(turns):
        for name, cached, tutorial in (
            ("MONAI's tutorial", False, True),
            ("the same, scans in memory", True, True),
            (MONAI, True, False),
        ):
            if name == MONAI or not (turn or quick):  # the others are no part of the ratio
                count = steps if cached else steps // 2
                rows.setdefault(name, []).append(in_child(monai_steps, recipe, scans, cached, tutorial, count))
        for precision in ("fp32", "bf16"):
            rows.setdefault(f"ours {precision}", []).append(in_child(our_steps, replace(recipe, precision=precision)))
    figures, ratio = tabled(rows, MONAI)
    note = f"medical: {recipe.model}, patches {recipe.input.patch_size}, batch {BATCH}, {steps} steps"
    return figures | differences, ratio, note


def driving_recipe(folder: Path, *, quick: bool, sweeps: int | None = None) -> Any:
    """Writes the sweeps, as many as steps by default, and what mmdet3d makes of them first. Returns the recipe that
    learns from them."""
    steps = 10 if quick else 20
    write_sweeps(folder, sweeps or steps)
    data = Kitti(root=folder, merge=(), sweeps=SweepSampling(paste=15, lift_m=0.0, most_lost=0.0, fewest_points=0))
    peers.write_kitti_infos(folder, data.frames("train"))
    return replace(small(), input=LidarInput(), data=data, limits=run_limits(steps, 35.0))


def driving(folder: Path, *, quick: bool) -> tuple[dict[str, float], float, str]:
    """mmdet3d's Runner and ours: figures, the ratio, and what was compared."""
    recipe = driving_recipe(folder, quick=quick)
    steps, turns = recipe.limits.steps, 1 if quick else 3
    differences = in_child(mmdet3d_parity, recipe)
    rows: dict[str, list[tuple[Times, Times]]] = {}
    for _ in range(turns):
        rows.setdefault(MMDET3D, []).append(in_child(mmdet3d_steps, recipe))
        for precision in ("fp32", "bf16"):
            rows.setdefault(f"ours {precision}", []).append(in_child(our_steps, replace(recipe, precision=precision)))
    figures, ratio = tabled(rows, MMDET3D)
    note = f"driving: {recipe.model}, batch {BATCH}, {steps} steps"
    return figures | differences, ratio, note


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns in a process of its own: what one side asks of memory or warms up is no help to the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def monai_steps(
    recipe: Any, scans: list[dict[str, Any]], cached: bool, tutorial: bool, steps: int
) -> tuple[Times, Times]:
    """A step of MONAI's tutorial, and of its data."""
    parts = peers.monai_transforms(recipe.input, BATCH, tutorial=tutorial)
    loader = peers.monai_loader(scans, *parts, cached=cached)
    detector = peers.monai_detector(recipe.model, first_model(recipe).network.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        return peers.train_monai(detector, loader, recipe.optimizer, steps, Path(folder)).medians()


def mmdet3d_steps(recipe: Any) -> tuple[Times, Times]:
    """A step of mmengine's Runner, and of its data."""
    weights = first_model(recipe).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        return peers.train_mmdet3d(_config(recipe), weights, Path(folder)).medians()


def _config(recipe: Any) -> Any:
    settings = recipe.model.settings(recipe.input)
    return peers.mmdet3d_config(recipe.data.root, settings, BATCH, recipe.optimizer, recipe.limits.clip_norm)


def run_limits(steps: int, clip_norm: float) -> Limits:
    """Of a run that does nothing but train, and reads the loss at every step."""
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
    """The model with which a run of the recipe begins."""
    torch.manual_seed(recipe.seed)
    return recipe.model.build(recipe.input)


def our_steps(recipe: Recipe) -> tuple[Times, Times]:
    """A step of the engine and of its data: batches are made in a thread beside the step where they take long."""
    noted = Steps()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            replace(recipe, task=Timed(task=recipe.task, noted=[noted])),
            Run(Path(folder) / "run", "benchmark", "b"),
            device="cpu",
            quiet=True,
        )
    noted.loaded = noted.began
    whole, _ = noted.medians()
    dataset = recipe.data.train(recipe.input)
    loader = Loader(dataset, Permutation(seed=recipe.seed, length=len(dataset), batch=BATCH), device=CPU)
    alone = Steps()
    for number in range(recipe.limits.steps or 0):
        alone.began.append(Times.now())
        loader.make(number)
        alone.loaded.append(Times.now())
    return whole, alone.medians()[1]


def tabled(rows: Mapping[str, list[tuple[Times, Times]]], peer: str) -> tuple[dict[str, float], float]:
    """Medians over the turns, in milliseconds, and the ratio to the peer of ours as it is chosen on this machine."""
    figures = {}
    for name, turns in rows.items():
        whole, data = (np.median(np.array([turn[n] for turn in turns]), axis=0) * 1e3 for n in (0, 1))
        figures |= {
            f"{name}, ms/step": float(whole[0]),
            f"{name}, CPU-ms/step": float(whole[1]),
            f"{name}, of which data": float(data[1]),
            f"{name}, the rest": float(whole[1] - data[1]),
        }
    for precision in ("fp32", "bf16"):
        figures[f"ratio in {precision}"] = figures[f"{peer}, CPU-ms/step"] / figures[f"ours {precision}, CPU-ms/step"]
    return figures, figures["ratio in bf16" if cpu_gains_from_bf16() else "ratio in fp32"]


def monai_parity(recipe: Any, scans: list[dict[str, Any]]) -> dict[str, float]:
    """How far loss and gradients of one batch of ours are from MONAI's, and a scan's voxels from those of its pack."""
    from monai.transforms import Compose

    read = Compose(peers.monai_transforms(recipe.input, BATCH, tutorial=False)[0])(scans[0])
    packed = open_scans(recipe.data.split().training, recipe.input)[0]
    corner = json.loads((packed.folder / "scan.json").read_text())["grid"]["origin_lps_mm"] * np.array([-1, -1, 1])
    first = np.rint((corner - read["image"].affine[:3, 3].numpy()) / recipe.input.spacing_mm).astype(int)
    here = tuple(slice(start, start + size) for start, size in zip(first, packed.voxels.shape, strict=True))
    grey = float(np.abs(read["image"][0][here].float().numpy() - packed.voxels / 255.0).max())
    if grey > GREY_APART:
        raise AssertionError(f"MONAI and ours read other voxels from the same file: apart by up to {grey}")
    # In double precision, in which no two of the anchors that are hard to tell from nodules change places by rounding.
    ours = first_model(recipe).double().train()
    task = recipe.task.build()
    batch = recipe.data.train(recipe.input).batch(np.arange(BATCH), None)
    batch["image"] = batch["image"].double()
    peer = peers.monai_detector(recipe.model, ours.network.float().state_dict()).double()
    ours.double()
    torch.manual_seed(0)
    own = sum(loss.mean for loss in task.loss(ours, batch).values())
    torch.manual_seed(0)
    targets = [{"box": boxes, "label": labels} for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)]
    losses = peer(list(batch["image"]), targets)
    return compared(own, ours.network, losses[peer.cls_key] + losses[peer.box_reg_key], peer.network)


def mmdet3d_parity(recipe: Any) -> dict[str, float]:
    """How far loss and gradients of a batch of ours are from mmdet3d's of the same files by its own pipeline."""
    ours = first_model(recipe).train()
    task = recipe.task.build()
    batch = recipe.data.train(recipe.input).batch(np.arange(BATCH), None)
    peer, data = peers.mmdet3d_batch(_config(recipe))
    peer.load_state_dict(ours.state_dict())
    task.prepare(ours)
    for number, sample in enumerate(data["data_samples"]):
        truth = sample.gt_instances_3d
        boxes = torch.cat([truth.bboxes_3d.gravity_center, truth.bboxes_3d.tensor[:, 3:]], dim=1)
        same = torch.equal(data["inputs"]["points"][number], batch["points"][number])
        if not same or not torch.equal(truth.labels_3d, batch["labels"][number]):
            raise AssertionError("mmdet3d's pipeline and ours read other points or labels from the same files")
        if (boxes - batch["boxes"][number]).abs().max() > BOXES_APART:
            raise AssertionError("mmdet3d's pipeline and ours read other boxes from the same files")
    # In double precision: in single rounding alone moves the first layers' gradients by a percent, through the norms.
    for model in (ours, peer):
        model.double()
    batch["points"] = [points.double() for points in batch["points"]]
    data["inputs"]["points"] = batch["points"]
    data["data_samples"] = structures.lidar_data(batch["points"], batch["boxes"], batch["labels"])["data_samples"]
    own = sum(loss.mean for loss in task.loss(ours, batch).values())
    data = peer.train().data_preprocessor(data, training=True)
    losses = peer(data["inputs"], data["data_samples"], mode="loss")
    theirs = sum(value if isinstance(value, Tensor) else sum(value) for value in losses.values())
    return compared(own, ours, theirs, peer)


def compared(own: Tensor, model: nn.Module, theirs: Tensor, peer: nn.Module) -> dict[str, float]:
    """The relative differences of the losses and of all gradients; refuses more than rounding."""
    own.backward()
    theirs.backward()
    of_peer = dict(peer.named_parameters())
    apart = whole = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            apart += float((parameter.grad - of_peer[name].grad).square().sum())
            whole += float(parameter.grad.square().sum())
    loss, gradient = abs(float(own) / float(theirs) - 1), (apart / whole) ** 0.5
    if loss > LOSS_TOLERANCE or gradient > GRADIENT_TOLERANCE:
        raise AssertionError(f"not the same: losses {float(own)} and {float(theirs)}, gradients apart by {gradient}")
    return {"difference of losses": loss, "difference of gradients": gradient}


def write_scans(folder: Path, count: int, spacing_mm: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Synthetic chests as NIfTI files with a table of marks, the last for validation; the others as MONAI's list."""
    folder.mkdir()
    rows, scans = ["scan,x,y,z,diameter_mm,split"], []
    for number in range(count):
        scan, nodules = phantom(
            np.random.default_rng((9, number)), spacing_mm=spacing_mm, nodules=6, diameters_mm=(5, 20)
        )
        # Moved onto the lattice on which scans are packed, so that both sides have the very same voxels.
        origin = np.round(np.array(scan.origin_lps_mm) / spacing_mm) * spacing_mm
        moved = origin - np.array(scan.origin_lps_mm)
        file = folder / f"{number}.nii"
        header = nifti_header(np.int16, scan.size_ijk, spacing_mm, origin, scan.direction)
        file.write_bytes(header + scan.voxels_zyx.astype("<i2").tobytes())
        boxes = []
        for nodule in nodules:
            x, y, z = np.array(nodule.centre_lps_mm) + moved
            rows.append(f"{number},{x},{y},{z},{nodule.mean_diameter_mm},{'val' if number == count - 1 else 'train'}")
            boxes.append([-x, -y, z, *[nodule.mean_diameter_mm] * 3])
        scans.append({"image": str(file), "box": np.array(boxes, np.float32), "label": np.zeros(len(boxes), np.int64)})
    (folder / "marks.csv").write_text("\n".join(rows) + "\n")
    return scans[:-1]


def write_sweeps(folder: Path, count: int) -> None:
    """Synthetic scenes in KITTI's layout, two of them for validation."""
    sensors = replace(LIDARS["hdl64e"], field_of_view_deg=90.0, image_scale=1.0)
    names = [f"{number:06d}" for number in range(count + 2)]
    for number, name in enumerate(names):
        write_frame(scene(np.random.default_rng((9, number)), sensors=sensors), folder / "training", name)
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "train.txt").write_text("\n".join(names[:-2]))
    (folder / "ImageSets" / "val.txt").write_text("\n".join(names[-2:]))


if __name__ == "__main__":
    main()
