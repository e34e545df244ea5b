"""What is known about the training of a model, in words, for its users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.deploy.artifact import Manifest

UNKNOWN_DATA = "not known: the weights were imported; see source"
"""The ``description`` of the training data of an imported model, in its manifest."""
_UNKNOWN = "Trivium does not know what these weights were trained on"


def training_text(manifest: Manifest) -> str:
    """How the model was trained, as the end of a sentence that begins with its name.

    A model that was imported, or whose training began from imported weights or from a file of weights, says so, and
    that the data of that training is not known.
    """
    if manifest.source:
        return f"imported from {_file(manifest.source)}: {_UNKNOWN}"
    kind = "synthetic" if manifest.data.get("synthetic") else "real"
    text = f"trained on {kind} data: {str(manifest.data.get('description', '')).strip('. ')}"
    origins = list(_origins(manifest.training))
    if (source := next((origin["source"] for origin in origins if origin.get("source")), None)) is not None:
        return f"{text}; training began from weights imported from {_file(source)}: {_UNKNOWN}"
    if (file := next((origin["file"] for origin in origins if "file" in origin), None)) is not None:
        return f"{text}; training began from the weights in {file}: {_UNKNOWN}"
    artifact = next((origin["artifact"] for origin in origins if "artifact" in origin), None)
    # Weights that ship, and those trained further on synthetic data alone, need no other description of their data.
    if artifact is not None and not manifest.data.get("synthetic"):
        return f"{text}; training began from {artifact}"
    return text


def training_brief(manifest: Manifest) -> str:
    """How the model was trained, in a few words, as the end of a sentence that begins with its name."""
    if manifest.source:
        return "imported, so what it was trained on is not known"
    text = f"trained on {'synthetic' if manifest.data.get('synthetic') else 'real'} data"
    return f"{text}, from weights of unknown origin" if _began_from_unknown(manifest) else text


def only_synthetic(manifest: Manifest) -> bool:
    """Whether all of the model's training is known to have been on synthetic data."""
    return bool(manifest.data.get("synthetic")) and not manifest.source and not _began_from_unknown(manifest)


def _began_from_unknown(manifest: Manifest) -> bool:
    """Whether training began from weights that were not trained here."""
    return any(origin.get("source") or "file" in origin for origin in _origins(manifest.training))


def _origins(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of the trainings that a training began from, the last one first."""
    while isinstance(training := training.get("began_from", {}), Mapping) and training:
        yield training


def _file(source: Mapping[str, Any]) -> str:
    """The name of the imported file, with its importer and, if the source names one, its configuration."""
    details = [str(source[key]) for key in ("importer", "configuration") if source.get(key)]
    name = str(source.get("file", "another program"))
    return f"{name} ({', '.join(details)})" if details else name
