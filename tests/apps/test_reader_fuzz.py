"""Damaged files: each is read, or refused with a sentence, in bounded memory and time.

Small files as the field's own libraries write them (one slice of a real CT, a real metric, a synthetic drive) are
changed at places that hypothesis chooses, most of them in headers and directories, which contain sizes and offsets.
"""

from __future__ import annotations

import io
import json
import select
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import pydicom
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from apps.driving.app import app as driving
from tests.fuzzing import repeatable

EXAMPLES = 20
MAX_SECONDS, MAX_WAIT_S = 10.0, 60.0

Make = Callable[[Path], dict[str, bytes]]

NUMBERS = st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1])
WORDS = st.sampled_from([b"nan", b"inf", b"-1", b"1e309", b"9" * 40, b"\0", b"\xff", b'"', b",", b"\n", b" ", b"\xc3("])
PLACE = st.one_of(
    st.integers(0, 400),  # headers
    st.integers(-400, -1),  # directories and footers
    st.floats(0, 1, allow_nan=False),  # anywhere
)
CHANGE = st.tuples(
    PLACE,
    st.one_of(
        st.tuples(st.just("write"), st.binary(min_size=1, max_size=8) | WORDS),
        st.tuples(st.just("number"), st.tuples(NUMBERS, st.sampled_from([1, 2, 4, 8]), st.booleans())),
        st.tuples(st.just("flip"), st.integers(0, 7)),
        st.tuples(st.just("insert"), st.binary(min_size=1, max_size=40) | WORDS),
        st.tuples(st.just("delete"), st.integers(1, 64)),
        st.tuples(st.just("cut"), st.just(0)),
        st.tuples(st.just("repeat"), st.integers(1, 2000)),
    ),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)


def changed(content: bytes, changes: list[Any]) -> bytes:
    """The content with the changes, each at its place."""
    found = bytearray(content)
    for where, (how, what) in changes:
        size = len(found)
        place = int(where * size) if isinstance(where, float) else where if where >= 0 else size + where
        place = min(max(place, 0), size)
        if how == "write":
            found[place : place + len(what)] = what
        elif how == "number":
            value, width, big = what
            found[place : place + width] = (value % 256**width).to_bytes(width, "big" if big else "little")
        elif how == "flip" and place < size:
            found[place] ^= 1 << what
        elif how == "insert":
            found[place:place] = what
        elif how == "delete":
            del found[place : place + what]
        elif how == "cut":
            del found[place:]
        elif how == "repeat":
            found[place:place] = found[place : place + what]
    return bytes(found)


def chest() -> np.ndarray[Any, np.dtype[np.int16]]:
    """Water in air, as a CT of few voxels (x, y, z)."""
    values = np.random.default_rng(0).normal(-900, 40, (24, 24, 10))
    values[6:18, 6:18, 2:8] = 40
    return values.astype(np.int16)


def nifti(folder: Path, name: str) -> dict[str, bytes]:
    image = nibabel.Nifti1Image(chest(), np.diag([-1.5, -1.5, 2.5, 1]))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, folder / name)
    return {name: (folder / name).read_bytes()}


def itk(folder: Path, name: str, compress: bool) -> dict[str, bytes]:
    image = SimpleITK.GetImageFromArray(chest().T)
    image.SetSpacing((1.5, 1.5, 2.5))
    SimpleITK.WriteImage(image, str(folder / name), useCompression=compress)
    return {name: (folder / name).read_bytes()}


def slices() -> list[bytes]:
    """A CT of three slices, each a real slice of a GE scanner that comes with pydicom."""
    found = []
    for number in range(3):
        part = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        part.SOPInstanceUID = f"{part.SOPInstanceUID}.{number}"
        part.file_meta.MediaStorageSOPInstanceUID = part.SOPInstanceUID
        part.InstanceNumber = number + 1
        x, y, z = part.ImagePositionPatient
        part.ImagePositionPatient = [x, y, float(z) + 5 * number]
        content = io.BytesIO()
        part.save_as(content, enforce_file_format=True)
        found.append(content.getvalue())
    return found


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def dicom(_: Path) -> dict[str, bytes]:
    return {f"{number}.dcm": content for number, content in enumerate(slices())}


def dicom_zip(folder: Path) -> dict[str, bytes]:
    return {"ct.zip": zipped(dicom(folder), zipfile.ZIP_STORED)}


def metric() -> pl.DataFrame:
    return pl.read_csv(Path(__file__).parents[1] / "data" / "metric.csv", n_rows=150)


def csv(_: Path) -> dict[str, bytes]:
    return {"metric.csv": metric().write_csv().encode()}


def parquet(_: Path) -> dict[str, bytes]:
    content = io.BytesIO()
    metric().with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(content)
    return {"metric.parquet": content.getvalue()}


@cache
def frame() -> dict[str, bytes]:
    """One frame of the synthetic drive, of few points and one colour."""
    small = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        root = next(sample for sample in driving.samples() if sample.synthetic).files(Path(folder))[0]
        name = min(path.stem for path in (root / "velodyne").iterdir())
        with Image.open(root / "image_2" / f"{name}.png") as image:
            Image.new("RGB", image.size, "teal").save(small, "PNG")
        return {
            f"velodyne/{name}.bin": (root / "velodyne" / f"{name}.bin").read_bytes()[: 16 * 2000],
            f"image_2/{name}.png": small.getvalue(),
            f"calib/{name}.txt": (root / "calib" / f"{name}.txt").read_bytes(),
            f"label_2/{name}.txt": (root / "label_2" / f"{name}.txt").read_bytes(),
        }


def frame_zip(_: Path) -> dict[str, bytes]:
    return {"drive.zip": zipped({f"training/{name}": data for name, data in frame().items()})}


def frame_file(suffix: str, place: str = "") -> Make:
    """The files of a frame, the changed file first."""

    def make(_: Path) -> dict[str, bytes]:
        files = frame()
        first = next(name for name in files if name.endswith(suffix) and name.startswith(place))
        return {first: files[first], **files}

    return make


FORMATS: dict[str, tuple[Make, str]] = {
    "NIfTI": (lambda folder: nifti(folder, "ct.nii"), "medical"),
    "NIfTI, compressed": (lambda folder: nifti(folder, "ct.nii.gz"), "medical"),
    "MetaImage": (lambda folder: itk(folder, "ct.mha", False), "medical"),
    "MetaImage, compressed": (lambda folder: itk(folder, "ct.mha", True), "medical"),
    "NRRD": (lambda folder: itk(folder, "ct.nrrd", False), "medical"),
    "NRRD, compressed": (lambda folder: itk(folder, "ct.nrrd", True), "medical"),
    "DICOM": (dicom, "medical"),
    "DICOM, zipped": (dicom_zip, "medical"),
    "CSV": (csv, "finance"),
    "Parquet": (parquet, "finance"),
    "KITTI, zipped": (frame_zip, "driving"),
    "KITTI sweep": (frame_file(".bin"), "driving"),
    "KITTI image": (frame_file(".png"), "driving"),
    "KITTI calibration": (frame_file(".txt", "calib"), "driving"),
}


class Reading:
    """The process that reads. It is restarted if a reader ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, app: str, files: list[Path]) -> tuple[int | None, str, float]:
        """Status (None if the files were read), words, and seconds."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.apps.reading_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([app, *map(str, files)]) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], MAX_WAIT_S)[0]:
            self.close()
            return 500, f"no answer after {MAX_WAIT_S:g} s", MAX_WAIT_S
        if not (line := self._process.stdout.readline()):
            ended = self._process.wait(10)
            self.close()
            return 500, f"the process ended with {ended}", 0.0
        status, words, seconds = json.loads(line)
        return status, words, seconds

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        self._process = None


@pytest.fixture(scope="module")
def reading() -> Iterator[Reading]:
    """A process that reads."""
    found = Reading()
    yield found
    found.close()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_read_or_refused(kind: str, tmp_path: Path, reading: Reading) -> None:
    make, what = FORMATS[kind]
    (tmp_path / "made").mkdir()
    files = make(tmp_path / "made")
    home = tmp_path / "handed"

    def hand_in(content: bytes) -> list[Path]:
        paths = []
        for number, (name, original) in enumerate(files.items()):
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(original if number else content)
            paths.append(path)
        return paths

    first = next(iter(files.values()))
    assert reading.read(what, hand_in(first))[:2] == (None, ""), "as it is, it can be read"

    @repeatable(EXAMPLES)
    @given(changes=CHANGES)
    def damage(changes: list[Any]) -> None:
        status, words, seconds = reading.read(what, hand_in(changed(first, changes)))
        assert status is None or (status in (413, 422) and words), words
        assert seconds < MAX_SECONDS

    damage()
