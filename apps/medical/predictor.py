"""The predictor: takes chest CTs and returns findings. Predicting reads and writes no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from apps.medical.inference.candidates import Candidates, find_candidates
from apps.medical.inference.grid import reorient_to_lps, stored_piece
from apps.medical.inference.options import MAX_FINDINGS
from apps.medical.inference.options import Options as Options
from apps.medical.inference.partners import is_trained_for
from apps.medical.inference.second_stage import BATCH, rescored
from apps.medical.inference.tiles import Tiling
from apps.medical.models import MODELS
from apps.medical.models.boxes import BoxDecoder
from apps.medical.models.classifier import NAME as SECOND_STAGE
from apps.medical.models.classifier import CandidateClassifier
from apps.medical.models.dense import (
    CLASSIFIER_INPUTS,
    CLASSIFIER_OUTPUT,
    INPUT,
    OUTPUTS,
    dense_classifier,
    dense_network,
    fold_batch_norm,
)
from apps.medical.types import ChestInput, CTVolume, Findings, Nodule, triple
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.module import ProgramModule
from shared.deploy.programs.program import Program, Tensors
from shared.deploy.programs.store import weights_digest
from shared.deploy.registry import newest_partner
from shared.errors import InvalidInputError
from shared.precision import Precision, autocast_dtype
from shared.progress import report_stage

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from torch import nn

    from apps.medical.inference.lungs import Lungs
    from apps.medical.models.retinanet import RetinaNet3D
    from shared.app import DenseNetwork
    from shared.deploy.artifact import Artifact

SecondStage: TypeAlias = "tuple[nn.Module, tuple[int, int, int]]"
"""The second-stage network, and the size of its patches along x, y, z in voxels."""

WEIGHTS = Path(__file__).parent / "weights"
LARGE_TILE = 1 << 23
"""Tiles with more voxels than this run with a batch size of 1, to limit memory."""


ALL_FINDINGS = Options(min_score=0.0, max_findings=MAX_FINDINGS)
"""Options that return as many findings as LUNA16 accepts per scan."""


class NodulePredictor:
    """Finds lung nodules. Findings that score at least ``operating_score`` are listed apart from weaker marks.

    Pass either ``detector``, a network on the grid of ``input`` that torch runs with ``precision``, or ``program``,
    which computes the network's output maps, with ``decoder``, which turns them into boxes. ``digests`` holds the
    SHA-256 of the weights by model name.
    """

    takes: ClassVar[type[CTVolume]] = CTVolume

    def __init__(
        self,
        *,
        detector: RetinaNetDetector | None = None,
        decoder: BoxDecoder | None = None,
        input: ChestInput,
        device: str = "cpu",
        operating_score: float = 0.5,
        tiling: Tiling | None = None,
        precision: Precision = "auto",
        program: Program | None = None,
        model: str = "lung_nodules",
        second_stage: SecondStage | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        import torch

        if program is None:
            assert detector is not None
            self.network: nn.Module = fold_batch_norm(detector.to(device).eval())
        else:
            self.network = ProgramModule(program, (INPUT,), OUTPUTS)
        self.decoder = decoder or BoxDecoder.of_detector(detector)
        self.programs = {} if program is None else {model: program}
        self.input, self.device = input, device
        self.operating_score = operating_score
        self.second_stage = second_stage
        self.digests = dict(digests or {})
        if second_stage is not None and isinstance(second_stage[0], ProgramModule):
            self.programs[SECOND_STAGE] = second_stage[0].program
        self.tiling = tiling or Tiling(
            size=input.tile_size,
            batch=1 if np.prod(input.tile_size) > LARGE_TILE else 2,
            trimmed=input.patch_size == input.tile_size,
        )
        self.dtype = autocast_dtype(precision, torch.device(device)) if program is None else None

    @classmethod
    def load(cls, artifacts: Sequence[Artifact], device: str) -> NodulePredictor:
        """Loads a detector's artifact, and the second stage if its artifact is given too.

        Of the recipes it reads only the settings of the models and of the detector's input. If only a second stage is
        given, its detector is found and loaded. A second stage that was trained on the marks of another detector is
        ignored. With a second stage, the operating score is that of the second stage, which applies to both together.
        """
        artifact = next((given for given in artifacts if given.manifest.name != SECOND_STAGE), None)
        if artifact is None:
            artifact = _find_detector(artifacts[0])
        second = next((given for given in artifacts if is_trained_for(given, artifact)), None)
        model, input = _settings(artifact)
        decoder = BoxDecoder.of_settings(model)
        operating_score = float((second or artifact).manifest.calibration.get("operating_score", 0.5))
        program = open_program(
            Network(
                artifact=artifact,
                build=lambda: dense_network(open_detector(artifact, device)),
                example=lambda: _example_tiles(input, decoder.size_divisible),
            ),
            device,
        )
        return cls(
            decoder=decoder,
            input=input,
            device=device,
            operating_score=operating_score,
            program=program,
            model=artifact.manifest.name,
            second_stage=None if second is None else open_second_stage(second, device),
            digests={part.manifest.name: weights_digest(part) for part in (artifact, second) if part is not None},
        )

    def predict(self, batch: Sequence[CTVolume], options: Options | None = None) -> list[Findings]:
        """The findings in each volume, in the order of ``batch``."""
        return [self._predict_one(volume, options or Options()) for volume in batch]

    def candidates(self, stored: CTVolume) -> Candidates | None:
        """The detector's marks before the second stage rescores them; None if no lung is found."""
        from apps.medical.inference.lungs import find_lungs

        volume = reorient_to_lps(stored)
        lungs = find_lungs(volume)
        return None if lungs is None else self._find(volume, lungs)

    def _find(self, volume: CTVolume, lungs: Lungs) -> Candidates:
        return find_candidates(
            self.decoder,
            volume,
            lungs,
            input=self.input,
            tiling=self.tiling,
            network=self.network,
            device=self.device,
            dtype=self.dtype,
        )

    def _predict_one(self, stored: CTVolume, options: Options) -> Findings:
        # Imported here because it imports scipy, which loading a network does not need.
        from apps.medical.inference.lungs import find_lungs

        volume = reorient_to_lps(stored)
        report_stage("finding the lungs")
        lungs = find_lungs(volume)
        if lungs is None:
            return Findings(nodules=(), operating_score=self.operating_score)
        found = self._find(volume, lungs)
        report_stage("measuring")
        if self.second_stage is not None:
            found = rescored(found, *self.second_stage)
        selected = np.nonzero(found.scores >= options.min_score)[0]
        return Findings(
            nodules=measure_nodules(volume, found.chosen(selected[: options.max_findings]), self.input, stored),
            operating_score=self.operating_score,
            lung_box_lps_mm=_lung_box_lps_mm(volume, lungs),
            lung_millilitres=lungs.millilitres,
            lungs_cut=lungs.cut,
            unlisted=int((found.scores[selected[options.max_findings :]] >= self.operating_score).sum()),
        )


def open_detector(artifact: Artifact, device: str = "cpu") -> RetinaNetDetector:
    """MONAI's detector with the weights of an artifact, in evaluation mode."""
    import torch

    from shared.deploy.artifact import load_weights

    model, input = _settings(artifact)
    with torch.random.fork_rng():
        detector = model.build(input)
    loaded: RetinaNetDetector = load_weights(detector, artifact, device)
    return loaded


def served_with(artifact: Artifact, *registries: Path) -> list[Artifact]:
    """The newest second stage that was trained on this detector's marks, in a list; empty if there is none.

    Searches ``registries``, the artifact's own registry, and the shipped weights.
    """
    if artifact.manifest.name == SECOND_STAGE:
        return []
    roots = (*registries, artifact.path.resolve().parent.parent, WEIGHTS)
    second = newest_partner(SECOND_STAGE, lambda candidate: is_trained_for(candidate, artifact), roots)
    return [] if second is None else [second]


def _find_detector(second: Artifact) -> Artifact:
    """The detector that a second stage was trained for.

    It is in the same registry, in that of the artifact that the training used (a run is in no registry), or shipped.
    """
    roots = [second.path.resolve().parent.parent, WEIGHTS]
    if recorded := second.recipe()["recipe"].get("data", {}).get("detector"):
        roots.insert(1, Path(recorded).resolve().parent.parent)
    detector = newest_partner(MODELS[0], lambda candidate: is_trained_for(second, candidate), roots)
    if detector is None:
        raise InvalidInputError(
            f"the detector that {second.path} was trained for is neither in the same registry nor shipped: name its "
            "artifact"
        )
    return detector


def open_second_stage(artifact: Artifact, device: str = "cpu") -> SecondStage:
    """The second-stage network with the weights of an artifact, and the size of its patches (x, y, z in voxels)."""
    from shared.deploy.artifact import load_weights
    from shared.recipe_file import from_mapping

    settings = from_mapping(CandidateClassifier, artifact.recipe()["recipe"]["model"])

    def build() -> DenseNetwork:
        network = settings.build(ChestInput())
        return dense_classifier(settings, load_weights(network, artifact, device))

    program = open_program(
        Network(
            artifact=artifact,
            build=build,
            example=lambda: _example_marks(settings.size),
            formats=("fp32", "bf16", "fp16"),
        ),
        device,
    )
    return ProgramModule(program, CLASSIFIER_INPUTS, (CLASSIFIER_OUTPUT,)), settings.size


def _example_tiles(input: ChestInput, divisible: Sequence[int]) -> Tensors:
    # Imported here because it reads one of the sample scans, which is needed only to time programs.
    from apps.medical.inference.examples import example_tiles

    return example_tiles(input, divisible)


def _example_marks(size: tuple[int, int, int]) -> Tensors:
    from apps.medical.inference.examples import example_candidates

    return example_candidates(ChestInput(), size, BATCH)


def _settings(artifact: Artifact) -> tuple[RetinaNet3D, ChestInput]:
    """The model and input settings of an artifact."""
    from apps.medical.models.retinanet import RetinaNet3D
    from shared.recipe_file import from_mapping

    settings = artifact.recipe()["recipe"]
    return from_mapping(RetinaNet3D, settings["model"]), from_mapping(ChestInput, settings["input"])


def measure_nodules(
    volume: CTVolume, candidates: Candidates, input: ChestInput, stored: CTVolume | None = None
) -> tuple[Nodule, ...]:
    """The candidates as nodules, each measured in the slices of ``volume``, whose axes must be those nearest to LPS.

    ``stored`` is the scan as it was provided, to whose voxels the masks refer; ``volume`` if it is None.
    """
    from apps.medical.inference.diameter import measure_nodule

    hu_xyz = volume.voxels_zyx.transpose(2, 1, 0)
    spacing_mm = np.array(volume.spacing_mm)
    nodules = []
    for low, high, score, label in zip(
        *candidates.ends_lps_mm(), candidates.scores.tolist(), candidates.labels.tolist(), strict=True
    ):
        centre = triple(((low + high) / 2).tolist())
        # The sides along LPS are used as sides along the volume's nearest axes. Transforming the corners of the box
        # would change the lengths in an oblique volume.
        middle, half = volume.to_index_ijk(centre) + 0.5, (high - low) / 2 / spacing_mm
        found = measure_nodule(hu_xyz, np.concatenate([middle - half, middle + half]), spacing_mm)
        axes_mm = None if found is None else found.axes_mm
        piece = None
        if found is not None:
            first, last = found.box[:3], found.box[3:]
            middle, half = volume.to_lps_mm((first + last) / 2 - 0.5), (last - first) / 2 * spacing_mm
            low, high = middle - half, middle + half
            piece = stored_piece(stored or volume, found.mask_xyz, first.astype(int).tolist())
        nodules.append(
            Nodule(
                centre_lps_mm=centre,
                mean_diameter_mm=float(np.mean((high - low)[:2] if axes_mm is None else axes_mm)),
                score=score,
                box_lps_mm=(*triple(low.tolist()), *triple(high.tolist())),
                label=input.classes[label],
                axes_mm=axes_mm,
                piece=piece,
            )
        )
    return tuple(nodules)


def _lung_box_lps_mm(volume: CTVolume, lungs: Lungs) -> tuple[float, float, float, float, float, float]:
    ends = volume.to_lps_mm([lungs.low_ijk, [n - 1 for n in lungs.high_ijk]])
    return (*triple(ends.min(axis=0).tolist()), *triple(ends.max(axis=0).tolist()))
