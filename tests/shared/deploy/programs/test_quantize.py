"""Quantisation: calibrated on the network's inputs, accepted or rejected by the domain's score."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.app import App, DenseNetwork, DomainScore
from shared.deploy import calibration_inputs as calibrating
from shared.deploy import quantize as quantizing
from shared.deploy.artifact import WEIGHTS, Artifact, Manifest, describe_file, open_artifact, write_manifest
from shared.deploy.calibration_inputs import calibration_inputs
from shared.deploy.predictor import Decoded, Request, Response
from shared.deploy.programs import openvino
from shared.deploy.programs.choosing import Network, open_program, use_program
from shared.deploy.programs.program import Placement, Program
from shared.deploy.programs.store import StoredProgram, stored_programs
from shared.deploy.quantize import quantize
from shared.errors import InvalidInputError


class Blur(nn.Module):
    """Maps an image (B, 1, 8, 8) to an image of the same size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers(image)
        return found


def dense() -> DenseNetwork:
    inputs = {"image": torch.rand(2, 1, 8, 8)}
    return DenseNetwork(module=Blur().eval(), inputs=inputs, outputs=("blurred",), traceable=True)


class BlurPredictor:
    """Blurs as many random images as the number in a file."""

    def __init__(self, artifact: Artifact, brightness: float = 1.0) -> None:
        example = {"image": brightness * torch.rand(1, 1, 8, 8)}
        program = open_program(Network(artifact=artifact, build=dense, example=lambda: example))
        self.programs: dict[str, Program] = {"blur": program}

    def predict(self, batch: Sequence[Tensor], options: Any = None) -> list[Tensor]:
        return [self.programs["blur"]({"image": image})["blurred"] for image in batch]


class BlurCodec:
    def decode(self, request: Request) -> Decoded[Tensor]:
        text = request.files[0].read_text()
        if not text.isdecimal():
            raise InvalidInputError(f"{request.files[0].name} is no number of images")
        images = torch.rand(int(text), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return Decoded(inputs=(images if int(text) != 99 else torch.ones(99, 1, 8, 8),), options=())

    def encode(self, decoded: Decoded[Tensor], outputs: Sequence[Tensor]) -> Response:
        return Response(result={}, picture=b"")


def make_app(after: float) -> App:
    """An application with the score 0.8 with torch, and ``after`` in INT8."""

    def score(predictor: Any, data: Any, limit: int | None) -> tuple[DomainScore, ...]:
        value = 0.8 if predictor.programs["blur"].name == "torch" else after
        return (DomainScore(name="CPM", value=value, count="3 nodules", data="nothing"),)

    return App(
        name="blur",
        title="Blur",
        summary="",
        notice="",
        root=Path(__file__).parent,
        models=("blur",),
        recipes=dict,
        dense=lambda recipe, model: dense(),
        predictor=lambda artifacts, device: BlurPredictor(artifacts[0]),
        codec=lambda predictor: BlurCodec(),
        score=score,
    )


@dataclass(frozen=True)
class Images:
    """A data set of ``training`` cases of four images each."""

    training: int

    def fingerprint(self) -> dict[str, str]:
        return {"description": "images of nothing"}


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRIVIUM_PROGRAM", raising=False)
    monkeypatch.setattr(quantizing, "dense_network", lambda app, artifact: dense())
    home = tmp_path / "blur" / "1"
    home.mkdir(parents=True)
    save_file({key: value.clone() for key, value in Blur().state_dict().items()}, home / WEIGHTS)
    files = {WEIGHTS: describe_file(home / WEIGHTS)}
    write_manifest(
        home,
        Manifest(name="blur", version=1, app="blur", inputs=(), outputs=(), scores={}, data={}, files=files),
    )
    return open_artifact(home)


def images(folder: Path, text: str) -> list[Path]:
    (folder / "images.txt").write_text(text)
    return [folder / "images.txt"]


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_program_is_accepted_or_rejected_by_its_score(artifact: Artifact, tmp_path: Path) -> None:
    data: Any = None
    lines: list[str] = []
    with use_program("openvino-int8"):
        (remark,) = BlurPredictor(artifact).programs["blur"].remarks
    assert "there is no openvino-int8.xml for these weights; `trivium quantize` makes it" in remark
    entry = quantize(make_app(0.799), artifact, data, files=images(tmp_path, "12"), report=lines.append)
    assert entry.scores["accepted"] is True and entry.scores["before"][0]["value"] == 0.8
    assert entry.scores["after"][0]["count"] == "3 nodules" and "12 inputs of images.txt" in entry.inputs
    assert 0 < entry.error < 0.3 and any("CPM: 0.8 before, 0.799 after" in line for line in lines)
    with use_program("openvino-int8"):
        program = BlurPredictor(artifact).programs["blur"]
    assert program.name == "openvino-int8"
    image = torch.rand(3, 1, 8, 8)
    expected = Blur().eval()(image).detach()
    assert (program({"image": image})["blurred"] - expected).abs().max() < 0.1 * expected.abs().max()
    assert not program.remarks
    assert not any("cannot show" in line for line in lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("brightness", "times"), [(1.0, 0), (1000.0, 1)])
def test_it_is_reported_if_predictors_reject_an_accepted_program_or_its_score_shows_nothing(
    artifact: Artifact, tmp_path: Path, brightness: float, times: int
) -> None:
    data: Any = None
    lines: list[str] = []
    nothing_found = (DomainScore(name="AP", value=0.0, count="3 objects", data="nothing"),)
    app = replace(
        make_app(0.8),
        predictor=lambda artifacts, device: BlurPredictor(artifacts[0], brightness),
        score=lambda predictor, data, limit: nothing_found,
    )
    assert quantize(app, artifact, data, files=images(tmp_path, "12"), report=lines.append).scores["accepted"] is True
    assert any(line.startswith("AP: 0 already before, so that it cannot show what INT8 loses") for line in lines)
    rejections = [
        line for line in lines if line.startswith("openvino-int8 is rejected: its outputs differ from torch's")
    ]
    assert len(rejections) == times and all("only with --program openvino-int8" in line for line in rejections)


@pytest.mark.filterwarnings("ignore")
def test_a_rejected_program_is_used_only_by_name_and_with_a_remark(artifact: Artifact, tmp_path: Path) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match="loses more than 1% of a score in INT8"):
        quantize(make_app(0.7), artifact, data, files=images(tmp_path, "12"))
    assert BlurPredictor(artifact).programs["blur"].name != "openvino-int8"
    with use_program("openvino-int8"):
        program = BlurPredictor(artifact).programs["blur"]
    assert program.name == "openvino-int8"
    scores = "CPM 0.8 before, 0.7 after"
    assert f"the requested program openvino-int8 was rejected for its score: {scores}" in program.remarks
    forced = quantize(make_app(0.7), artifact, data, files=images(tmp_path, "12"), force=True)
    assert forced.scores["accepted"] is True and forced.scores["forced"] is True
    with use_program("openvino-int8"):
        assert not BlurPredictor(artifact).programs["blur"].remarks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("into_artifact", [False, True])
def test_an_accepted_program_stays_if_another_attempt_is_rejected(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, into_artifact: bool
) -> None:
    data: Any = None
    entry = quantize(make_app(0.8), artifact, data, files=images(tmp_path, "12"), into_artifact=into_artifact)
    if into_artifact:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    opened = open_artifact(artifact.path)
    file = stored_programs(opened)[0]["openvino-int8"].path
    before = describe_file(file), describe_file(file.with_suffix(".bin"))
    with pytest.raises(InvalidInputError, match="loses more than 1%"):
        quantize(make_app(0.7), opened, data, files=images(tmp_path, "16"))
    found = stored_programs(opened)[0]["openvino-int8"]
    assert found == StoredProgram(file, entry) and before == (
        describe_file(file),
        describe_file(file.with_suffix(".bin")),
    )
    with use_program("openvino-int8"):
        program = BlurPredictor(opened).programs["blur"]
    assert program.name == "openvino-int8" and not program.remarks


@pytest.mark.filterwarnings("ignore")
def test_an_accepted_program_of_the_artifact_precedes_a_rejected_one_in_the_cache(
    artifact: Artifact, tmp_path: Path
) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match="loses more than 1%"):
        quantize(make_app(0.7), artifact, data, files=images(tmp_path, "12"))
    rejected = stored_programs(artifact)[0]["openvino-int8"]
    assert rejected.entry is not None
    accepted = replace(rejected.entry, scores={"accepted": True})
    files = dict(artifact.manifest.files)
    for file in (rejected.path, rejected.path.with_suffix(".bin")):
        shutil.copy(file, artifact.path / file.name)
        files[file.name] = describe_file(file)
    accepted_artifact = Artifact(
        artifact.path, replace(artifact.manifest, programs={"openvino-int8": accepted}, files=files)
    )
    assert stored_programs(accepted_artifact)[0]["openvino-int8"] == StoredProgram(
        artifact.path / rejected.path.name, accepted
    )


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_program_becomes_part_of_the_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = None
    entry = quantize(make_app(0.8), artifact, data, files=images(tmp_path, "12"), into_artifact=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    opened = open_artifact(artifact.path)
    assert opened.manifest.programs["openvino-int8"] == entry
    assert {"openvino-int8.xml", "openvino-int8.bin"} <= opened.manifest.files.keys()
    with use_program("openvino-int8"):
        assert BlurPredictor(opened).programs["blur"].name == "openvino-int8"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3", "the network gets only 3 inputs from images.txt; calibration needs at least 8"),
        ("99", "the network's input image is 1 everywhere in images.txt"),
        ("a letter", "images.txt is no number of images"),
    ],
)
def test_a_calibration_set_that_is_too_small_or_of_another_domain_is_refused(
    artifact: Artifact, tmp_path: Path, text: str, sentence: str
) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match=sentence):
        quantize(make_app(0.8), artifact, data, files=images(tmp_path, text))


def test_a_network_that_openvino_cannot_compute_is_refused(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(model: Any, format: str, place: Placement) -> Any:
        raise RuntimeError("LSTMSequence node expects Constant for port 4")

    data: Any = None
    monkeypatch.setattr(openvino, "compile_in_memory", compiled)
    with pytest.raises(InvalidInputError, match=r"this network in INT8; .* with --int8 dynamic"):
        quantize(make_app(0.8), artifact, data, files=images(tmp_path, "12"))


def test_a_network_without_onnx_is_refused_before_calibration(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(app: App, artifact: Artifact) -> DenseNetwork:
        raise NotImplementedError("torch serves it")

    data: Any = None
    monkeypatch.setattr(quantizing, "dense_network", refuse)
    with pytest.raises(InvalidInputError, match="blur/1 cannot be quantised: torch serves it"):
        quantize(make_app(0.8), artifact, data, files=[])


class Remembering(nn.Module):
    """Maps an image (B, 1, 8, 8) to one of the same size, line by line, with a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(8, 8, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.memory(image[:, 0])[0][:, None]
        return found


@pytest.mark.filterwarnings("ignore")
def test_a_network_with_recurrent_layers_is_refused_before_calibration(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "dense_network", lambda app, artifact: replace(dense(), module=Remembering()))
    data: Any = None
    lines: list[str] = []
    with pytest.raises(InvalidInputError, match=r"recurrent layers \(LSTMSequence\), .* with --int8 dynamic"):
        quantize(make_app(0.8), artifact, data, files=images(tmp_path, "12"), report=lines.append)
    assert not lines


def test_an_application_without_a_score_cannot_quantise(artifact: Artifact) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match="no score to compare"):
        quantize(replace(make_app(0.8), score=None), artifact, data)


def test_calibration_uses_training_cases_unless_files_are_given(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "recipe_of", lambda app, recipe: SimpleNamespace(input=0.5))
    monkeypatch.setattr(Artifact, "recipe", lambda self: {})
    requests: list[tuple[Any, Any, int]] = []

    def training_cases(data: Any, input: Any, max_cases: int) -> Iterator[Tensor]:
        requests.append((data, input, max_cases))
        return (torch.full((4, 1, 8, 8), input + number / 10) for number in range(data.training))

    app = replace(make_app(0.8), training_cases=training_cases)
    data: Any = Images(training=20)
    found = calibration_inputs(app, artifact, data=data)
    assert requests == [(data, 0.5, 64)]
    assert found.description == "64 inputs of 16 training cases (images of nothing)"
    assert [float(inputs["image"].mean()) for inputs in found.inputs[:3]] == pytest.approx([0.5, 0.6, 0.7])
    from_files = calibration_inputs(app, artifact, images(tmp_path, "12"), data=data)
    assert len(requests) == 1 and from_files.description == "12 inputs of images.txt"
    few: Any = Images(training=1)
    with pytest.raises(InvalidInputError, match=r"gets only 4 inputs from 1 training cases .* needs at least 8"):
        calibration_inputs(app, artifact, data=few)


def test_recorded_calls_are_sampled_from_the_whole_case() -> None:
    recorder = calibrating.InputRecorder(max_per_case=4)
    for case in range(20):
        for call in range(100):
            recorder.add({"image": torch.tensor([[100.0 * case + call]])})
        recorder.end_case()
    values = [int(inputs["image"]) for inputs in recorder.calls]
    assert [value // 100 for value in values] == [case for case in range(20) for _ in range(4)]
    within = sorted(value % 100 for value in values)
    assert len(values) == 80 and within[15] < 35 and within[-16] > 65


@pytest.mark.filterwarnings("ignore")
def test_artifacts_served_together_are_scored_together(artifact: Artifact, tmp_path: Path) -> None:
    """Alone, it would lose a tenth of its score; together, nothing. The other artifact keeps its own program."""
    other_home = tmp_path / "second" / "1"
    shutil.copytree(artifact.path, other_home)
    write_manifest(other_home, replace(artifact.manifest, name="second"))
    second = open_artifact(other_home)
    together: list[dict[str, str]] = []

    class Both(BlurPredictor):
        def __init__(self, artifacts: Sequence[Artifact]) -> None:
            super().__init__(artifacts[0])
            for artifact in artifacts[1:]:
                self.programs[artifact.manifest.name] = BlurPredictor(artifact).programs["blur"]

    def score(predictor: Any, data: Any, limit: int | None) -> tuple[DomainScore, ...]:
        together.append({name: program.name for name, program in predictor.programs.items()})
        alone = "second" not in predictor.programs and predictor.programs["blur"].name != "torch"
        return (DomainScore(name="CPM", value=0.7 if alone else 0.8, count="3 nodules", data="nothing"),)

    app = replace(
        make_app(0.0),
        score=score,
        predictor=lambda artifacts, device: Both(artifacts),
        served_with=lambda one: [second],
    )
    data: Any = None
    entry = quantize(app, artifact, data, files=images(tmp_path, "12"))
    assert entry.scores["accepted"] is True
    assert [programs["blur"] for programs in together] == ["torch", "openvino-int8"]
    assert together[0]["second"] == together[1]["second"] != "openvino-int8"
    with pytest.raises(InvalidInputError, match="loses more than 1%"):
        quantize(replace(app, served_with=lambda one: ()), artifact, data, files=images(tmp_path, "12"))


@pytest.mark.parametrize(("gains", "precision"), [(True, "bf16"), (False, "f32")])
def test_unquantised_layers_run_in_bf16_if_the_cpu_is_faster_with_it(
    gains: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "cpu_gains_from_bf16", lambda: gains)
    settings = {format: openvino._settings(format, Placement("cpu", 1)) for format in openvino.OpenVino.formats}
    assert settings["int8"]["INFERENCE_PRECISION_HINT"] == precision
    assert settings["fp32"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert settings["bf16"]["INFERENCE_PRECISION_HINT"] == "bf16"
