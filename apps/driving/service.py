"""The HTTP side: request files and options to frames, detections to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from apps.driving.adapters.kitti_layouts import IMAGES
from apps.driving.adapters.registry import read_frames, sensors_from_names
from apps.driving.inference.options import read_options
from apps.driving.outputs import cityscapes3d, nuscenes, picture, view
from apps.driving.outputs import kitti as kitti_results
from apps.driving.outputs.result import result
from apps.driving.outputs.scene import SCENE, read_scene, scene
from apps.driving.outputs.whole_frame import input_name, whole_frame
from apps.driving.predictor import DrivingPredictor
from apps.driving.types import Detections, Frame
from shared.deploy.predictor import PICTURE, Decoded, DeferredFiles, Request, Response

_MAX_FRAMES_DRAWN = 8


class DrivingCodec:
    """Reads frames from a request, in any format of ``adapters/registry.py`` or a zip of it, and writes the response.

    Options: ``model`` (such as pointpillars), ``score`` (one threshold for all classes), and ``topic`` of a ROS bag.
    """

    def __init__(self, predictor: DrivingPredictor) -> None:
        self._predictor = predictor

    def decode(self, request: Request) -> Decoded[Frame]:
        """The frames in the request's files. Raises ``InvalidInputError``, also if no model fits a frame."""
        options = read_options(request.options)
        suggested = sensors_from_names(request.files)
        if suggested == {"lidar": False, "camera": True}:
            # Before the images are read: without the model, it would not help to add a missing calibration.
            image = next((file for file in request.files if file.suffix.lower() in IMAGES), request.files[0])
            self._predictor.choose_for_sensors(image.name, suggested, options.model)
        frames = read_frames(request.files, options.topic)
        for frame in frames:
            self._predictor.choose_model(frame, options.model)
        return Decoded(inputs=tuple(frames), options=options)

    def likely_models(self, request: Request) -> Sequence[str]:
        """The requested model, or the one that fits the sensors suggested by the file names, and its second stage."""
        model = request.options.get("model") or self._predictor.preferred_model(sensors_from_names(request.files))
        return [name for name in (model, self._predictor.second_stages.get(model or "")) if name]

    def encode(self, decoded: Decoded[Frame], outputs: Sequence[Detections]) -> Response:
        """result.json, the benchmarks' result files, the viewer's files; later a picture of the first frames."""
        frames, boxes = decoded.inputs, [output.boxes for output in outputs]
        classes = [self._predictor.detectors[output.model].input.classes for output in outputs]
        files = dict(view.files(frames, boxes, classes))
        for frame, found in zip(frames, boxes, strict=True):
            if frame.cameras:
                text = kitti_results.write(found, next(iter(frame.cameras.values())))
                files[_unhidden(f"{Path(frame.name).name}.txt")] = text.encode()
            if (name := cityscapes3d.file_name(frame)) is not None:
                files[_unhidden(name)] = cityscapes3d.write(found, frame).encode()
        found_all = result(frames, outputs)
        if any(frame.lidar_to_global is not None for frame in frames):
            files[nuscenes.FILE] = "".join(nuscenes.submission(found_all["frames"])).encode()
        content, drawn_from = scene(frames[:_MAX_FRAMES_DRAWN], boxes[:_MAX_FRAMES_DRAWN], many=len(frames) > 1)
        return Response(
            result=found_all,
            files=files,
            models=tuple(sorted({output.model for output in outputs})),
            later=DeferredFiles(
                files={PICTURE: drawn_from},
                sources={SCENE: content},
                inputs={input_name(index): partial(whole_frame, frame) for index, frame in enumerate(frames)},
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, drawn from the points and images that the viewer shows."""
        assert name == PICTURE
        return picture.draw_all(*read_scene(sources))


def _unhidden(name: str) -> str:
    """The file name without leading dots, so that no file of a case is hidden."""
    return name.lstrip(".")
