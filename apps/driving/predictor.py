"""The predictor: frames in, boxes out. It neither reads nor writes files."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from apps.driving.inference import sweep_checks
from apps.driving.inference.detect import CameraDetector, Detector, Images, LidarDetector, shown_boxes
from apps.driving.inference.options import Options as Options
from apps.driving.inference.partners import is_trained_for
from apps.driving.inference.video import overlapped
from apps.driving.models import SECOND_STAGE
from apps.driving.types import CORRECTABLE_MODELS, Boxes3D, Detections, Frame
from shared.deploy.programs.store import weights_digest
from shared.deploy.provenance import only_synthetic
from shared.deploy.registry import newest_partner
from shared.errors import InvalidInputError
from shared.progress import report_each
from shared.threads import torch_threads_divided

if TYPE_CHECKING:
    from torch import Tensor

    from shared.deploy.artifact import Artifact, Manifest

WEIGHTS = Path(__file__).parent / "weights"
_NEEDS = {"lidar": "LiDAR sweep", "camera": "image with a calibration"}
_ADD = {"lidar": "add its sweep (.bin, .pcd, .npy)", "camera": "add its image and calibration"}
_OTHER = {"lidar": "camera", "camera": "LiDAR"}
_RENDERED = (
    "{} was trained on rendered images only and finds hardly any object in real ones; import a camera checkpoint of "
    "mmdetection3d: trivium import driving CONFIG CHECKPOINT.pth --registry models"
)


class Prepared(NamedTuple):
    """A frame, the model chosen for it, and its images on the device if that model is one of our camera networks."""

    frame: Frame
    model: str
    images: list[Images]


class Computed(NamedTuple):
    """The network's output for a frame: maps for each image, or boxes if the detector decodes them itself.

    Boxes from a sweep are not yet corrected by the second stage.
    """

    prepared: Prepared
    found: list[dict[str, Tensor]] | Boxes3D


class DrivingPredictor:
    """Detects objects in frames: in the sweep if there is one, else in the images.

    ``detectors`` are by model name, the default model first; ``least_scores`` (score thresholds) are by model and
    class; ``digests`` of the weights, those of a second stage included, are by model. ``rendered`` names the models
    that were trained on synthetic data only: such a camera model comes after all other camera models, and its answers
    carry a remark, because rendered images transfer less well to real ones than synthetic sweeps do. ``manifests`` are
    those of the detectors and their second stages.
    """

    takes: ClassVar[type[Frame]] = Frame

    def __init__(
        self,
        *,
        detectors: Mapping[str, Detector],
        least_scores: Mapping[str, Mapping[str, float]],
        digests: Mapping[str, str | None] | None = None,
        rendered: Collection[str] = (),
        manifests: Sequence[Manifest] = (),
        device: str = "cpu",
    ) -> None:
        self.detectors, self.least_scores = dict(detectors), dict(least_scores)
        self._rendered = {name for name in rendered if detectors[name].sensor == "camera"}
        self.digests, self.device, self.manifests = dict(digests or {}), device, tuple(manifests)
        self.programs = {name: each.program for name, each in self.detectors.items() if each.program is not None}
        self.second_stages: dict[str, str] = {}
        for name, each in self.detectors.items():
            if (
                isinstance(each, LidarDetector)
                and each.second_stage is not None
                and each.second_stage.program is not None
            ):
                self.programs[SECOND_STAGE], self.second_stages[name] = each.second_stage.program, SECOND_STAGE

    @classmethod
    def load(cls, artifacts: Sequence[Artifact], device: str) -> DrivingPredictor:
        """The predictor for one or several artifacts. Reads only the model and input settings of their recipes.

        A second stage corrects the boxes of the detector whose boxes it was trained on; a second stage given alone
        brings that detector along. The score thresholds are then those calibrated for both together.
        """
        from apps.driving.inference.artifacts import open_detector, open_second_stage

        detecting = [artifact for artifact in artifacts if artifact.manifest.name != SECOND_STAGE] or [
            _detector_for(artifacts[0])
        ]
        detectors, thresholds, digests = {}, {}, {}
        manifests = [artifact.manifest for artifact in detecting]
        for artifact in detecting:
            name, detector = artifact.manifest.name, open_detector(artifact, device)
            second = next((candidate for candidate in artifacts if is_trained_for(candidate, artifact)), None)
            if second is not None and isinstance(detector, LidarDetector):
                detector = replace(detector, second_stage=open_second_stage(second, device))
                digests[SECOND_STAGE] = weights_digest(second)
                manifests.append(second.manifest)
            digests[name] = weights_digest(artifact)
            detectors[name], thresholds[name] = detector, least_scores((second or artifact).manifest.calibration)
        return cls(
            detectors=detectors,
            least_scores=thresholds,
            digests=digests,
            rendered=[artifact.manifest.name for artifact in detecting if only_synthetic(artifact.manifest)],
            manifests=manifests,
            device=device,
        )

    def predict(self, batch: Sequence[Frame], options: Options | None = None) -> list[Detections]:
        """The detections in each frame. Each frame is processed by itself: its result does not depend on the batch.

        On a GPU, images are prepared and boxes decoded while the GPU computes other frames of the batch. On a CPU, the
        second stage corrects the boxes of one sweep while the network processes the next, each with half of torch's
        threads.
        """
        with closing(self._answers(batch, options or Options())) as answers:
            return [answer for _, answer in zip(report_each(batch, "frame"), answers, strict=True)]

    def _answers(self, batch: Sequence[Frame], options: Options) -> Generator[Detections]:
        """The answers of ``predict`` in order: frame by frame until the remaining frames can be overlapped."""
        left = list(batch)
        while left and not self._should_overlap(left, options):
            yield self.finish(self.compute(self.prepare(left.pop(0), options)), options)
        if not left:
            return
        on_cpu = self.device == "cpu"
        answers = overlapped(
            left,
            lambda frame: self.prepare(frame, options),
            self.compute,
            lambda computed: self.finish(computed, options),
            device=self.device,
            readers=1 if on_cpu else None,  # a sweep needs no preparation
        )
        with torch_threads_divided(2) if on_cpu else nullcontext(), closing(answers):
            for _, answer in answers:
                yield answer.result()

    def _should_overlap(self, frames: Sequence[Frame], options: Options) -> bool:
        """Whether to overlap frames: always on a GPU; on a CPU if most have a second stage and torch has two threads.

        Not before the programs are loaded: the fastest one is chosen by CPU time, which would include both threads.
        """
        if len(frames) == 1 or self.device != "cpu":
            return len(frames) > 1
        models = [options.model or self.preferred_model(_sensors(frame)) for frame in frames]
        corrected = [model for model in models if model in self.second_stages]
        if 2 * len(corrected) <= len(frames) or torch.get_num_threads() == 1:
            return False
        needed = {name for model in corrected for name in (model, self.second_stages[model])}
        return all(self.programs[name].opener is None for name in needed & self.programs.keys())

    def open_programs(self, model: str) -> None:
        """Loads the programs of a model and of its second stage, as the first frame would."""
        for name in (model, self.second_stages.get(model)):
            if name in self.programs:
                self.programs[name].open()

    def choose_model(self, frame: Frame, requested: str | None = None) -> str:
        """The model for a frame: the ``requested`` one, or the first whose sensor the frame has.

        Raises ``InvalidInputError`` if there is none.
        """
        return self.choose_for_sensors(frame.name, _sensors(frame), requested)

    def choose_for_sensors(self, name: str, available: Mapping[str, bool], requested: str | None = None) -> str:
        """As ``choose_model``, for the frame ``name`` with the sensors (``lidar``, ``camera``) marked ``available``."""
        if requested is not None and requested not in self.detectors:
            raise InvalidInputError(f"the model {requested} is not loaded; loaded: {self._loaded}")
        preferred = self.preferred_model(available)
        if requested is None:
            if preferred is not None:
                return preferred
            sensors = list(dict.fromkeys(detector.sensor for detector in self.detectors.values()))
        elif available[self.detectors[requested].sensor]:
            return requested
        else:
            sensors = [self.detectors[requested].sensor]
        ways = [_ADD[sensor] for sensor in sensors]
        if preferred is not None:
            ways.append(f"choose model={preferred}")
        elif len(sensors) == 1 and available.get("camera" if sensors[0] == "lidar" else "lidar"):
            ways.append(f"use a {_OTHER[sensors[0]]} model instead: name its artifact with --artifact")
        lacking, needing = " or ".join(_NEEDS[sensor] for sensor in sensors), requested or self._loaded
        verb = "needs" if len(needing.split(", ")) == 1 else "need"
        raise InvalidInputError(f"{name} has no {lacking}, which {needing} {verb}; {', or '.join(ways)}")

    def preferred_model(self, available: Mapping[str, bool]) -> str | None:
        """The first model for the sensors (``lidar``, ``camera``) that ``available`` marks as present, or None.

        LiDAR models come before camera models.
        """
        for name in sorted(
            self.detectors, key=lambda model: (self.detectors[model].sensor == "camera", model in self._rendered)
        ):
            if available[self.detectors[name].sensor]:
                return name
        return None

    def uses_camera(self, requested: str | None) -> bool:
        """Whether the model for frames with both a sweep and images uses the images."""
        name = requested or self.preferred_model({"lidar": True, "camera": True})
        return name in self.detectors and self.detectors[name].sensor == "camera"

    def detect(self, frame: Frame, model: str | None = None) -> Boxes3D:
        """All boxes of the network, of any score and before overlaps are suppressed: the input of average precision."""
        return self.detectors[self.choose_model(frame, model)].detect(frame)

    def prepare(self, frame: Frame, options: Options) -> Prepared:
        """Step 1 of 3 of ``predict``: chooses the model and moves the images to the device."""
        model = self.choose_model(frame, options.model)
        detector = self.detectors[model]
        return Prepared(frame, model, detector.prepare(frame) if isinstance(detector, CameraDetector) else [])

    def compute(self, prepared: Prepared) -> Computed:
        """Step 2 of 3: runs the network."""
        detector = self.detectors[prepared.model]
        if isinstance(detector, CameraDetector):
            return Computed(prepared, detector.compute(prepared.images))
        if isinstance(detector, LidarDetector):
            return Computed(prepared, detector.compute(prepared.frame))
        return Computed(prepared, detector.detect(prepared.frame))

    def finish(self, computed: Computed, options: Options) -> Detections:
        """Step 3 of 3: decodes and corrects the boxes, keeps those to show, and adds remarks."""
        (frame, model, images), found = computed
        detector = self.detectors[model]
        if not isinstance(found, Boxes3D):
            assert isinstance(detector, CameraDetector)
            found = detector.boxes(frame, images, found)
        elif isinstance(detector, LidarDetector):
            found = detector.postprocess(found, frame)
        thresholds = self.least_scores.get(model, {}) if options.score is None else options.score
        remarks = [*frame.remarks, *([_RENDERED.format(model)] if model in self._rendered else [])]
        if isinstance(detector, LidarDetector) and frame.points_lidar_m is not None:
            remarks += sweep_checks.remarks(frame.points_lidar_m, detector.input.range_m, model)
            remarks += sweep_checks.missing_sweeps_remarks(frame, detector.earlier_sweeps, model)
        return Detections(boxes=shown_boxes(found, thresholds), model=model, remarks=tuple(remarks))

    @property
    def _loaded(self) -> str:
        return ", ".join(self.detectors) or "none"


def _sensors(frame: Frame) -> dict[str, bool]:
    """For each sensor, whether the frame has its data."""
    return {"lidar": frame.points_lidar_m is not None, "camera": bool(frame.cameras)}


def least_scores(calibration: Mapping[str, object]) -> dict[str, float]:
    """The score threshold of each class from an artifact's calibration."""
    found = calibration.get("least_scores", {})
    return {str(name): float(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def served_with(artifact: Artifact, *registries: Path) -> list[Artifact]:
    """The newest second stage that was trained on a detector's boxes: in ``registries``, beside it, or shipped."""
    if artifact.manifest.name not in CORRECTABLE_MODELS:
        return []
    roots = (*registries, artifact.path.resolve().parent.parent, WEIGHTS)
    second = newest_partner(SECOND_STAGE, lambda candidate: is_trained_for(candidate, artifact), roots)
    return [] if second is None else [second]


def _detector_for(second: Artifact) -> Artifact:
    """The detector whose boxes a second stage was trained on: beside it, shipped, or at the path in its recipe."""
    from apps.driving.datasets.found_boxes import detector_of
    from apps.driving.types import BoxInput
    from shared.recipe_file import from_mapping

    for name in CORRECTABLE_MODELS:
        roots = (second.path.resolve().parent.parent, WEIGHTS)
        if (detector := newest_partner(name, lambda candidate: is_trained_for(second, candidate), roots)) is not None:
            return detector
    return detector_of(from_mapping(BoxInput, second.recipe()["recipe"]["input"]))
