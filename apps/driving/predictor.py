"""The predictor: frames in, boxes out. It reads no file and writes none."""

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
from apps.driving.inference.partners import belongs_to
from apps.driving.inference.video import overlapped
from apps.driving.models import SECOND_STAGE
from apps.driving.types import CORRECTED, Boxes3D, Detections, Frame
from shared.deploy.programs.store import weights_digest
from shared.deploy.registry import newest_partner
from shared.errors import InvalidInputError
from shared.progress import report_each
from shared.threads import torch_threads_divided

if TYPE_CHECKING:
    from torch import Tensor

    from shared.deploy.artifact import Artifact, Manifest

WEIGHTS = Path(__file__).parent / "weights"
_NEEDS = {"lidar": "LiDAR sweep", "camera": "image with a calibration"}
_RENDERED = (
    "{} learnt from rendered images alone and finds hardly any object in real ones; import a camera checkpoint of "
    "mmdetection3d: trivium import driving CONFIG CHECKPOINT.pth --registry models"
)


class Prepared(NamedTuple):
    """A frame, the model that looks at it, and its images on the device where that is a network of ours."""

    frame: Frame
    model: str
    images: list[Images]


class Computed(NamedTuple):
    """What the network gave for a frame: maps of its images, or boxes where its detector decodes them itself.

    Those of a sweep are not yet corrected.
    """

    prepared: Prepared
    found: list[dict[str, Tensor]] | Boxes3D


class DrivingPredictor:
    """Finds objects in frames with the detectors that it has: in the sweep where there is one, else in the images.

    ``detectors`` by the model's name, that which serves by default first; ``least_scores`` by model and class;
    ``digests`` of their weights and a second stage's, by model. ``rendered`` names the models that learnt from
    synthetic data alone: in images, which do not transfer as sweeps do, another camera model comes before them, and
    their answers say so. ``manifests`` are those of the detectors, then of what corrects their boxes.
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
        self.programs = {name: one.program for name, one in self.detectors.items() if one.program is not None}
        self.second_stages: dict[str, str] = {}
        for name, one in self.detectors.items():
            if isinstance(one, LidarDetector) and one.second_stage is not None and one.second_stage.program is not None:
                self.programs[SECOND_STAGE], self.second_stages[name] = one.second_stage.program, SECOND_STAGE

    @classmethod
    def load(cls, artifacts: Sequence[Artifact], device: str) -> DrivingPredictor:
        """The predictor of one or several artifacts; reads their models' and inputs' settings alone.

        A second stage corrects the boxes of the detector that it has learnt from, and alone it brings that one. The
        least scores are then those of both together.
        """
        from apps.driving.inference.artifacts import open_detector, open_second_stage

        detecting = [one for one in artifacts if one.manifest.name != SECOND_STAGE] or [_corrected_by(artifacts[0])]
        detectors, least, digests = {}, {}, {}
        manifests = [one.manifest for one in detecting]
        for artifact in detecting:
            name, detector = artifact.manifest.name, open_detector(artifact, device)
            second = next((one for one in artifacts if belongs_to(one, artifact)), None)
            if second is not None and isinstance(detector, LidarDetector):
                detector = replace(detector, second_stage=open_second_stage(second, device))
                digests[SECOND_STAGE] = weights_digest(second)
                manifests.append(second.manifest)
            digests[name] = weights_digest(artifact)
            detectors[name], least[name] = detector, least_scores((second or artifact).manifest.calibration)
        return cls(
            detectors=detectors,
            least_scores=least,
            digests=digests,
            rendered=[one.manifest.name for one in detecting if one.manifest.data.get("synthetic")],
            manifests=manifests,
            device=device,
        )

    def predict(self, batch: Sequence[Frame], options: Options | None = None) -> list[Detections]:
        """What is in each frame; every frame by itself, so that it does not depend on what came along with it.

        On a GPU images are prepared and boxes worked out while it computes other frames of the batch. On a CPU the
        second stage corrects the boxes of one sweep while the network sees the next, each with half of torch's threads.
        """
        with closing(self._answers(batch, options or Options())) as answers:
            return [answer for _, answer in zip(report_each(batch, "frame"), answers, strict=True)]

    def _answers(self, batch: Sequence[Frame], options: Options) -> Generator[Detections]:
        """Those of ``predict`` in order: one by one, and what is left together as soon as it can be."""
        left = list(batch)
        while left and not self._overlaps(left, options):
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
            readers=1 if on_cpu else None,  # a sweep needs no preparing
        )
        with torch_threads_divided(2) if on_cpu else nullcontext(), closing(answers):
            for _, answer in answers:
                yield answer.result()

    def _overlaps(self, frames: Sequence[Frame], options: Options) -> bool:
        """Whether frames are under way together: on a CPU where most are corrected and there are threads for both.

        Not before the programs are loaded: the fastest is found by the processor's time, which would be both threads'.
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
        """Loads the programs of a model and of its second stage, as their first frame would."""
        for name in (model, self.second_stages.get(model)):
            if name in self.programs:
                self.programs[name].open()

    def choose_model(self, frame: Frame, asked: str | None = None) -> str:
        """The model for a frame: that which was ``asked`` for, or the first that has what it needs.

        Raises ``InvalidInputError`` where there is none.
        """
        held = _sensors(frame)
        if asked is not None:
            if asked not in self.detectors:
                raise InvalidInputError(f"the model {asked} is not loaded; loaded: {self._loaded}")
            sensor = self.detectors[asked].sensor
            if not held[sensor]:
                others = [name for name, detector in self.detectors.items() if held[detector.sensor]]
                instead = f"add it, or choose model={others[0]}" if others else "add it"
                raise InvalidInputError(f"{frame.name} has no {_NEEDS[sensor]}, which {asked} needs; {instead}")
            return asked
        if (preferred := self.preferred_model(held)) is not None:
            return preferred
        needed = " or ".join(_NEEDS[detector.sensor] for detector in self.detectors.values())
        raise InvalidInputError(f"{frame.name} has no {needed}, which the loaded models need; loaded: {self._loaded}")

    def preferred_model(self, held: Mapping[str, bool]) -> str | None:
        """The first model for the sensors, ``lidar`` and ``camera``, that a frame holds data of; None without one.

        A sweep is looked at before images are.
        """
        for name in sorted(
            self.detectors, key=lambda one: (self.detectors[one].sensor == "camera", one in self._rendered)
        ):
            if held[self.detectors[name].sensor]:
                return name
        return None

    def asks_camera(self, asked: str | None) -> bool:
        """Whether the model for frames with both a sweep and images looks at the images."""
        name = asked or self.preferred_model({"lidar": True, "camera": True})
        return name in self.detectors and self.detectors[name].sensor == "camera"

    def detect(self, frame: Frame, model: str | None = None) -> Boxes3D:
        """All boxes that a network finds, of whatever score, overlapping or not: what average precision is taken of."""
        return self.detectors[self.choose_model(frame, model)].detect(frame)

    def prepare(self, frame: Frame, options: Options) -> Prepared:
        """The first of the three steps of ``predict``: chooses the model, brings the images to the device."""
        model = self.choose_model(frame, options.model)
        detector = self.detectors[model]
        return Prepared(frame, model, detector.prepare(frame) if isinstance(detector, CameraDetector) else [])

    def compute(self, prepared: Prepared) -> Computed:
        """The second: the network."""
        detector = self.detectors[prepared.model]
        if isinstance(detector, CameraDetector):
            return Computed(prepared, detector.compute(prepared.images))
        if isinstance(detector, LidarDetector):
            return Computed(prepared, detector.compute(prepared.frame))
        return Computed(prepared, detector.detect(prepared.frame))

    def finish(self, computed: Computed, options: Options) -> Detections:
        """The third: boxes, as they are corrected and those of them that are shown, and remarks."""
        (frame, model, images), found = computed
        detector = self.detectors[model]
        if not isinstance(found, Boxes3D):
            assert isinstance(detector, CameraDetector)
            found = detector.boxes(frame, images, found)
        elif isinstance(detector, LidarDetector):
            found = detector.corrected(found, frame)
        least = self.least_scores.get(model, {}) if options.score is None else options.score
        said = [*frame.remarks, *([_RENDERED.format(model)] if model in self._rendered else [])]
        if isinstance(detector, LidarDetector) and frame.points_lidar_m is not None:
            said += sweep_checks.remarks(frame.points_lidar_m, detector.input.range_m, model)
            said += sweep_checks.too_few_sweeps(frame, detector.earlier_sweeps, model)
        return Detections(boxes=shown_boxes(found, least), model=model, remarks=tuple(said))

    @property
    def _loaded(self) -> str:
        return ", ".join(self.detectors) or "none"


def _sensors(frame: Frame) -> dict[str, bool]:
    """Which sensors a frame holds data of."""
    return {"lidar": frame.points_lidar_m is not None, "camera": bool(frame.cameras)}


def least_scores(calibration: Mapping[str, object]) -> dict[str, float]:
    """The least score of each class, from an artifact's calibration."""
    found = calibration.get("least_scores", {})
    return {str(name): float(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def served_with(artifact: Artifact, *registries: Path) -> list[Artifact]:
    """The newest second stage that has learnt from a detector's boxes: in ``registries``, beside it, or shipped."""
    if artifact.manifest.name not in CORRECTED:
        return []
    roots = (*registries, artifact.path.resolve().parent.parent, WEIGHTS)
    second = newest_partner(SECOND_STAGE, lambda one: belongs_to(one, artifact), roots)
    return [] if second is None else [second]


def _corrected_by(second: Artifact) -> Artifact:
    """The detector that a second stage has learnt from: beside it, shipped, or where its recipe says that it is."""
    from apps.driving.datasets.found_boxes import detector_of
    from apps.driving.types import BoxInput
    from shared.recipe_file import from_mapping

    for name in CORRECTED:
        roots = (second.path.resolve().parent.parent, WEIGHTS)
        if (detector := newest_partner(name, lambda one: belongs_to(second, one), roots)) is not None:
            return detector
    return detector_of(from_mapping(BoxInput, second.recipe()["recipe"]["input"]))
