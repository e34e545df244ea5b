"""The samples that an application's form and routes offer: those that the model which predicts by default can read."""

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
        """What a file must hold for the model that predicts by default; None where it takes any of the application's.

        None, too, where the model cannot be opened: who asks it for an answer is told why.
        """
        if self.app.input_needed is None:
            return None
        try:
            return self.app.input_needed(self.registry.serving(self.app)[0])
        except InvalidInputError as refusal:
            log.warning("%s: %s", self.app.name, refusal)
            return None

    def at_hand(self) -> Sequence[Sample]:
        """Those that can be predicted on now."""
        return self.app.samples() if self.input_needed() is None else ()

    def get(self, name: str) -> Sample:
        """The sample called ``name``; refuses an unknown one, and one that the model cannot read."""
        samples = {sample.name: sample for sample in self.at_hand()}
        if name not in samples:
            raise InvalidInputError(
                f"{self.app.name} has no sample {name!r}; it has {', '.join(samples) or 'none at hand'}"
            )
        return samples[name]
