"""The canonical data types of the medical application: a CT volume, a nodule, and the findings in a volume.

Lengths are in millimetres in the DICOM patient frame LPS: x increases to the patient's left, y to the back (posterior),
z to the head. A voxel index is (i, j, k) along (x, y, z); the array is stored as voxels[k, j, i].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidInputError
from shared.recipe import InputSpec

Float64 = NDArray[np.float64]
Number = TypeVar("Number", int, float)
MAX_VOXELS = 1 << 29
"""More voxels than any CT has. Readers refuse larger images."""

MAX_THIN_SLICE_MM = 2.5
"""LUNA16 excludes scans with slices thicker than this."""

NODULE = "nodule"
"""The class of every finding when a model has only one class."""


def triple(values: Iterable[Number]) -> tuple[Number, Number, Number]:
    """Exactly three values, for x, y, z or i, j, k, as a tuple."""
    first, second, third = values
    return first, second, third


@dataclass(frozen=True, kw_only=True, slots=True)
class ChestInput(InputSpec):
    """The network's input grid, shared by model, data and inference. Defaults: MONAI's lung_nodule_ct_detection.

    spacing_mm   distance between voxel centres along x, y, z
    window_hu    HU values that are scaled to 0 and 1; values outside are clipped
    patch_size   voxels of a training patch along x, y, z; multiples of 16, 16, 8
    classes      names of the classes; the network has one output per class
    tile_size    voxels of an inference tile along x, y, z; multiples of 16, 16, 8. Tiles are made as small as the lungs
                 allow. If it equals patch_size, the scan is split into boxes trimmed to the lungs instead
    second_look  2: the scan is also searched at twice the spacing, for large nodules; 1: it is searched once
    """

    spacing_mm: tuple[float, float, float] = (0.703125, 0.703125, 1.25)
    window_hu: tuple[float, float] = (-1024.0, 300.0)
    patch_size: tuple[int, int, int] = (96, 96, 48)
    tile_size: tuple[int, int, int] = (160, 160, 96)
    classes: tuple[str, ...] = (NODULE,)
    second_look: int = 1

    def __post_init__(self) -> None:
        if self.second_look not in (1, 2):
            raise InvalidInputError(f"input.second_look is {self.second_look}; expected 1 (no second look) or 2")
        if min(self.spacing_mm) <= 0:
            raise InvalidInputError(f"input.spacing_mm is {self.spacing_mm}; all three must be above 0 mm")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InvalidInputError(f"input.classes is {self.classes}; expected at least one name, without duplicates")
        if not self.window_hu[0] < self.window_hu[1]:
            raise InvalidInputError(f"input.window_hu is {self.window_hu}; the first value must be below the second")
        for name, sizes in (("patch_size", self.patch_size), ("tile_size", self.tile_size)):
            if any(size < unit or size % unit for size, unit in zip(sizes, (16, 16, 8), strict=True)):
                raise InvalidInputError(f"input.{name} is {sizes}; expected multiples of 16, 16, 8 voxels")


CT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.2{ending}" for ending in ("", ".1", ".2"))
"""CT Image Storage, Enhanced CT Image Storage, Legacy Converted Enhanced CT Image Storage."""

PATIENT_KEYWORDS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""The DICOM attributes by which a PACS matches a study to a patient and an order, besides the study's UID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """The DICOM image that a slice was read from, so that a user can find it in a PACS.

    instance_number   InstanceNumber (0020,0013), which viewers display, or the frame number; None if there is none
    sop_instance_uid  SOPInstanceUID (0008,0018)
    position_lps_mm   ImagePositionPatient (0020,0032)
    sop_class_uid     SOPClassUID (0008,0016)
    frame             index of the frame in a multi-frame image, from 0; None for a single-frame image
    """

    instance_number: int | None
    sop_instance_uid: str
    position_lps_mm: tuple[float, float, float]
    sop_class_uid: str = ""
    frame: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CTVolume:
    """A chest CT.

    voxels_zyx      int16 Hounsfield units, shape (slices, rows, columns), C-contiguous
    spacing_mm      distance between voxel centres along i, j, k
    origin_lps_mm   centre of voxel (0, 0, 0)
    direction       3x3, orthonormal; its columns are the directions of i, j and k in LPS
    name            name of a synthetic volume; readers do not set it, because a file name may be a person's name
    identifiers     DICOM unique identifiers, if the source has any; no names
    patient         patient attributes by DICOM keyword; empty unless the reader was asked to keep them
    lossy           attributes of lossy compression by DICOM keyword; empty if the images were not lossy compressed
    images          the DICOM image of each slice, in the order of the slices; empty for other sources
    remarks         sentences about how the volume was read that a user must see
    """

    voxels_zyx: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    origin_lps_mm: tuple[float, float, float]
    direction: Float64 = field(default_factory=lambda: np.eye(3))
    name: str = "volume"
    identifiers: dict[str, str] = field(default_factory=dict)
    patient: dict[str, str] = field(default_factory=dict)
    lossy: dict[str, str] = field(default_factory=dict)
    images: tuple[SourceImage, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels_zyx.ndim != 3 or self.voxels_zyx.dtype != np.int16:
            raise ValueError(f"voxels must be int16 with 3 axes, not {self.voxels_zyx.dtype} {self.voxels_zyx.shape}")
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing must be positive, not {self.spacing_mm} mm")
        if not np.allclose(self.direction @ self.direction.T, np.eye(3), atol=1e-3):
            raise ValueError("the direction matrix is not orthonormal")

    @property
    def size_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        slices, rows, columns = self.voxels_zyx.shape
        return columns, rows, slices

    def to_lps_mm(self, index_ijk: ArrayLike) -> Float64:
        """Positions in LPS (mm) of fractional voxel indices, shape (..., 3) to (..., 3)."""
        scaled = np.asarray(index_ijk, np.float64) * self.spacing_mm
        return np.asarray(scaled @ self.direction.T + self.origin_lps_mm)

    def to_index_ijk(self, position_lps_mm: ArrayLike) -> Float64:
        """Fractional voxel indices of positions in LPS (mm), shape (..., 3) to (..., 3)."""
        moved = np.asarray(position_lps_mm, np.float64) - self.origin_lps_mm
        return np.asarray(moved @ self.direction / self.spacing_mm)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The mask of a nodule, cropped to its bounding box.

    low_ijk   index of the box's first voxel in the scan as it was provided
    size_ijk  number of voxels of the box along i, j, k
    bits      the mask, one bit per voxel, packed in C order of an array (i, j, k)
    """

    low_ijk: tuple[int, int, int]
    size_ijk: tuple[int, int, int]
    bits: bytes

    @property
    def mask_ijk(self) -> NDArray[np.bool_]:
        """The mask, shape ``size_ijk``."""
        count = int(np.prod(self.size_ijk))
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=count).astype(bool).reshape(self.size_ijk)

    @property
    def voxels(self) -> int:
        """Number of voxels in the mask."""
        return int.from_bytes(self.bits).bit_count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodule:
    """A lung nodule, either detected or annotated.

    centre_lps_mm     centre
    mean_diameter_mm  mean of the long and the short axis in the axial slice where the nodule is largest
    score             the detector's confidence that this is a nodule, from 0 to 1; 1 for an annotated nodule
    box_lps_mm        x, y, z of the lower corner, then of the upper corner, of the box around the measured voxels; the
                      detector's box if the nodule could not be measured
    label             its class, one of ``ChestInput.classes``
    axes_mm           the long and the short axis; None if they were not measured
    piece             the mask of the measured voxels; None if nothing was measured
    """

    centre_lps_mm: tuple[float, float, float]
    mean_diameter_mm: float
    score: float
    box_lps_mm: tuple[float, float, float, float, float, float]
    label: str = NODULE
    axes_mm: tuple[float, float] | None = None
    piece: Piece | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedScan:
    """A CT with annotated nodules, for evaluation.

    name      unique name of the scan: a SeriesInstanceUID or a number
    excluded  annotated findings on which a mark counts neither as a hit nor as a false positive; ``mean_diameter_mm``
              is negative if their size is unknown
    kinds     the type of each of ``nodules``, if known; metrics are also reported per type
    """

    name: str
    volume: CTVolume
    nodules: tuple[Nodule, ...]
    excluded: tuple[Nodule, ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The nodules found in a CT.

    nodules           highest score first
    operating_score   the threshold that separates findings from weaker marks; see ``inference/calibration``
    lung_box_lps_mm   x, y, z of the lower corner, then of the upper corner, of the searched box; None if no lung was
                      found
    lung_millilitres  volume of aerated lung; None if no lung was found
    lungs_cut         whether a lung reaches the edge of the image
    unlisted          number of nodules that reach the operating score but exceed the requested maximum
    """

    nodules: tuple[Nodule, ...]
    operating_score: float
    lung_box_lps_mm: tuple[float, float, float, float, float, float] | None = None
    lung_millilitres: float | None = None
    lungs_cut: bool = False
    unlisted: int = 0

    def __repr__(self) -> str:
        """The text that a notebook shows: the number of findings, then a line for each, highest score first."""
        if self.lung_box_lps_mm is None:
            return "not searched: no lung was found"
        count = len(self.nodules)
        lines = [f"{count} finding{'' if count == 1 else 's'}, weak below a score of {self.operating_score:.3f}"]
        for nodule in self.nodules:
            place = ", ".join(f"{value:.1f}" for value in nodule.centre_lps_mm)
            lines.append(f"{nodule.label}, {nodule.mean_diameter_mm:.1f} mm, score {nodule.score:.3f}, LPS {place} mm")
        return "\n".join(lines)
