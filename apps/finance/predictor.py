"""The predictor: takes series and returns the anomalies in them. A pure function that also works in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from apps.finance.inference.calibration import default_stride, from_manifest
from apps.finance.inference.conformal import report
from apps.finance.inference.corporate_actions import CorporateAction, corporate_actions, without_actions
from apps.finance.inference.events import anomalies
from apps.finance.inference.examples import example_windows
from apps.finance.inference.forecasting import CPU_BATCH, AnyForecaster, forecast_each, library_network
from apps.finance.inference.gaps import gaps
from apps.finance.inference.monitor import Monitor
from apps.finance.inference.options import Options
from apps.finance.inference.scoring import Calibration, clip_scores, combine, improbability
from apps.finance.models.settings import FinanceModel, ProgramForecaster, ProgramLibraryForecaster
from apps.finance.models.stored import stored_settings
from apps.finance.types import Detection, FinanceInput, Floats, Forecast, LibraryTFT, Series
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.program import Program, Tensors
from shared.errors import InvalidInputError
from shared.progress import report_each, stage_prefix

if TYPE_CHECKING:
    from apps.finance.models.library_tft import LibraryForecaster
    from apps.finance.models.tft import Forecaster
    from shared.app import DenseNetwork


class FinancePredictor:
    """Finds anomalies in series with a trained forecaster; see ``inference``."""

    takes: ClassVar[type[Series]] = Series

    def __init__(self, *, model: AnyForecaster, calibration: Calibration, stride: int, device: str, name: str) -> None:
        self.model: AnyForecaster = model
        self.programs: dict[str, Program] = {}
        if isinstance(model, ProgramForecaster | ProgramLibraryForecaster):
            self.programs[name.partition(" ")[0]] = model.program
        else:
            model.eval().to(device)
        self.calibration = calibration
        self.stride, self.device, self.name = stride, device, name
        self.series_column: str | None = None
        """The column of series names in the table that the network was trained on, if the training recipe names it."""

    @classmethod
    def load(cls, artifacts: Sequence[Artifact], device: str) -> FinancePredictor:
        """The predictor of the first of ``artifacts``."""
        artifact = artifacts[0]
        recipe = artifact.recipe()["recipe"]
        settings, input = stored_settings(recipe)
        mapping = artifact.manifest.calibration

        def build() -> Forecaster | LibraryForecaster:
            built = settings.build(input)
            load_weights(built, artifact, "cpu")
            return built

        def dense_network() -> DenseNetwork:
            from apps.finance.models.tft import dense

            return dense(build())

        def example() -> Tensors:
            if input.library is None:
                return example_windows(input, CPU_BATCH)
            from apps.finance.models.library_tft import random_windows  # no sample file has this network's covariates

            return random_windows(input.library, context=input.context, horizon=input.horizon, batch=CPU_BATCH)

        network = Network(
            artifact=artifact,
            build=dense_network,
            example=example,
            formats=("fp32",),
            most_threads=1,
            rows=CPU_BATCH,
            max_batch=CPU_BATCH if device == "cpu" else None,
        )
        predictor = cls(
            model=_forecaster(settings, input, build, lambda: open_program(network, device)),
            calibration=from_manifest(mapping),
            stride=int(mapping.get("stride", default_stride(input.horizon))),
            device=device,
            name=f"{artifact.manifest.name} version {artifact.manifest.version}",
        )
        column = (recipe.get("data") or {}).get("series")
        predictor.series_column = column if isinstance(column, str) else None  # synthetic data has a number there
        return predictor

    def predict(self, batch: Sequence[Series], options: Options | None = None) -> list[Detection]:
        """Forecast, scores and events of each series; the result for one series does not depend on the others."""
        options = options or Options()
        options.refuse_too_many_events(batch)
        with self.threads():
            prepared = [_without_corporate_actions(series) for series in batch]
            adjusted = [item.series for item in prepared]
            forecasts = forecast_each(self.model, adjusted, stride=self.stride, device=self.device)
            detections = []
            for number, series in enumerate(report_each(batch, "series"), start=1):
                with stage_prefix(f"series {number} of {len(batch)}") if len(batch) > 1 else nullcontext():
                    detections.append(self._detect(series, prepared[number - 1], next(forecasts), options))
            return detections

    def monitor(self, begin: Series | str | Path, options: Options | None = None) -> Monitor:
        """A monitor of a growing series: from its history, or from a file that ``Monitor.save`` wrote."""
        if isinstance(begin, Series):
            return Monitor.begin(self, begin, options or Options())
        if not isinstance(begin, str | Path):
            raise InvalidInputError(
                "a monitor starts from one series of model.read(FILE), or from a state file; create one monitor for "
                "each instrument"
            )
        return Monitor.resume(self, Path(begin), options)

    @property
    def trained_on(self) -> LibraryTFT | None:
        """The inputs of a network that was trained here with covariates or series names; None for other networks."""
        library = library_network(self.model)
        return library.settings if library is not None and library.settings.trained_here else None

    def threads(self) -> AbstractContextManager[Any]:
        """The context in which the network runs: one thread on a CPU."""
        return _one_thread() if self.device == "cpu" else nullcontext()

    def _detect(self, series: Series, prepared: _Adjusted, forecasted: Forecast, options: Options) -> Detection:
        adjusted, actions, factor = prepared.series, prepared.actions, prepared.factor
        channels = improbability(adjusted, forecasted, self.calibration)
        forecasted = replace(forecasted, quantiles=forecasted.quantiles * factor[:, None])
        combined = combine(channels, alone=self.calibration.alone)
        budget = options.budget(self.calibration)
        control = self.calibration.control(budget.rate(series), fixed=options.threshold)
        reported, scores = report(combined, budget.expected(series), control), clip_scores(combined)
        reported_gaps = [gap for gap in gaps(adjusted) if gap.score >= (options.threshold or 0.0)]
        return Detection(
            series=series,
            forecast=forecasted,
            scores=scores,
            thresholds=reported.thresholds,
            anomalies=anomalies(
                *(series, forecasted, scores, reported, channels),
                gaps=reported_gaps,
                actions=actions,
                factor=factor,
                memory=self.calibration.memory,
            ),
        )


@dataclass(frozen=True, slots=True)
class _Adjusted:
    """A series without the effect of its corporate actions, and (N,) the factors that restore its values."""

    series: Series
    actions: tuple[CorporateAction, ...]
    factor: Floats


def _without_corporate_actions(series: Series) -> _Adjusted:
    actions = corporate_actions(series)
    adjusted, factor = without_actions(series, actions)
    return _Adjusted(adjusted, actions, factor)


def _forecaster(
    settings: FinanceModel,
    input: FinanceInput,
    build: Callable[[], Forecaster | LibraryForecaster],
    program: Callable[[], Program],
) -> AnyForecaster:
    """The forecaster as an exported program; if the model is not ``fast``, the library's own network, run by torch."""
    if input.library is not None:
        return ProgramLibraryForecaster(
            program=program(), settings=input.library, context=input.context, horizon=input.horizon
        )
    if not settings.fast:
        return build()
    return ProgramForecaster(program=program(), context=input.context, horizon=input.horizon)


def _one_thread() -> AbstractContextManager[Any]:
    """Limits computation to the calling thread: the network's operations are so small that waiting for other threads
    takes longer than running them.

    On shared cores, two threads were four times as slow as one. OpenMP counts threads separately for each calling
    thread, so that other applications in the process keep theirs; torch.set_num_threads would change it for all of
    them.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="openmp")
    return limits
