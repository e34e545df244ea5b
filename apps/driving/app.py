"""The driving application: objects in 3D, from a LiDAR sweep or from camera images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.app import App, DenseNetwork, Sample, Table

if TYPE_CHECKING:
    from torch import nn

    from apps.driving.predictor import DrivingPredictor
    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Predictor
    from shared.recipe import Recipe

_ROOT = Path(__file__).parent


def recipes() -> Mapping[str, Callable[[], Recipe]]:
    """The named recipes."""
    from apps.driving.recipes import RECIPES

    return RECIPES


def dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    """Without what differs between frames in shape: pillars and their scattering before it, decoding after it."""
    from apps.driving.models import fcos3d, pointpillars
    from apps.driving.types import CameraInput, LidarInput

    if isinstance(recipe.model, pointpillars.PointPillars) and isinstance(recipe.input, LidarInput):
        return DenseNetwork(
            module=pointpillars.PillarsToHeads(model),
            inputs={"pseudo_image": pointpillars.example_input(recipe.model, recipe.input)},
            outputs=("scores", "boxes", "directions"),
        )
    assert isinstance(recipe.model, fcos3d.FCOS3D) and isinstance(recipe.input, CameraInput)
    return DenseNetwork(
        module=fcos3d.ImageToHeads(model),
        inputs={"image": fcos3d.example_input(recipe.input)},
        outputs=fcos3d.OUTPUTS,
    )


def calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """The least score of each class: where F1 is highest on up to 48 of the validation samples of the recipe's data."""
    import numpy as np
    import torch

    task, dataset = recipe.task.build(), recipe.data.validation(recipe.input)
    scores: Any = task.scores()
    count = min(48, len(dataset))
    with torch.inference_mode():
        for number in range(count):
            task.evaluate(model, dataset.batch(np.array([number]), None), scores)
    return {
        "least_scores": scores.thresholds(),
        "scenes": count,
        "synthetic": bool(recipe.data.fingerprint()["synthetic"]),
    }


def predictor(artifacts: Sequence[Artifact], device: str) -> DrivingPredictor:
    """With one of the two models, or with both."""
    from apps.driving.predictor import DrivingPredictor

    return DrivingPredictor(artifacts, device)


def score_files(files: Mapping[str, Path]) -> Table:
    """Average precision of result files by KITTI's protocol."""
    from apps.driving.metrics.results import score_files

    return score_files(files)


def each(
    predictor: Predictor[Any, Any],
    folder: Path,
    out: Path,
    options: Mapping[str, str],
    say: Callable[[str], object],
) -> int:
    """KITTI frames one after the other."""
    from apps.driving.inference.folder import detect
    from apps.driving.predictor import DrivingPredictor

    assert isinstance(predictor, DrivingPredictor)
    return detect(predictor, folder, out, options, say)


def samples() -> Sequence[Sample]:
    """A synthetic scene made on the spot, and the real frames that are on this machine."""
    from shared.data.registry import read_registry

    found = [
        Sample(
            name="synthetic",
            title="Synthetic street, LiDAR and camera",
            synthetic=True,
            source="made on this machine by apps.driving.datasets.synth",
            files=_synthetic,
        )
    ]
    entries = read_registry(app.data_registry)
    kitti, nuscenes = entries.get("kitti_object"), entries.get("nuscenes_sample")
    if kitti is not None and (root := kitti.locate()) is not None:
        folder = root / "driving" / "kitti_object"
        for number in sorted(file.stem for file in (folder / "velodyne").glob("*.bin")):
            found.append(
                Sample(
                    name=f"kitti-{number}",
                    title=f"KITTI frame {number}",
                    synthetic=False,
                    source="KITTI object detection, CC BY-NC-SA 3.0",
                    files=partial(_kitti, folder, number),
                )
            )
    if nuscenes is not None and (root := nuscenes.locate()) is not None:
        folder = root / "driving" / "nuscenes_sample"
        found.append(
            Sample(
                name="nuscenes",
                title="nuScenes key frame: LiDAR and six cameras",
                synthetic=False,
                source="nuScenes, CC BY-NC-SA 4.0",
                files=lambda _, folder=folder: [folder],
            )
        )
    return found


def _kitti(folder: Path, number: str, _: Path) -> list[Path]:
    """The files of one frame; the folders that they lie in say what they are."""
    return [
        file
        for part, suffix in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt"), ("label_2", "txt"))
        if (file := folder / part / f"{number}.{suffix}").is_file()
    ]


def _synthetic(folder: Path) -> list[Path]:
    """Makes a scene and writes it as a KITTI object folder."""
    import numpy as np
    from PIL import Image

    from apps.driving.datasets.synth.scenes import Sensors, scene
    from apps.driving.outputs.kitti import write

    sensors = Sensors(field_of_view_deg=180.0, image_scale=1.0)
    frame = scene(np.random.default_rng(2026), sensors=sensors, kind="street")
    camera = next(iter(frame.cameras.values()))
    assert frame.points_lidar_m is not None and frame.truth is not None
    root, number = folder / "synthetic", "synthetic"  # the form tells by this name that its labels are exact
    for part in ("velodyne", "image_2", "calib", "label_2"):
        (root / part).mkdir(parents=True, exist_ok=True)
    frame.points_lidar_m.astype("<f4").tofile(root / "velodyne" / f"{number}.bin")
    Image.fromarray(camera.image_HWC).save(root / "image_2" / f"{number}.png")
    rows = {
        "P2": np.hstack([camera.intrinsics, np.zeros((3, 1))]),
        "R0_rect": np.eye(3),
        "Tr_velo_to_cam": camera.lidar_to_camera[:3],
    }
    calibration = "".join(f"{name}: {' '.join(f'{v:.9e}' for v in row.ravel())}\n" for name, row in rows.items())
    (root / "calib" / f"{number}.txt").write_text(calibration, encoding="utf-8")
    (root / "label_2" / f"{number}.txt").write_text(write(frame.truth, camera), encoding="utf-8")
    return [root]


def reproduce(quick: bool) -> Table:
    """The headline table."""
    from apps.driving.reproduce import table

    return table(quick)


app = App(
    name="driving",
    title="3D object detection",
    summary="Finds cars, pedestrians and cyclists in 3D: PointPillars in a LiDAR sweep, FCOS3D in camera images.",
    notice="Not for control of vehicles. For research and evaluation; the weights learnt from synthetic scenes.",
    root=_ROOT,
    models=("pointpillars", "fcos3d"),
    recipes=recipes,
    dense=dense,
    calibrate=calibrate,
    predictor=predictor,
    samples=samples,
    reproduce=reproduce,
    score_files=score_files,
    each=each,
)
