"""A server with the medical form and a predictor that returns two fixed nodules without a model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from apps.medical.adapters.nifti import nifti
from apps.medical.app import app as medical
from apps.medical.predictor import Options
from apps.medical.service import MedicalCodec
from apps.medical.types import CTVolume, Findings, Nodule, Piece
from shared.app import App, Sample
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import chest as chest_without_nodules
from tests.conftest import serving
from tests.shared.serve.echo import write_artifact

AT_MM = ((-60.0, 0.0, -355.0), (60.0, 6.0, -330.0))
BOX_MM = (-120.0, -90.0, -400.0, 100.0, 80.0, -305.0)


def chest() -> CTVolume:
    """The chest with one nodule in each lung: 60 mm to the right and 60 mm to the left."""
    volume = chest_without_nodules()
    volume.voxels_zyx[9:11, 38:42, 28:32] = -850
    for centre in AT_MM:
        x, y, z = np.rint(volume.to_index_ijk(centre)).astype(int)
        volume.voxels_zyx[z, y - 1 : y + 2, x - 1 : x + 2] = 60
    return volume


def _outline_piece(volume: CTVolume, centre_mm: tuple[float, float, float]) -> Piece:
    """The 3 by 3 voxels around a position (LPS, mm), in its slice."""
    i, j, k = (int(n) for n in np.rint(volume.to_index_ijk(centre_mm)))
    return Piece(low_ijk=(i - 1, j - 1, k), size_ijk=(3, 3, 1), bits=np.packbits(np.ones((3, 3, 1), bool)).tobytes())


class FixedNodules:
    """Finds the two nodules, filtered by the options."""

    def predict(self, batch: Sequence[CTVolume], options: Options) -> list[Findings]:
        nodules = [
            Nodule(
                centre_lps_mm=centre,
                mean_diameter_mm=9.0,
                score=0.9 - 0.6 * n,
                box_lps_mm=(*(v - 4.5 for v in centre), *(v + 4.5 for v in centre)),
                axes_mm=(9.5, 8.5),
                piece=_outline_piece(batch[0], centre),
            )
            for n, centre in enumerate(AT_MM)
        ]
        findings = Findings(
            nodules=tuple(n for n in nodules if n.score >= options.min_score)[: options.max_findings],
            operating_score=0.5,
            lung_box_lps_mm=BOX_MM,
            lung_millilitres=1500.0,
        )
        return [findings] * len(batch)


def _fail_if_called(*_: object) -> None:
    raise AssertionError("the server neither trains nor reproduces")


def _write_sample(folder: Path) -> list[Path]:
    file = folder / "chest.nii.gz"
    file.write_bytes(nifti(chest()))
    return [file]


def medical_app(root: Path) -> App:
    """The medical application with the fixed nodules; its files are in ``root``."""
    shutil.copytree(medical.pages, root / "pages")
    write_artifact(root / "weights", 1, "medical", "known")
    return App(
        name="medical",
        title=medical.title,
        summary=medical.summary,
        notice=medical.notice,
        root=root,
        models=("known",),
        recipes=_fail_if_called,  # type: ignore[arg-type]
        dense=_fail_if_called,  # type: ignore[arg-type]
        predictor=lambda artifacts, device: FixedNodules(),
        codec=MedicalCodec,
        schemas=medical.schemas,
        reviewing=medical.reviewing,
        router=medical.router,
        kinds=medical.kinds,
        case_label=medical.case_label,
        sample_jobs=medical.sample_jobs,
        samples=lambda: [
            Sample(name="chest", title="A chest", synthetic=True, source="made here", files=_write_sample)
        ],
        reproduce=_fail_if_called,  # type: ignore[arg-type]
    )


@contextmanager
def medical_site(root: Path) -> Iterator[str]:
    """Serves the medical form with its files in ``root``. The context is the server's address."""
    app = medical_app(root)
    with serving(create_app(Settings(store=root / "store", warm=False, device="cpu"), {"medical": app})) as address:
        yield address


def upload_and_analyse(page: Page, site: str, *files: Path, folder: bool = False) -> None:
    """Uploads the files, or a folder, and waits for the viewer."""
    page.goto(f"{site}/medical")
    page.get_by_label("Or a folder" if folder else "Chest CT").set_input_files([str(file) for file in files])
    page.get_by_role("button", name="Find nodules").click()
    expect(page.get_by_role("application", name="Axial CT")).to_be_visible()
