"""The options of a request and the content of ``result.json``, as the OpenAPI document describes them.

Metres and radians in the LiDAR frame: x forward, y left, z up. A frame without a sweep uses the LiDAR frame of its
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
    """The options of a request; an omitted option has its default."""

    model: Annotated[str, Field(description="the model, such as pointpillars; default: the first usable one")]
    score: Annotated[
        float, Field(ge=0, le=1, description="the score threshold for all classes; default: the calibrated thresholds")
    ]
    topic: Annotated[str, Field(description="the topic of the sweeps, if a ROS bag has several")]


class DrivingBox(TypedDict):
    """A detected object."""

    name: Annotated[str, Field(description="its class")]
    score: Annotated[float, Field(ge=0, le=1)]
    centre_lidar_m: Annotated[Triple, Field(description="the centre of the box, not of its bottom face")]
    size_m: Annotated[Triple, Field(description="length, width, height")]
    yaw: Annotated[float, Field(description="from x towards y, in [-pi, pi); 0 means heading along x")]


class DrivingFrameBox(DrivingBox):
    """A detected object and the frame that it is in."""

    frame: str


class DrivingFrame(TypedDict):
    """A frame."""

    name: str
    model: Annotated[str, Field(description="the model that made the detections")]
    boxes: Annotated[list[DrivingBox], Field(description="the highest score first")]
    lidar_to_global: NotRequired[Annotated[list[list[float]], Field(description="4 x 4; given if the pose is known")]]
    remarks: NotRequired[Annotated[list[str], Field(description="what to know before using the boxes")]]


class DrivingResult(ComputedWith):
    """``result.json``: the objects by frame, and again as one list."""

    frames: list[DrivingFrame]
    boxes: Annotated[list[DrivingFrameBox], Field(description="the boxes of all frames, frame by frame")]
    remarks: NotRequired[Annotated[list[str], Field(description="the remarks of all frames, each kind once")]]


Metres = Annotated[float, Field(ge=-1000, le=1000)]
Side = Annotated[float, Field(gt=0, le=100)]


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class DrivingMissed(TypedDict):
    """An object that a reviewer marks as missed."""

    frame: Annotated[str, Field(max_length=500, description="the name of its frame in `frames`")]
    name: Annotated[str, Field(pattern=r"^[^\s\x00]{1,64}$", description="its class, one word")]
    centre_lidar_m: Annotated[list[Metres], Field(min_length=3, max_length=3, description="the centre of the box")]
    size_m: Annotated[list[Side], Field(min_length=3, max_length=3, description="length, width, height")]
    yaw: Annotated[float, Field(ge=-6.2832, le=6.2832, description="from x towards y; 0 means heading along x")]


SCHEMAS = Schemas(options=DrivingOptions, result=DrivingResult, missed=DrivingMissed)
