"""Records the inputs that an artifact's network gets when its predictor runs on training cases, files or samples."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.app import App
from shared.deploy.artifact import Artifact
from shared.deploy.predictor import Request, answer, programs_of
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.making import Examples
from shared.deploy.programs.program import Program, Tensors
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.recipes import recipe_of

if TYPE_CHECKING:
    from torch import Tensor

MIN_ROWS, MAX_ROWS, MAX_CALLS = 8, 64, 64
MAX_CALLS_PER_CASE = 8
"""The maximum number of calls recorded per case, drawn uniformly: a scan in tiles, for example, has many calls."""
MAX_COMPARED_CALLS = 3
"""The maximum number of calls of the network on whose inputs programs are compared with torch."""


@dataclass(slots=True)
class InputRecorder:
    """Records the inputs of a network's calls: a uniform sample of at most ``max_per_case`` calls of each case."""

    max_per_case: int = MAX_CALLS_PER_CASE
    calls: list[dict[str, Tensor]] = field(default_factory=list)
    _case_calls: list[dict[str, Tensor]] = field(default_factory=list)
    _num_seen: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, inputs: Tensors) -> None:
        """Adds a call by reservoir sampling (Vitter 1985, algorithm R)."""
        self._num_seen += 1
        index = (
            len(self._case_calls)
            if len(self._case_calls) < self.max_per_case
            else self._random.randrange(self._num_seen)
        )
        if index < self.max_per_case:
            self._case_calls[index : index + 1] = [
                {name: value.detach().cpu().clone() for name, value in inputs.items()}
            ]

    def end_case(self) -> None:
        self.calls += self._case_calls
        self._case_calls, self._num_seen = [], 0

    @property
    def rows(self) -> int:
        return sum(len(next(iter(inputs.values()))) for inputs in self.calls)


@contextmanager
def record_inputs(program: Program) -> Iterator[InputRecorder]:
    """Within this context, the inputs of the program are recorded."""
    recorder = InputRecorder()
    compute = program.compute

    def recording(inputs: Tensors) -> dict[str, Tensor]:
        recorder.add(inputs)
        return compute(inputs)

    program.compute = recording
    try:
        yield recorder
    finally:
        program.compute = compute


def calibration_inputs(
    app: App,
    artifact: Artifact,
    files: Sequence[Path] = (),
    *,
    data: DataConfig | None = None,
    min_rows: int = MIN_ROWS,
    max_calls: int = MAX_CALLS,
) -> Examples:
    """Records the inputs of the artifact's network on ``files``, or else on the training cases of ``data``.

    Without ``data``, or if the application has no training cases, its samples are used. Recording stops after
    ``max_calls`` calls or ``MAX_ROWS`` rows.

    Raises ``InvalidInputError`` if the application cannot read the files, if the network gets fewer than ``min_rows``
    rows, or if an input of the network has the same value everywhere.
    """
    with use_program("torch", artifact.manifest.name):
        predictor = app.predictor([artifact, *app.served_with(artifact)], "cpu")
    program = programs_of(predictor).get(artifact.manifest.name)
    if program is None:
        raise InvalidInputError(f"the predictor of {app.name} does not use a program of {artifact.manifest.name}")
    num_read = 0
    with record_inputs(program) as recorder, tempfile.TemporaryDirectory(prefix="trivium-samples-") as folder:
        predictions, title_of = _case_predictions(app, artifact, predictor, data, files, Path(folder), max_calls)
        for predict_case in predictions:
            predict_case()
            num_read += 1
            recorder.end_case()
            if len(recorder.calls) >= max_calls or recorder.rows >= MAX_ROWS:
                break
    source_title = title_of(num_read)
    recorder.calls = recorder.calls[:max_calls]
    if recorder.rows < min_rows:
        raise InvalidInputError(
            f"the network gets only {recorder.rows} inputs from {source_title}; calibration needs at least {min_rows}: "
            "name more files"
        )
    for name in recorder.calls[0]:
        values = {float(call[name].min()) for call in recorder.calls} | {
            float(call[name].max()) for call in recorder.calls
        }
        if len(values) == 1:
            raise InvalidInputError(f"the network's input {name} is {values.pop():g} everywhere in {source_title}")
    return Examples(recorder.calls, f"{recorder.rows} inputs of {source_title}")


def comparison_examples(app: App, artifact: Artifact, files: Sequence[Path] = ()) -> Examples | None:
    """The inputs on which programs are compared with torch: the network's inputs on ``files``, or on the samples.

    Returns None if the network gets no inputs from the samples, or if no predictor can be made of the artifact alone.
    """
    try:
        return calibration_inputs(app, artifact, files, min_rows=1, max_calls=MAX_COMPARED_CALLS)
    except InvalidInputError:
        if files:
            raise
        return None


def _case_predictions(
    app: App,
    artifact: Artifact,
    predictor: Any,
    data: DataConfig | None,
    files: Sequence[Path],
    folder: Path,
    max_calls: int,
) -> tuple[Iterator[Callable[[], object]], Callable[[int], str]]:
    """Returns functions that each run the predictor on one case, and a function that describes the first n cases."""
    if not files and data is not None and app.training_cases is not None:
        cases = app.training_cases(data, recipe_of(app, artifact.recipe()).input, max_calls)
        if cases is not None:
            description = str(data.fingerprint()["description"])
            return (
                (lambda case=case: predictor.predict([case])) for case in cases
            ), lambda num_read: f"{num_read} training cases ({description})"
    codec = app.codec(predictor)
    samples = () if files else app.samples()

    def predict_source(source: Any) -> object:
        paths = (source,) if isinstance(source, Path) else tuple(source.files(folder))
        return answer(predictor, Request(files=paths), codec)

    def title_of(num_read: int) -> str:
        if files:
            return ", ".join(path.name for path in islice(files, min(num_read, 3))) + (", ..." if num_read > 3 else "")
        num_synthetic = sum(sample.synthetic for sample in samples[:num_read])
        return f"the application's samples, {num_synthetic} of {num_read} synthetic"

    return ((lambda source=source: predict_source(source)) for source in files or samples), title_of
