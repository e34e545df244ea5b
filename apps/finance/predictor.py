"""The predictor: series in, what is unusual in them out. Pure, and usable from a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from apps.finance.inference.calibration import default_stride, from_manifest
from apps.finance.inference.conformal import report
from apps.finance.inference.corporate_actions import continued, corporate_actions
from apps.finance.inference.events import anomalies
from apps.finance.inference.examples import example_windows
from apps.finance.inference.forecasting import CPU_BATCH, AnyForecaster, forecast, library_network
from apps.finance.inference.gaps import gaps
from apps.finance.inference.monitor import Monitor
from apps.finance.inference.options import Options
from apps.finance.inference.scoring import Calibration, combine, improbability, published
from apps.finance.models.settings import FinanceModel, ProgramForecaster, ProgramLibraryForecaster
from apps.finance.models.stored import stored_settings
from apps.finance.types import Detection, FinanceInput, LibraryTFT, Series
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.program import Program, Tensors
from shared.errors import InvalidInputError
from shared.progress import report_each, within

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
        """The column of names of series in the table that the network was trained on, where the training named it."""

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
            from apps.finance.models.library_tft import random_windows  # no sample has its covariates

            return random_windows(input.library, context=input.context, horizon=input.horizon, batch=CPU_BATCH)

        network = Network(
            artifact=artifact,
            build=dense_network,
            example=example,
            varying={},
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
        named = (recipe.get("data") or {}).get("series")
        predictor.series_column = named if isinstance(named, str) else None  # of synthetic data it is a number
        return predictor

    def predict(self, batch: Sequence[Series], options: Options | None = None) -> list[Detection]:
        """Forecasts, scores and events of each series; what one gets does not depend on the others."""
        with self.threads():
            found = []
            for number, series in enumerate(report_each(batch, "series"), start=1):
                with within(f"series {number} of {len(batch)}") if len(batch) > 1 else nullcontext():
                    found.append(self._detect(series, options or Options()))
            return found

    def monitor(self, begin: Series | str | Path, options: Options | None = None) -> Monitor:
        """A monitor of a series that goes on: from its history, or from the file that another one's ``save`` wrote."""
        if isinstance(begin, Series):
            return Monitor.begin(self, begin, options or Options())
        if not isinstance(begin, str | Path):
            raise InvalidInputError(
                "a monitor begins with one series as model.read(FILE) gives them, or with the file of a state; make "
                "one for each instrument"
            )
        return Monitor.resume(self, Path(begin), options)

    @property
    def trained_on(self) -> LibraryTFT | None:
        """What a network that was trained here on a table's covariates, or names of series, takes of one."""
        library = library_network(self.model)
        return library.settings if library is not None and library.settings.trained_here else None

    def threads(self) -> AbstractContextManager[Any]:
        """What the network is computed in: on a CPU with one thread."""
        return _one_thread() if self.device == "cpu" else nullcontext()

    def _detect(self, series: Series, options: Options) -> Detection:
        actions = corporate_actions(series)
        steady, factor = continued(series, actions)
        made = forecast(self.model, [steady], stride=self.stride, device=self.device)[0]
        channels = improbability(steady, made, self.calibration)
        made = replace(made, quantiles=made.quantiles * factor[:, None])
        combined = combine(channels, alone=self.calibration.alone)
        budget = options.budget(self.calibration)
        control = self.calibration.control(budget.rate(series), fixed=options.threshold)
        reported, scores = report(combined, budget.expected(series), control), published(combined)
        breaks = [gap for gap in gaps(steady) if gap.score >= (options.threshold or 0.0)]
        return Detection(
            series=series,
            forecast=made,
            scores=scores,
            thresholds=reported.thresholds,
            anomalies=anomalies(
                *(series, made, scores, reported, channels),
                gaps=breaks,
                actions=actions,
                factor=factor,
                memory=self.calibration.memory,
            ),
        )


def _forecaster(
    settings: FinanceModel,
    input: FinanceInput,
    build: Callable[[], Forecaster | LibraryForecaster],
    program: Callable[[], Program],
) -> AnyForecaster:
    """The forecaster as a program; what is not ``fast`` is the library's own way and computed by torch."""
    if input.library is not None:
        return ProgramLibraryForecaster(
            program=program(), settings=input.library, context=input.context, horizon=input.horizon
        )
    if not settings.fast:
        return build()
    return ProgramForecaster(program=program(), context=input.context, horizon=input.horizon)


def _one_thread() -> AbstractContextManager[Any]:
    """Computes on the calling thread alone: the network's small operations wait longer for other threads than they run.

    Where cores are shared, two threads were four times as slow as one. OpenMP counts its threads for each calling
    thread, so that other applications of the process keep theirs, which torch.set_num_threads would take from them.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="openmp")
    return limits
