"""Quantisation: calibrated on what the network sees, judged by the domain's score, refused where that falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.app import App, DenseNetwork, DomainScore
from shared.deploy import quantize as quantizing
from shared.deploy.artifact import WEIGHTS, Artifact, Manifest, describe_file, open_artifact, write_manifest
from shared.deploy.predictor import Decoded, Request, Response
from shared.deploy.programs.choosing import Network, asked_program, open_program
from shared.deploy.programs.program import Program
from shared.deploy.programs.store import found_programs
from shared.deploy.quantize import quantize
from shared.errors import InvalidInputError


class Blur(nn.Module):
    """An image (B, 1, 8, 8) to one as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers(image)
        return found


def dense() -> DenseNetwork:
    return DenseNetwork(module=Blur().eval(), inputs={"image": torch.rand(2, 1, 8, 8)}, outputs=("blurred",))


class BlurPredictor:
    """Blurs as many random images as a file says."""

    def __init__(self, artifact: Artifact) -> None:
        example = {"image": torch.rand(1, 1, 8, 8)}
        program = open_program(Network(artifact=artifact, build=dense, example=lambda: example, varying={}))
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
    """An application whose score with torch is 0.8, and ``after`` in INT8."""

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


def given(folder: Path, text: str) -> list[Path]:
    (folder / "images.txt").write_text(text)
    return [folder / "images.txt"]


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_program_is_judged_and_kept_or_refused(artifact: Artifact, tmp_path: Path) -> None:
    data: Any = None
    lines: list[str] = []
    entry = quantize(make_app(0.799), artifact, data, files=given(tmp_path, "12"), say=lines.append)
    assert entry.scores["accepted"] is True and entry.scores["before"][0]["value"] == 0.8
    assert entry.scores["after"][0]["count"] == "3 nodules" and "12 inputs of images.txt" in entry.inputs
    assert 0 < entry.error < 0.3 and any("CPM: 0.8 before, 0.799 after" in line for line in lines)
    with asked_program("openvino-int8"):
        program = BlurPredictor(artifact).programs["blur"]
    assert program.name == "openvino-int8"
    image = torch.rand(3, 1, 8, 8)
    expected = Blur().eval()(image).detach()
    assert (program({"image": image})["blurred"] - expected).abs().max() < 0.1 * expected.abs().max()

    with pytest.raises(InvalidInputError, match="loses more than 1% of a score in INT8"):
        quantize(make_app(0.7), artifact, data, files=given(tmp_path, "12"), say=lines.append)
    assert any("the layers next to the outputs left as it was" in line for line in lines)
    entry_now = found_programs(artifact)[0]["openvino-int8"].entry
    assert entry_now is not None and entry_now.scores["accepted"] is False
    assert BlurPredictor(artifact).programs["blur"].name != "openvino-int8"
    forced = quantize(make_app(0.7), artifact, data, files=given(tmp_path, "12"), force=True)
    assert forced.scores["accepted"] is True and forced.scores["forced"] is True


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_program_becomes_part_of_the_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = None
    entry = quantize(make_app(0.8), artifact, data, files=given(tmp_path, "12"), into_artifact=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    held = open_artifact(artifact.path)
    assert held.manifest.programs["openvino-int8"] == entry
    assert {"openvino-int8.xml", "openvino-int8.bin"} <= held.manifest.files.keys()
    with asked_program("openvino-int8"):
        assert BlurPredictor(held).programs["blur"].name == "openvino-int8"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3", "the network sees 3 inputs in images.txt; calibration needs at least 8"),
        ("99", "all that the network sees as image in images.txt is 1"),
        ("a letter", "images.txt is no number of images"),
    ],
)
def test_a_calibration_set_that_is_too_small_or_of_another_domain_is_refused(
    artifact: Artifact, tmp_path: Path, text: str, sentence: str
) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match=sentence):
        quantize(make_app(0.8), artifact, data, files=given(tmp_path, text))


def test_an_application_without_a_score_quantises_nothing(artifact: Artifact) -> None:
    data: Any = None
    with pytest.raises(InvalidInputError, match="no score by which"):
        quantize(replace(make_app(0.8), score=None), artifact, data)
