from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apps.medical.inference.tiles import Tiling
from apps.medical.models.retinanet import RetinaNet3D
from apps.medical.predictor import NodulePredictor
from apps.medical.types import ChestInput
from tests.apps.medical.chests import WHO, chest, pack, series
from tests.apps.medical.pacs import Archive, StubServer, report


@pytest.fixture
def medical_data(data_root: Path) -> Path:
    return data_root / "medical"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """An archive of the small chest's DICOM series, which names a patient."""
    return pack(tmp_path, series(chest(), SpecificCharacterSet="ISO_IR 192", **WHO))


@pytest.fixture(scope="module")
def collected_at_the_end() -> Iterator[None]:
    """Runs the garbage collector after the module's tests, so that it does not run in those of another module."""
    yield
    gc.collect()


@pytest.fixture
def stub() -> Iterator[StubServer]:
    """A stub of the server; its cases have a report."""
    found = StubServer(report=report())
    yield found
    found.close()


@pytest.fixture
def archive() -> Iterator[Archive]:
    """A PACS that receives a gateway's reports."""
    found = Archive()
    yield found
    found.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The gateway's log."""
    caplog.set_level(logging.INFO, "trivium.gateway")
    return caplog


@pytest.fixture(scope="package")
def untrained() -> NodulePredictor:
    """A predictor with random weights, which finds something everywhere."""
    torch.manual_seed(0)
    grid = ChestInput(spacing_mm=(2.8, 2.8, 5.0))
    detector = RetinaNet3D(layers=(1, 1, 1, 1), planes=8, features=8, stem=3).build(grid)
    torch.nn.init.normal_(detector.network.classification_head.cls_logits.weight, std=0.1)
    return NodulePredictor(
        detector=detector,
        input=grid,
        tiling=Tiling(size=(64, 64, 32), margin=(16, 16, 8), batch=2),
        device="cpu",
        operating_score=0.5,
        precision="fp32",
    )
