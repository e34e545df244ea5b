"""What a request may ask for and what ``result.json`` holds, as the description of the HTTP interface states it.

Lengths are in mm, places in the DICOM patient frame (LPS: to the left, to the back, up).
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
    """The options of a request; what is left out has its default."""

    score: Annotated[float, Field(ge=0, le=1, description="the least score of a listed finding; 0.05 without it")]
    most: Annotated[int, Field(ge=1, le=100, description="the most findings that are listed; 10 without it")]
    series: Annotated[str, Field(description="SeriesNumber or SeriesInstanceUID, where files of several were sent")]
    patient: Annotated[
        Literal["yes", "no"], Field(description="yes: the DICOM and FHIR files name the patient; no without it")
    ]
    incomplete: Annotated[
        Literal["yes", "no"], Field(description="yes: a series that lacks images is searched as well; no without it")
    ]


class MedicalImage(TypedDict):
    """The image of a DICOM series on which a finding is largest."""

    label: Annotated[str, Field(description="as a person looks it up: image 83 of 120")]
    instance_number: int | None
    sop_instance_uid: str
    position_lps_mm: Annotated[Point, Field(description="ImagePositionPatient")]


class MedicalFinding(TypedDict):
    """A finding."""

    rank: Annotated[int, Field(description="from 1, the highest score first")]
    centre_lps_mm: Point
    mean_diameter_mm: Annotated[
        float, Field(description="mean of the long axis and the short one across it, on the slice where it is largest")
    ]
    axes_mm: Annotated[
        list[float] | None, Field(description="the long and the short axis; null where it was not measured")
    ]
    volume_mm3: Annotated[float | None, Field(description="of its voxels, each counted whole; null as axes_mm")]
    score: Annotated[float, Field(ge=0, le=1, description="how sure the detector is; not a probability of malignancy")]
    box_lps_mm: Box
    index_ijk: Annotated[Point, Field(description="its centre in voxels: column, row, slice, from 0")]
    slice: Annotated[int, Field(description="the slice of its centre, from 1")]
    instance_number: Annotated[
        int | None, Field(description="InstanceNumber of that slice; null without DICOM, or where they are not unique")
    ]
    image: MedicalImage | None
    label: Annotated[str, Field(description="its class: nodule, or one of those of an imported model")]
    above_operating_score: bool


class MedicalVolume(TypedDict):
    """The image that was searched."""

    size_ijk: Annotated[list[int], Field(description="columns, rows, slices")]
    spacing_mm: Annotated[Point, Field(description="between columns, rows and slices")]
    origin_lps_mm: Annotated[Point, Field(description="centre of the first voxel")]
    direction: Annotated[list[Point], Field(description="rows of the matrix whose columns are the axes of i, j and k")]
    identifiers: Annotated[dict[str, str], Field(description="DICOM's unique identifiers, where there are any")]
    source: Literal["DICOM", "file"]
    instance_numbers: list[int] | None


class MedicalLungs(TypedDict):
    """What was taken for lungs."""

    box_lps_mm: Box
    aerated_ml: float


class MedicalResult(ComputedWith):
    """``result.json``: the findings, and the image that they are in."""

    findings: list[MedicalFinding]
    operating_score: Annotated[
        float, Field(description="the score at which the calibrating scans had one false finding each")
    ]
    volume: MedicalVolume
    lungs: Annotated[MedicalLungs | None, Field(description="null where no lung was found, and nothing was searched")]
    remarks: Annotated[list[str], Field(description="sentences that a reader must see before the findings")]


Coordinate = Annotated[float, Field(ge=-10_000, le=10_000)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class MedicalMissed(TypedDict):
    """A nodule that a reviewer says was missed."""

    centre_lps_mm: Annotated[list[Coordinate], Field(min_length=3, max_length=3, description="within the scan")]
    diameter_mm: Annotated[float, Field(gt=0, le=300)]


class MedicalEarlier(TypedDict):
    """A finding of the earlier scan."""

    rank: Annotated[int, Field(description="in the earlier scan")]
    mean_diameter_mm: float


class MedicalChange(TypedDict):
    """What became of a finding since the earlier scan."""

    rank: int
    change: Annotated[
        Literal["new", "not imaged", "larger", "smaller", "stable"],
        Field(
            description="by more than 1.5 mm of the mean diameter; new: no listed finding of the earlier scan is "
            "there; not imaged: nor does that scan reach so far"
        ),
    ]
    mean_diameter_mm: float
    earlier: MedicalEarlier | None
    diameter_change_mm: float | None
    volume_change_percent: Annotated[int | None, Field(description="null where one of the volumes is")]
    doubling_days: Annotated[
        int | None, Field(description="of the volume; null unless that grew by a quarter or more, and days are given")
    ]
    place_lps_mm: Annotated[Point, Field(description="where it lies, or would lie, in the earlier scan")]
    place_slice: Annotated[
        int | None, Field(description="the slice of that place, from 1; null beyond the scan's ends or sides")
    ]
    distance_mm: Annotated[float | None, Field(description="from that place to the earlier finding")]


class MedicalGone(MedicalEarlier):
    """A finding of the earlier scan of which none is listed now."""

    place_lps_mm: Annotated[Point, Field(description="where it would lie in the scan")]
    place_slice: Annotated[
        int | None, Field(description="the slice of that place, from 1; null beyond the scan's ends or sides")
    ]


class MedicalComparison(TypedDict):
    """The findings beside those of an earlier scan of the same patient."""

    days: Annotated[float | None, Field(description="between the scans, as given")]
    correlation: Annotated[float, Field(description="of the two images around the lungs, aligned: how well they fit")]
    vessel_correlation: Annotated[
        float | None,
        Field(description="of pieces of the lungs at their places; a quarter is less; null where too few lie in both"),
    ]
    findings: Annotated[list[MedicalChange], Field(description="above the operating score, now or before")]
    gone: Annotated[list[MedicalGone], Field(description="above the operating score then, and not listed now")]
    weaker: Annotated[int, Field(description="findings left out: below the operating score, now and before")]
    weaker_gone: Annotated[int, Field(description="the same of the earlier scan, of which none is listed now")]
    remarks: Annotated[list[str], Field(description="what limits the comparison")]


SCHEMAS = Schemas(options=MedicalOptions, result=MedicalResult, missed=MedicalMissed)
