"""The forecaster's settings, and the network as an exported program. Imports torch only when a network is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apps.finance.types import FinanceInput, LibraryTFT
from shared.deploy.programs.program import Arrays, Program

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from apps.finance.models.library_tft import LibraryForecaster
    from apps.finance.models.tft import Forecaster


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceModel:
    """Settings of the forecaster. ``fast`` selects the equivalent faster implementation; the weights are the same.

    If the input describes a network over covariates (trained here or imported), that network is built instead.
    """

    name: str = "tft-anomaly"
    hidden: int = 16
    hidden_continuous: int = 8
    heads: int = 2
    lstm_layers: int = 1
    dropout: float = 0.1
    fast: bool = True

    def build(self, input: FinanceInput) -> Forecaster | LibraryForecaster:
        """A ``Forecaster`` with random weights from torch's global generator."""
        if input.library is not None:
            from apps.finance.models.library_tft import LibraryForecaster

            return LibraryForecaster(self.sized(input.library), input)
        from apps.finance.models.tft import Forecaster, build_tft

        network = build_tft(self, input)
        if self.fast:
            from apps.finance.models.fast import accelerate

            network = accelerate(network, context=input.context, horizon=input.horizon)
        return Forecaster(network, context=input.context, horizon=input.horizon, fast=self.fast)

    def sized(self, library: LibraryTFT) -> LibraryTFT:
        """The settings of a network over covariates with this model's sizes; those of a checkpoint are unchanged."""
        if not library.trained_here:
            return library
        sizes = {
            "hidden_size": self.hidden,
            "hidden_continuous_size": self.hidden_continuous,
            "attention_head_size": self.heads,
            "lstm_layers": self.lstm_layers,
            "dropout": self.dropout,
        }
        return replace(library, network={**library.network, **sizes})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramForecaster:
    """An exported program that computes the same as ``Forecaster``, on NumPy arrays."""

    program: Program
    context: int
    horizon: int

    def quantiles(self, windows: Arrays) -> NDArray[Any]:
        """(B, horizon, Q) for the arrays that ``Forecaster.forward`` takes; ignores other entries of ``windows``."""
        inputs = {name: windows[name] for name in ("encoder_cont", "decoder_cont", "static")}
        return self.program.arrays(inputs)["quantiles"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramLibraryForecaster:
    """An exported program that is called like ``LibraryForecaster``."""

    program: Program
    settings: LibraryTFT
    context: int
    horizon: int

    @property
    def quantiles(self) -> tuple[float, ...]:
        return self.settings.quantiles

    def __call__(self, reals: Tensor, categories: Tensor, target_scale: Tensor) -> Tensor:
        """Quantiles (B, horizon, Q) in the units of the series."""
        category_input = {"categories": categories} if categories.shape[2] else {}
        return self.program({"reals": reals, **category_input, "target_scale": target_scale})["quantiles"]
