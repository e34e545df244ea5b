"""The samples that an application's form and routes offer: those that its default model can read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from shared.app import App, Sample
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError

log = logging.getLogger("trivium.serve")


@dataclass(frozen=True, slots=True)
class OfferedSamples:
    """The samples of an application for the models in a registry."""

    app: App
    registry: Registry

    def input_needed(self) -> str | None:
        """What a file must contain for the default model; None if it accepts any file of the application.

        Also None if the model cannot be opened: a request to it then reports the reason.
        """
        if self.app.input_needed is None:
            return None
        try:
            return self.app.input_needed(self.registry.serving(self.app)[0])
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return None

    def available(self) -> Sequence[Sample]:
        """The samples that the default model can read now."""
        return [sample for sample in self.app.samples() if self.fault(sample) is None]

    def fault(self, sample: Sample, model: str | None = None) -> str | None:
        """Why the model named, by default the first, cannot read a sample; None if it can, or cannot be opened."""
        if self.app.sample_fault is None:
            return None
        try:
            served = self.registry.serving(self.app)
            artifact = next((artifact for artifact in served if artifact.manifest.name == model), served[0])
            return self.app.sample_fault(artifact, sample)
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return None

    def get(self, name: str, model: str | None = None) -> Sample:
        """The sample called ``name``. Raises ``InvalidInputError`` if it is unknown, or with the reason if the model
        cannot read it."""
        samples = {sample.name: sample for sample in self.app.samples()}
        if name not in samples:
            available = ", ".join(sample.name for sample in self.available())
            raise InvalidInputError(f"{self.app.name} has no sample {name!r}; available: {available or 'none'}")
        if fault := self.fault(samples[name], model):
            raise InvalidInputError(fault)
        return samples[name]
