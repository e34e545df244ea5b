"""The canonical data of the medical application: a CT volume, a nodule in it, and what was found in one.

Lengths are millimetres in the DICOM patient frame LPS: x grows to the patient's left, y to the back, z to the head.
An index is (i, j, k) along (x, y, z) of the array, which is stored as voxels[k, j, i].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidInputError
from shared.recipe import InputSpec

Float64 = NDArray[np.float64]
MAX_VOXELS = 1 << 29
"""More than a CT has: what is read is refused above it."""

THICK_MM = 2.5
"""Of slices: LUNA16 takes none that are thicker."""

NODULE = "nodule"
"""The class of findings where none are told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChestInput(InputSpec):
    """The network's grid, which model, data and inference share. Defaults: MONAI's lung_nodule_ct_detection.

    spacing_mm  distance between voxel centres along x, y, z
    window_hu   HU that become 0 and 1; what lies beyond is clipped
    patch_size  voxels along x, y, z of a training patch; multiples of 16, 16, 8
    classes     what is told apart; the network has an output for each
    tile_size   the same of the tiles in which a scan goes through the network, made as small as the lungs allow; with a
                patch_size that is the same, of boxes that are trimmed to the lungs
    second_look the scan is looked at once more with so many times the spacing, for what is large; 1 for one look
    """

    spacing_mm: tuple[float, float, float] = (0.703125, 0.703125, 1.25)
    window_hu: tuple[float, float] = (-1024.0, 300.0)
    patch_size: tuple[int, int, int] = (96, 96, 48)
    tile_size: tuple[int, int, int] = (160, 160, 96)
    classes: tuple[str, ...] = (NODULE,)
    second_look: int = 1

    def __post_init__(self) -> None:
        if self.second_look not in (1, 2):
            raise InvalidInputError(f"input.second_look is {self.second_look}; expected 1, for one look, or 2")
        if min(self.spacing_mm) <= 0:
            raise InvalidInputError(f"input.spacing_mm is {self.spacing_mm}; all three must be above 0 mm")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InvalidInputError(f"input.classes is {self.classes}; expected different names, at least one")
        if not self.window_hu[0] < self.window_hu[1]:
            raise InvalidInputError(f"input.window_hu is {self.window_hu}; the first must be below the second")
        for name, sizes in (("patch_size", self.patch_size), ("tile_size", self.tile_size)):
            if any(size < unit or size % unit for size, unit in zip(sizes, (16, 16, 8), strict=True)):
                raise InvalidInputError(f"input.{name} is {sizes}; expected multiples of 16, 16, 8 voxels")


PATIENT_KEYWORDS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""By what a PACS knows whose a study is, besides its unique identifier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """The DICOM image that a slice was, by which it is found again in a PACS.

    instance_number   InstanceNumber (0020,0013), which viewers count by, or a frame's number; None where there is none
    sop_instance_uid  SOPInstanceUID (0008,0018)
    position_lps_mm   ImagePositionPatient (0020,0032)
    sop_class_uid     SOPClassUID (0008,0016)
    frame             which of a multi-frame image's, from 0; None of a single-frame image
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
    name            what a made volume is called; readers leave it, for the name of a file may be that of a person
    identifiers     DICOM unique identifiers where the source has them; no names
    patient         who it is of, by DICOM's keywords; empty unless the reader was told to keep that
    lossy           what DICOM has stated of lossy compression, by its keywords; empty where there was none
    images          the DICOM image of each slice, in the order of the slices; empty for other sources
    remarks         what a reader must know of how it was read
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
            raise ValueError(f"voxels must be int16 of three axes, not {self.voxels_zyx.dtype} {self.voxels_zyx.shape}")
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
        """Positions of (fractional) indices, shape (..., 3) to (..., 3)."""
        scaled = np.asarray(index_ijk, np.float64) * self.spacing_mm
        return np.asarray(scaled @ self.direction.T + self.origin_lps_mm)

    def to_index_ijk(self, position_lps_mm: ArrayLike) -> Float64:
        """Fractional indices of positions, shape (..., 3) to (..., 3)."""
        moved = np.asarray(position_lps_mm, np.float64) - self.origin_lps_mm
        return np.asarray(moved @ self.direction / self.spacing_mm)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The voxels of a nodule, in the box around them.

    low_ijk   the box's first voxel, by its index in the scan as it was handed in
    size_ijk  how many voxels the box has along i, j, k
    bits      whether each is the nodule's, packed in the order of an array (i, j, k)
    """

    low_ijk: tuple[int, int, int]
    size_ijk: tuple[int, int, int]
    bits: bytes

    @property
    def mask_ijk(self) -> NDArray[np.bool_]:
        """Shape ``size_ijk``."""
        count = int(np.prod(self.size_ijk))
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=count).astype(bool).reshape(self.size_ijk)

    @property
    def voxels(self) -> int:
        """How many are the nodule's."""
        return int.from_bytes(self.bits).bit_count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodule:
    """A lung nodule, found or known.

    centre_lps_mm     centre
    mean_diameter_mm  mean of the long and the short axis in the axial slice where it is largest
    score             how sure the detector is that it is a nodule, from 0 to 1; 1 for a known nodule
    box_lps_mm        x, y, z of the lower corner, then of the upper, of what was measured; the detector's box where
                      nothing could be
    label             its class, one of ``ChestInput.classes``
    axes_mm           the two axes, where they were measured
    piece             the voxels that were measured
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
    """A CT whose nodules are known, for evaluation.

    name      what tells it from others: a SeriesInstanceUID, a number
    excluded  findings on which a mark counts neither as a hit nor as a false positive; ``mean_diameter_mm`` is
              negative where their size is unknown
    kinds     what sort each of ``nodules`` is, where that is known; figures are told apart by it
    """

    name: str
    volume: CTVolume
    nodules: tuple[Nodule, ...]
    excluded: tuple[Nodule, ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found in a CT.

    nodules           best first
    operating_score   what reaches it stands apart from weaker marks; see ``inference/calibration``
    lung_box_lps_mm   x, y, z of the lower corner, then of the upper, of what was searched; None where no lung was found
    lung_millilitres  aerated lung; None where no lung was found
    lungs_cut         whether a lung reaches the image's edge
    unlisted          how many more nodules reach the operating score than were asked for
    """

    nodules: tuple[Nodule, ...]
    operating_score: float
    lung_box_lps_mm: tuple[float, float, float, float, float, float] | None = None
    lung_millilitres: float | None = None
    lungs_cut: bool = False
    unlisted: int = 0

    def __repr__(self) -> str:
        """What a notebook shows: how many findings there are, then a line for each, best first."""
        if self.lung_box_lps_mm is None:
            return "not searched: no lung was found"
        lines = [f"{len(self.nodules)} findings, weak below a score of {self.operating_score:.3f}"]
        for nodule in self.nodules:
            place = ", ".join(f"{value:.1f}" for value in nodule.centre_lps_mm)
            lines.append(f"{nodule.label}, {nodule.mean_diameter_mm:.1f} mm, score {nodule.score:.3f}, LPS {place} mm")
        return "\n".join(lines)
