"""What an artifact's network sees while its predictor answers: of training cases, of files, or of the samples."""

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
from shared.deploy.programs.choosing import asked_program
from shared.deploy.programs.making import Examples
from shared.deploy.programs.program import Program, Tensors
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.recipes import recipe_of

if TYPE_CHECKING:
    from torch import Tensor

MIN_ROWS, MAX_ROWS, MAX_CALLS = 8, 64, 64
CALLS_OF_A_CASE = 8
"""Of a case in which the network is called often, such as a scan in tiles, so many calls are taken, drawn evenly."""
COMPARED = 3
"""Calls of the network on whose inputs programs are compared with torch."""


@dataclass(slots=True)
class Recorded:
    """The inputs of a network's calls: of each case at most ``most``, every call of it as likely as the others."""

    most: int = CALLS_OF_A_CASE
    calls: list[dict[str, Tensor]] = field(default_factory=list)
    _kept: list[dict[str, Tensor]] = field(default_factory=list)
    _seen: int = 0
    _draw: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, inputs: Tensors) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R)."""
        self._seen += 1
        place = len(self._kept) if len(self._kept) < self.most else self._draw.randrange(self._seen)
        if place < self.most:
            self._kept[place : place + 1] = [{name: value.detach().cpu().clone() for name, value in inputs.items()}]

    def end_case(self) -> None:
        self.calls += self._kept
        self._kept, self._seen = [], 0

    @property
    def rows(self) -> int:
        return sum(len(next(iter(inputs.values()))) for inputs in self.calls)


@contextmanager
def recorded(program: Program) -> Iterator[Recorded]:
    """Inside, what the program is given is recorded."""
    kept = Recorded()
    compute = program.compute

    def recording(inputs: Tensors) -> dict[str, Tensor]:
        kept.add(inputs)
        return compute(inputs)

    program.compute = recording
    try:
        yield kept
    finally:
        program.compute = compute


def calibration_inputs(
    app: App,
    artifact: Artifact,
    files: Sequence[Path] = (),
    *,
    data: DataConfig | None = None,
    least: int = MIN_ROWS,
    most: int = MAX_CALLS,
) -> Examples:
    """What the artifact's network is given in calls: of ``files``; else of the cases that ``data`` has to learn from.

    An application that states no training cases, or no ``data``, gives its samples. No further case is looked at once
    there are ``most`` calls, or ``MAX_ROWS`` inputs in them.

    Raises ``InvalidInputError`` where the application cannot read the files, where the network sees less than
    ``least`` rows, and where all that it sees of an input is one value.
    """
    with asked_program("torch", artifact.manifest.name):
        predictor = app.predictor([artifact, *app.served_with(artifact)], "cpu")
    program = programs_of(predictor).get(artifact.manifest.name)
    if program is None:
        raise InvalidInputError(f"the predictor of {app.name} computes with no program of {artifact.manifest.name}")
    read = 0
    with recorded(program) as kept, tempfile.TemporaryDirectory(prefix="trivium-samples-") as folder:
        looks, title = _looks(app, artifact, predictor, data, files, Path(folder), most)
        for look in looks:
            look()
            read += 1
            kept.end_case()
            if len(kept.calls) >= most or kept.rows >= MAX_ROWS:
                break
    said = title(read)
    kept.calls = kept.calls[:most]
    if kept.rows < least:
        raise InvalidInputError(
            f"the network sees {kept.rows} inputs in {said}; calibration needs at least {least}: name more files"
        )
    for name in kept.calls[0]:
        values = {float(call[name].min()) for call in kept.calls} | {float(call[name].max()) for call in kept.calls}
        if len(values) == 1:
            raise InvalidInputError(f"all that the network sees as {name} in {said} is {values.pop():g}")
    return Examples(kept.calls, f"{kept.rows} inputs of {said}")


def compared_examples(app: App, artifact: Artifact, files: Sequence[Path] = ()) -> Examples | None:
    """What programs are compared with torch on: what the network sees of ``files``, or of the samples.

    None where it sees nothing of the samples, or is in no predictor alone.
    """
    try:
        return calibration_inputs(app, artifact, files, least=1, most=COMPARED)
    except InvalidInputError:
        if files:
            raise
        return None


def _looks(
    app: App,
    artifact: Artifact,
    predictor: Any,
    data: DataConfig | None,
    files: Sequence[Path],
    folder: Path,
    most: int,
) -> tuple[Iterator[Callable[[], object]], Callable[[int], str]]:
    """What has the predictor look at one case after the other; and how the first n of them are called."""
    if not files and data is not None and app.training_cases is not None:
        cases = app.training_cases(data, recipe_of(app, artifact.recipe()).input, most)
        if cases is not None:
            description = str(data.fingerprint()["description"])
            return (
                (lambda case=case: predictor.predict([case])) for case in cases
            ), lambda read: f"{read} cases to learn from ({description})"
    codec = app.codec(predictor)
    samples = () if files else app.samples()

    def look(source: Any) -> object:
        named = (source,) if isinstance(source, Path) else tuple(source.files(folder))
        return answer(predictor, Request(files=named), codec)

    def title(read: int) -> str:
        if files:
            return ", ".join(path.name for path in islice(files, min(read, 3))) + (", ..." if read > 3 else "")
        return f"the application's samples, {sum(one.synthetic for one in samples[:read])} of {read} synthetic"

    return ((lambda source=source: look(source)) for source in files or samples), title
