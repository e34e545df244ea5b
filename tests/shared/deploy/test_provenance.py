"""What the pages say about the training of a model: shipped, trained further, or imported."""

from __future__ import annotations

from typing import Any

import pytest

from shared.deploy.artifact import Manifest
from shared.deploy.provenance import only_synthetic, training_brief, training_text

SYNTHETIC = {"description": "80 scenes made here.", "synthetic": True}
REAL = {"description": "40 scans of LUNA16", "synthetic": False}
IMPORTED = {"importer": "mmdet3d", "file": "a.pth", "configuration": "smoke"}
SHIPPED = {"artifact": "model 1", "recipe": "small", "began_from": {"recipe": "small", "steps": 3}}


def manifest(data: dict[str, Any], **more: Any) -> Manifest:
    return Manifest(name="model", version=2, app="line", inputs=(), outputs=(), scores={}, data=data, **more)


@pytest.mark.parametrize(
    ("about", "text", "brief", "synthetic"),
    [
        (manifest(SYNTHETIC), "trained on synthetic data: 80 scenes made here", "trained on synthetic data", True),
        (manifest(REAL), "trained on real data: 40 scans of LUNA16", "trained on real data", False),
        (
            manifest(SYNTHETIC, training={"began_from": SHIPPED}),
            "trained on synthetic data: 80 scenes made here",
            "trained on synthetic data",
            True,
        ),
        (
            manifest(REAL, training={"began_from": SHIPPED}),
            "trained on real data: 40 scans of LUNA16; training began from model 1",
            "trained on real data",
            False,
        ),
        (
            manifest({"description": "trained elsewhere; see source", "synthetic": False}, source=IMPORTED),
            "imported from a.pth (mmdet3d, smoke): Trivium does not know what these weights were trained on",
            "imported, so what it was trained on is not known",
            False,
        ),
        (
            manifest(
                SYNTHETIC, training={"began_from": {"recipe": "run", "began_from": {**SHIPPED, "source": IMPORTED}}}
            ),
            "trained on synthetic data: 80 scenes made here; training began from weights imported from a.pth (mmdet3d, "
            "smoke): Trivium does not know what these weights were trained on",
            "trained on synthetic data, from weights of unknown origin",
            False,
        ),
        (
            manifest(REAL, training={"began_from": {"file": "start.pt"}}),
            "trained on real data: 40 scans of LUNA16; training began from the weights in start.pt: Trivium does not "
            "know what these weights were trained on",
            "trained on real data, from weights of unknown origin",
            False,
        ),
    ],
)
def test_a_model_s_training_is_described_as_far_as_it_is_known(
    about: Manifest, text: str, brief: str, synthetic: bool
) -> None:
    assert (training_text(about), training_brief(about), only_synthetic(about)) == (text, brief, synthetic)
