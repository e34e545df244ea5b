"""The sample cases that the form offers: a synthetic phantom, and real scans if their files are on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from shared.app import Sample
from shared.data.registry import Entry, read_registry

PHANTOM_SEED = 7


def samples() -> list[Sample]:
    """The phantom, then each sample scan of the registry whose files are on this machine."""
    found = [
        Sample(
            name="phantom",
            title="Phantom with four nodules",
            synthetic=True,
            source="generated on request; shapes after LIDC-IDRI's outlines, CC BY 3.0",
            files=_phantom,
        )
    ]
    registry = read_registry(Path(__file__).parent / "datasets" / "registry.json")
    real_scans = (
        ("lung1", "Real CT with one nodule, 5 mm slices", lambda root: [root / _LUNG1]),
        ("upper_abdomen", "Real CT below the lungs, DICOM", lambda root: [root / _ABDOMEN]),
    )
    for name, title, files in real_scans:
        entry = registry[name]
        if entry.locate() is not None:
            found.append(
                Sample(name=name, title=title, synthetic=False, source=entry.source, files=_file_getter(entry, files))
            )
    return found


_LUNG1 = "medical/pyradiomics_lung1/lung1_image.nrrd"
_ABDOMEN = "medical/totalsegmentator/example_ct_dicom"


def _file_getter(entry: Entry, files: Callable[[Path], Sequence[Path]]) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: files(entry.require())


def _phantom(folder: Path) -> list[Path]:
    file = folder / "phantom.nii.gz"
    file.write_bytes(_phantom_nifti())
    return [file]


@cache
def _phantom_nifti() -> bytes:
    """The phantom as a NIfTI file of 11 MB. Making it takes 7 seconds on one core, so it is cached per process."""
    from apps.medical.adapters.nifti import nifti
    from apps.medical.datasets.synth.phantom import volume

    phantom, _ = volume(
        np.random.default_rng(PHANTOM_SEED), spacing_mm=(1.2, 1.2, 3.0), nodules=4, diameters_mm=(7, 22), name="phantom"
    )
    return nifti(phantom)
