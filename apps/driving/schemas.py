"""What a request may ask for and what ``result.json`` holds, as the description of the HTTP interface states it.

Metres and radians in the LiDAR frame: x ahead, y to the left, z up. A frame without a sweep is in that frame by its
camera's calibration.
"""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from shared.app import Schemas
from shared.result_schema import ComputedWith

Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class DrivingOptions(TypedDict, total=False):
    """The options of a request; what is left out has its default."""

    model: Annotated[str, Field(description="the model, such as pointpillars; the first that has what it needs")]
    score: Annotated[
        float, Field(ge=0, le=1, description="the least score of every class; that of the calibration without it")
    ]
    topic: Annotated[str, Field(description="the topic of the sweeps in a ROS bag that has several")]


class DrivingBox(TypedDict):
    """An object."""

    name: Annotated[str, Field(description="its class")]
    score: Annotated[float, Field(ge=0, le=1)]
    centre_lidar_m: Annotated[Triple, Field(description="the middle of the box, not of its bottom")]
    size_m: Annotated[Triple, Field(description="length, width, height")]
    yaw: Annotated[float, Field(description="from x towards y, in [-pi, pi); 0 looks along x")]


class DrivingFrameBox(DrivingBox):
    """An object, and the frame that it is in."""

    frame: str


class DrivingFrame(TypedDict):
    """A frame."""

    name: str
    model: Annotated[str, Field(description="the model that answered")]
    boxes: Annotated[list[DrivingBox], Field(description="the highest score first")]
    lidar_to_global: NotRequired[Annotated[list[list[float]], Field(description="4 x 4, where the pose is known")]]
    remarks: NotRequired[Annotated[list[str], Field(description="what is to be known before the boxes are used")]]


class DrivingResult(ComputedWith):
    """``result.json``: the objects by frame, and once more all of them."""

    frames: list[DrivingFrame]
    boxes: Annotated[list[DrivingFrameBox], Field(description="of all frames, frame by frame")]
    remarks: NotRequired[Annotated[list[str], Field(description="those of the frames, one of a kind")]]


Metres = Annotated[float, Field(ge=-1000, le=1000)]
Side = Annotated[float, Field(gt=0, le=100)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class DrivingMissed(TypedDict):
    """An object that a reviewer says was missed."""

    frame: Annotated[str, Field(max_length=500, description="the name of its frame in `frames`")]
    name: Annotated[str, Field(pattern=r"^[^\s\x00]{1,64}$", description="its class, one word")]
    centre_lidar_m: Annotated[list[Metres], Field(min_length=3, max_length=3, description="the middle of the box")]
    size_m: Annotated[list[Side], Field(min_length=3, max_length=3, description="length, width, height")]
    yaw: Annotated[float, Field(ge=-6.2832, le=6.2832, description="from x towards y; 0 looks along x")]


SCHEMAS = Schemas(options=DrivingOptions, result=DrivingResult, missed=DrivingMissed)
