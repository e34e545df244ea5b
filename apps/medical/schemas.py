"""The request options and the content of ``result.json``, from which the OpenAPI document is generated.

Lengths are in mm, positions in the DICOM patient frame (LPS: x to the left, y to the back, z to the head).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from shared.app import Schemas
from shared.result_schema import ComputedWith

Point = Annotated[list[float], Field(min_length=3, max_length=3)]
Box = Annotated[list[float], Field(min_length=6, max_length=6, description="two corners: x, y, z, x, y, z; LPS, mm")]


class MedicalOptions(TypedDict, total=False):
    """The options of a request; an option that is left out has its default."""

    score: Annotated[float, Field(ge=0, le=1, description="minimum score of a listed finding; default 0.05")]
    most: Annotated[int, Field(ge=1, le=100, description="maximum number of listed findings; default 10")]
    series: Annotated[
        str, Field(description="SeriesNumber or SeriesInstanceUID of the series to read, if several were sent")
    ]
    patient: Annotated[
        Literal["yes", "no"], Field(description="yes: the DICOM and FHIR files name the patient; default no")
    ]
    incomplete: Annotated[
        Literal["yes", "no"],
        Field(description="yes: images may be missing from the series, and a remark says so; default no"),
    ]


class MedicalImage(TypedDict):
    """The image of a DICOM series on which a finding is largest."""

    label: Annotated[str, Field(description="as a viewer displays it: image 83 of 120")]
    instance_number: int | None
    sop_instance_uid: str
    position_lps_mm: Annotated[Point, Field(description="ImagePositionPatient")]


class MedicalFinding(TypedDict):
    """A finding."""

    rank: Annotated[int, Field(description="from 1, highest score first")]
    centre_lps_mm: Point
    mean_diameter_mm: Annotated[
        float,
        Field(
            description="mean of the long axis and the short axis perpendicular to it, on the slice where it is largest"
        ),
    ]
    axes_mm: Annotated[
        list[float] | None, Field(description="the long and the short axis; null if they were not measured")
    ]
    volume_mm3: Annotated[
        float | None, Field(description="volume of its voxels, each counted whole; null when axes_mm is null")
    ]
    score: Annotated[float, Field(ge=0, le=1, description="the detector's confidence; not a probability of malignancy")]
    box_lps_mm: Box
    index_ijk: Annotated[Point, Field(description="its centre in voxels: column, row, slice, from 0")]
    slice: Annotated[int, Field(description="the slice of its centre, from 1")]
    instance_number: Annotated[
        int | None,
        Field(description="InstanceNumber of that slice; null without DICOM, or if the numbers are not unique"),
    ]
    image: MedicalImage | None
    label: Annotated[str, Field(description="its class: nodule, or a class of an imported model")]
    above_operating_score: bool


class MedicalVolume(TypedDict):
    """The volume that was searched."""

    size_ijk: Annotated[list[int], Field(description="columns, rows, slices")]
    spacing_mm: Annotated[Point, Field(description="between columns, rows and slices")]
    origin_lps_mm: Annotated[Point, Field(description="centre of the first voxel")]
    direction: Annotated[list[Point], Field(description="rows of the matrix whose columns are the axes of i, j and k")]
    identifiers: Annotated[dict[str, str], Field(description="DICOM unique identifiers, if there are any")]
    source: Literal["DICOM", "file"]
    instance_numbers: list[int] | None


class MedicalLungs(TypedDict):
    """The lungs that were found."""

    box_lps_mm: Box
    aerated_ml: float


class MedicalResult(ComputedWith):
    """``result.json``: the findings and the volume that was searched."""

    findings: list[MedicalFinding]
    operating_score: Annotated[
        float, Field(description="the score at which the calibration scans had one false positive per scan")
    ]
    volume: MedicalVolume
    lungs: Annotated[
        MedicalLungs | None, Field(description="null if no lung was found; the scan was then not searched")
    ]
    remarks: Annotated[list[str], Field(description="sentences that a reader must see before the findings")]


Coordinate = Annotated[float, Field(ge=-10_000, le=10_000)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class MedicalMissed(TypedDict):
    """A nodule that a reviewer says was missed."""

    centre_lps_mm: Annotated[list[Coordinate], Field(min_length=3, max_length=3, description="must lie in the scan")]
    diameter_mm: Annotated[float, Field(gt=0, le=300)]


class MedicalEarlier(TypedDict):
    """A finding of the earlier scan."""

    rank: Annotated[int, Field(description="in the earlier scan")]
    mean_diameter_mm: float


class MedicalChange(TypedDict):
    """How a finding has changed since the earlier scan."""

    rank: int
    change: Annotated[
        Literal["new", "not imaged", "larger", "smaller", "stable"],
        Field(
            description="larger and smaller: the mean diameter changed by more than 1.5 mm; new: the earlier scan "
            "has no listed finding at that position; not imaged: the earlier scan does not cover that position"
        ),
    ]
    mean_diameter_mm: float
    earlier: MedicalEarlier | None
    diameter_change_mm: float | None
    volume_change_percent: Annotated[int | None, Field(description="null if either volume is null")]
    doubling_days: Annotated[
        int | None,
        Field(description="volume doubling time; null unless the volume grew by at least 25 % and days were given"),
    ]
    place_lps_mm: Annotated[Point, Field(description="its position in the earlier scan, by registration")]
    place_slice: Annotated[
        int | None, Field(description="the slice of that position, from 1; null if it lies outside the scan")
    ]
    distance_mm: Annotated[float | None, Field(description="from that position to the earlier finding")]


class MedicalGone(MedicalEarlier):
    """A finding of the earlier scan that matches no listed finding of the later scan."""

    place_lps_mm: Annotated[Point, Field(description="its position in the later scan, by registration")]
    place_slice: Annotated[
        int | None, Field(description="the slice of that position, from 1; null if it lies outside the scan")
    ]


class MedicalComparison(TypedDict):
    """The findings compared with those of an earlier scan of the same patient."""

    days: Annotated[float | None, Field(description="days between the scans, as given")]
    correlation: Annotated[
        float, Field(description="correlation of the two images around the lungs after registration")
    ]
    vessel_correlation: Annotated[
        float | None,
        Field(
            description="first quartile of the correlations of lung patches at corresponding positions; "
            "null if too few patches lie in both scans"
        ),
    ]
    findings: Annotated[list[MedicalChange], Field(description="findings above the operating score in either scan")]
    gone: Annotated[
        list[MedicalGone],
        Field(description="findings above the operating score in the earlier scan that match none listed in the later"),
    ]
    weaker: Annotated[int, Field(description="number of findings left out: below the operating score in both scans")]
    weaker_gone: Annotated[
        int,
        Field(
            description="number of findings left out: below the operating score in the earlier scan, and matching none "
            "listed in the later"
        ),
    ]
    remarks: Annotated[list[str], Field(description="what limits the comparison")]


SCHEMAS = Schemas(options=MedicalOptions, result=MedicalResult, missed=MedicalMissed)
