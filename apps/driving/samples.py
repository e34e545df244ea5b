"""The samples that the form offers: a synthetic scene, generated on request, and real frames if they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shared.app import Sample
from shared.data.registry import read_registry


def samples() -> Sequence[Sample]:
    """A synthetic scene, generated on request, and the real frames on this machine."""
    found = [
        Sample(
            name="synthetic",
            title="Synthetic street, LiDAR and camera",
            synthetic=True,
            source="generated on request",
            files=_synthetic_folder,
        )
    ]
    entries = read_registry(Path(__file__).parent / "datasets" / "registry.json")
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
                    files=partial(_kitti_files, folder, number),
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
                files=partial(_folder_itself, folder),
            )
        )
    return found


def _folder_itself(folder: Path, _: Path) -> list[Path]:
    return [folder]


def _kitti_files(folder: Path, number: str, _: Path) -> list[Path]:
    """The files of one frame; the reader recognises them by the names of their folders."""
    return [
        file
        for part, suffix in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt"), ("label_2", "txt"))
        if (file := folder / part / f"{number}.{suffix}").is_file()
    ]


def _synthetic_folder(folder: Path) -> list[Path]:
    """Generates a scene and writes it as a KITTI object folder."""
    import numpy as np

    from apps.driving.datasets.synth.export import write_frame
    from apps.driving.datasets.synth.scenes import scene
    from apps.driving.datasets.synth.sensors import Sensors

    sensors = Sensors(field_of_view_deg=180.0, image_scale=1.0)
    # The form recognises exact labels by the name "synthetic".
    write_frame(scene(np.random.default_rng(2026), sensors=sensors, kind="street"), folder / "synthetic", "synthetic")
    return [folder / "synthetic"]
