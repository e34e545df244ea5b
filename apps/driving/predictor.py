"""The predictor: frames in, boxes out. PointPillars where there is a LiDAR sweep, else FCOS3D."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.driving.adapters import archive, kitti, nuscenes
from apps.driving.inference import plausible
from apps.driving.inference.artifacts import open_detector
from apps.driving.inference.detect import Detector, LidarDetector, shown_boxes
from apps.driving.outputs import kitti as kitti_results
from apps.driving.outputs import picture, view
from apps.driving.types import Boxes3D, Frame
from shared.deploy.artifact import Artifact
from shared.deploy.predictor import Request, Response
from shared.errors import InvalidInputError

MODELS = ("pointpillars", "fcos3d")
_OPTIONS = ("model", "score")
_PICTURES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Frames, the model that each is given to, and the least score where the request names one."""

    frames: tuple[Frame, ...]
    models: tuple[str, ...]
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Frames, the model that each was given to, and what was found in each."""

    frames: tuple[Frame, ...]
    models: tuple[str, ...]
    boxes: tuple[Boxes3D, ...]


class DrivingPredictor:
    """Options of a request: ``model`` (pointpillars or fcos3d) and ``score``, the least score for every class."""

    def __init__(self, artifacts: Sequence[Artifact], device: str = "cpu") -> None:
        self.detectors: dict[str, Detector] = {a.manifest.name: open_detector(a, device) for a in artifacts}
        self.digests = {
            a.manifest.name: a.manifest.files.get("weights.safetensors", {}).get("sha256") for a in artifacts
        }
        self.thresholds = {a.manifest.name: least_scores(a.manifest.calibration) for a in artifacts}

    def decode(self, request: Request) -> Inputs:
        """Reads KITTI folders, sweeps and images, nuScenes key frames, and zips of them; refuses what it cannot use."""
        asked, score = _options(request.options)
        frames = read_frames(request.files)
        return Inputs(frames=tuple(frames), models=tuple(self._model(frame, asked) for frame in frames), score=score)

    def predict(self, batch: Sequence[Inputs]) -> Sequence[Outputs]:
        """Every frame by itself, so that what is found in it does not depend on what came along with it."""
        return [
            Outputs(
                frames=inputs.frames,
                models=inputs.models,
                boxes=tuple(
                    self._find(frame, model, inputs.score)
                    for frame, model in zip(inputs.frames, inputs.models, strict=True)
                ),
            )
            for inputs in batch
        ]

    def encode(self, outputs: Outputs) -> Response:
        """result.json, a picture of up to eight frames, KITTI result files, and what the viewer of the form reads."""
        listed = [
            self._line(frame, model, boxes)
            for frame, model, boxes in zip(outputs.frames, outputs.models, outputs.boxes, strict=True)
        ]
        remarks = [f"{line['name']}: {remark}" for line in listed for remark in line.get("remarks", ())]
        flat = [
            {"name": box["name"], "score": box["score"], "frame": entry["name"]}
            | {key: value for key, value in box.items() if key not in ("name", "score")}
            for entry in listed
            for box in entry["boxes"]
        ]
        files = dict(view.files(outputs.frames, outputs.boxes))
        for frame, boxes in zip(outputs.frames, outputs.boxes, strict=True):
            if frame.cameras:
                text = kitti_results.write(boxes, next(iter(frame.cameras.values())))
                files[f"{Path(frame.name).name}.txt"] = text.encode()
        return Response(
            result={"frames": listed, "boxes": flat} | ({"remarks": remarks} if remarks else {}),
            picture=picture.draw_all(outputs.frames[:_PICTURES], outputs.boxes[:_PICTURES]),
            files=files,
            model=_one(outputs.models),
        )

    def find(self, frame: Frame, options: Mapping[str, str]) -> tuple[dict[str, Any], Boxes3D]:
        """What ``result.json`` says of one frame, and its boxes, by a request's options."""
        asked, score = _options(options)
        model = self._model(frame, asked)
        boxes = self._find(frame, model, score)
        return self._line(frame, model, boxes), boxes

    def settings(self, options: Mapping[str, str]) -> dict[str, Any]:
        """What decides the answer to a frame: the digests of the weights, and the options."""
        asked, score = _options(options)
        return {"weights": self.digests, "model": asked, "score": score}

    def _line(self, frame: Frame, model: str, boxes: Boxes3D) -> dict[str, Any]:
        """What ``result.json`` says of one frame, with remarks where its sweep is hardly one for the network."""
        line: dict[str, Any] = {"name": frame.name, "model": model, "boxes": describe(boxes)}
        detector = self.detectors[model]
        if isinstance(detector, LidarDetector) and frame.points_lidar_m is not None:
            found = plausible.remarks(frame.points_lidar_m, detector.input.range_m)
            line |= {"remarks": found} if found else {}
        return line

    def _model(self, frame: Frame, asked: str | None) -> str:
        usable = {"pointpillars": frame.points_lidar_m is not None, "fcos3d": bool(frame.cameras)}
        loaded = [name for name in MODELS if name in self.detectors and usable[name]]
        model = asked or (loaded[0] if loaded else "pointpillars" if usable["pointpillars"] else "fcos3d")
        if model not in MODELS:
            raise InvalidInputError(f"there is no model {model!r}; there are {' and '.join(MODELS)}")
        if model == "pointpillars" and frame.points_lidar_m is None:
            raise InvalidInputError(
                f"{frame.name} has no LiDAR sweep, which pointpillars needs; add it, or choose model=fcos3d"
            )
        if model == "fcos3d" and not frame.cameras:
            raise InvalidInputError(
                f"{frame.name} has no image with a calibration, which fcos3d needs; add them, or choose "
                "model=pointpillars"
            )
        if model not in self.detectors:
            raise InvalidInputError(f"the model {model} is not loaded; loaded: {', '.join(self.detectors) or 'none'}")
        return model

    def _find(self, frame: Frame, model: str, score: float | None) -> Boxes3D:
        return shown_boxes(self.detectors[model].detect(frame), self.thresholds[model] if score is None else score)


def _one(models: Sequence[str]) -> str | None:
    """The model of all frames, or None where they were answered by several."""
    return models[0] if len(set(models)) == 1 else None


def least_scores(calibration: Mapping[str, Any]) -> dict[str, float]:
    """The least score of each class, from an artifact's calibration."""
    return {str(name): float(value) for name, value in calibration.get("least_scores", {}).items()}


def read_frames(files: Sequence[Path]) -> list[Frame]:
    """The frames in what was handed in: a folder, a zip, or files."""
    if len(files) == 1 and zipfile.is_zipfile(files[0]):
        with archive.unpacked(files[0]) as folder:
            try:
                return _frames_of([folder], files[0].name)
            except InvalidInputError as refusal:
                # Where the folder lies is ours; its reader knows the archive's name.
                raise InvalidInputError(
                    str(refusal).replace(str(folder), files[0].name), status=refusal.status
                ) from refusal
    return _frames_of(files, files[0].name if files else "")


def _frames_of(files: Sequence[Path], name: str) -> list[Frame]:
    folder = files[0] if len(files) == 1 and files[0].is_dir() else None
    described = sorted(folder.rglob("sample.json")) if folder else [f for f in files if f.name == "sample.json"]
    if len(described) > 1:
        raise InvalidInputError(f"{name} holds {len(described)} files sample.json; hand in one at a time")
    frames = nuscenes.read(described[0]) if described else kitti.read_files(files)
    if not frames:
        raise InvalidInputError(f"{name} holds no frame")
    # Names tell the frames of a result apart; those of a sample description may repeat or be long.
    if len({frame.name for frame in frames}) < len(frames):
        return [replace(frame, name=f"{number}-{frame.name}") for number, frame in enumerate(frames)]
    return frames


def describe(boxes: Boxes3D) -> list[dict[str, Any]]:
    """Boxes in JSON types, from the best score down: metres and radians in the LiDAR frame."""
    assert boxes.scores is not None
    return [
        {
            "name": boxes.names[i],
            "score": round(float(boxes.scores[i]), 4),
            "centre_lidar_m": [round(float(value), 3) for value in boxes.centre_lidar_m[i]],
            "size_m": [round(float(value), 3) for value in boxes.size_m[i]],
            "yaw": round(float(boxes.yaw[i]), 4),
        }
        for i in range(len(boxes))
    ]


def _options(options: Mapping[str, str]) -> tuple[str | None, float | None]:
    """The model and the least score that a request asks for."""
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise InvalidInputError(f"there is no option {unknown[0]}; there are {' and '.join(_OPTIONS)}")
    return options.get("model") or None, _score(options.get("score") or None)


def _score(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:
        raise InvalidInputError(f"score={text}: give a number from 0 to 1")
    return value
