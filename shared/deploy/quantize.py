"""Quantises an artifact's network to INT8, and says what that costs by the domain's own score.

Calibrated on what the network sees while the predictor looks at what the recipe learnt from; the layers that hurt most
at the outputs are left in floating point; scored on other cases, together with what the artifact is served with. Where
the score falls too far, more layers are left, and after that nothing is accepted.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shared.app import App, DenseNetwork, DomainScore
from shared.deploy.artifact import Artifact, ProgramEntry, describe_file, write_manifest
from shared.deploy.calibration_inputs import MAX_ROWS, calibration_inputs
from shared.deploy.predictor import programs_of
from shared.deploy.programs.choices import forget_choices
from shared.deploy.programs.choosing import asked_program
from shared.deploy.programs.making import Examples, compare, keep_onnx
from shared.deploy.programs.of_artifact import dense_network
from shared.deploy.programs.program import Format, Placement, Program, Source, is_batched
from shared.deploy.programs.store import Found, folder_of, found_programs, is_accepted, keep, weights_digest
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure
from shared.deploy.programs.torch_eager import eager
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.threads import compute_threads

Method = Literal["static", "dynamic"]
MAX_LOSS = 0.01
"""How far a score may fall, in parts of itself."""
ASIDE, MAX_ASIDE = 6, 8
"""One of so many calibration inputs is kept aside, to find on it the layers that hurt; at most so many."""
PROGRAMS: dict[Method, str] = {"static": "openvino-int8", "dynamic": "onnx-int8"}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written into a folder: what of the network stays in floating point, and what was measured of that."""

    kept: str
    told: dict[str, Any]


def quantize(
    app: App,
    artifact: Artifact,
    data: DataConfig,
    *,
    method: Method = "static",
    files: Sequence[Path] = (),
    cases: int | None = None,
    force: bool = False,
    into_artifact: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> ProgramEntry:
    """Quantises the network and keeps the program in the user's cache, for predictors that may compute in INT8.

    With ``into_artifact`` it becomes a part of the artifact, whose manifest then names it. It is calibrated on
    ``files``, or on what ``data`` has to learn from; the domain's scores before and after are taken of what ``data``
    has to validate on, of at most ``cases`` cases. Raises ``InvalidInputError`` where a score falls by more than
    ``MAX_LOSS`` and ``force`` is not given; what was accepted before stays as it was. ``static`` is refused, before
    anything is computed, for a network with recurrent layers. ``say`` is told, too, where a predictor passes the
    program over all the same, for its outputs on the predictor's own example are too far off.
    """
    if app.score is None:
        raise InvalidInputError(f"{app.name} has no score by which a quantised network could be judged")
    name = PROGRAMS[method]
    runtime, format = find_program(name)
    if (reason := runtime.why_not(format, "cpu")) is not None:
        raise InvalidInputError(f"{name} cannot be made: {reason}")
    try:
        dense = dense_network(app, artifact)
    except NotImplementedError as error:
        raise InvalidInputError(f"{artifact.path} cannot be quantised: {error}") from error
    network = _onnx(artifact, dense)
    if method == "static":
        _refuse_recurrent(network, artifact.manifest.name)
    examples = calibration_inputs(app, artifact, files, data=data)
    say(f"calibrated on {examples.description}")
    before: Sequence[DomainScore] | None = None
    found: Found | None = None
    place = Placement("cpu", compute_threads())
    reference = Program(name="torch", compute=eager(dense), batched=is_batched(dense))
    last = examples.inputs[-1]
    with tempfile.TemporaryDirectory(prefix="trivium-int8-") as made:
        folder = Path(made) / "written"
        folder.mkdir()
        for number, written in enumerate(_written(method, network, folder, examples, dense, say)):
            # The next is written while this one may still be read.
            tried = folder.rename(Path(made) / str(number))
            folder.mkdir()
            file = runtime.file(format)
            assert file is not None
            program = Program(
                name=name,
                compute=runtime.load(Source(tried / file, lambda: dense), format, place),
                batched=reference.batched,
            )
            milliseconds = measure({"torch": reference, name: program}, last, time.process_time)
            entry = ProgramEntry(
                file=file,
                weights=weights_digest(artifact),
                version=runtime.version(),
                error=float(f"{compare(program, [last], [reference(last)]):.3g}"),
                latency_ms=float(f"{milliseconds[name]:.4g}"),
                inputs=examples.description,
                machine=_machine(place),
                scores={
                    "kept in floating point": written.kept,
                    **written.told,
                    "torch_ms": float(f"{milliseconds['torch']:.4g}"),
                },
            )
            before = before or _scores(app, artifact, data, cases, "torch")
            after = _scores(app, artifact, data, cases, name, Found(tried / file, entry))
            accepted = all(one.loss(other) <= MAX_LOSS for one, other in zip(before, after, strict=True))
            told = {"accepted": accepted, "before": [asdict(s) for s in before], "after": [asdict(s) for s in after]}
            found = Found(tried / file, replace(entry, scores={**entry.scores, **told}))
            for one, other in zip(before, after, strict=True):
                say(
                    f"{one.name}: {one.value:.4g} before, {other.value:.4g} after, on {one.count} "
                    f"({written.kept} in floating point)"
                )
            if accepted:
                break
        assert found is not None
        entry = _kept(artifact, name, found, force)
    if not entry.scores["accepted"]:
        raise InvalidInputError(
            f"{artifact.manifest.name} loses more than {MAX_LOSS:.0%} of a score in INT8; --force takes it all the same"
        )
    if into_artifact:
        _put_into(artifact, name, entry)
    for remark in _passed_over(app, artifact, name):
        say(f"{remark}; it computes only where --program {name} asks for it")
    return entry


def _passed_over(app: App, artifact: Artifact, name: str) -> list[str]:
    """Why a predictor that chooses its program here, as each will that is not asked for one, does not take this."""
    program = programs_of(app.predictor([artifact, *app.served_with(artifact)], "cpu"))[artifact.manifest.name]
    return [remark for remark in program.remarks if remark.startswith((f"{name} is passed", f"{name} cannot"))]


def _kept(artifact: Artifact, name: str, found: Found, force: bool) -> ProgramEntry:
    """Keeps a program in the cache, and returns what is said of it.

    One that was refused is kept too, for whoever asks for it by name, but not in the place of one that was accepted.
    """
    entry = found.entry
    if force and not entry.scores["accepted"]:
        entry = replace(entry, scores={**entry.scores, "accepted": True, "forced": True})
    there = found_programs(artifact)[0].get(name)
    if entry.scores["accepted"] or there is None or not is_accepted(there.entry):
        keep(artifact, found.path.parent, {name: entry})
        forget_choices(artifact)
    return entry


def _put_into(artifact: Artifact, name: str, entry: ProgramEntry) -> None:
    """Copies a program from the cache into the artifact; its manifest is written last, so that it stays whole."""
    made = sorted(folder_of(artifact).glob(f"{Path(entry.file).stem}.*"))
    for file in made:
        shutil.copyfile(file, artifact.path / file.name)
    manifest = artifact.manifest
    write_manifest(
        artifact.path,
        replace(
            manifest,
            programs={**manifest.programs, name: entry},
            files={**manifest.files, **{file.name: describe_file(artifact.path / file.name) for file in made}},
        ),
    )


def _scores(
    app: App, artifact: Artifact, data: DataConfig, cases: int | None, program: str, found: Found | None = None
) -> Sequence[DomainScore]:
    """The scores with one program of the artifact's network; what it is served with computes as it always does.

    ``found`` is where the program lies, where that is not in its place.
    """
    assert app.score is not None
    with asked_program(program, artifact.manifest.name, found):
        predictor = app.predictor([artifact, *app.served_with(artifact)], "cpu")
    if programs_of(predictor)[artifact.manifest.name].name != program:
        raise InvalidInputError("; ".join(programs_of(predictor)[artifact.manifest.name].remarks))
    return app.score(predictor, data, cases)


def _onnx(artifact: Artifact, dense: DenseNetwork) -> Path:
    """The network's ONNX: that which was made before, or one made now, which is kept for OpenVINO's sake."""
    found, _ = found_programs(artifact)
    return found["onnx"].path if "onnx" in found else keep_onnx(artifact, dense)


def _refuse_recurrent(network: Path, name: str) -> None:
    """Refuses a network with recurrent layers, which OpenVINO does not compute in INT8.

    OpenVINO wants their weights as constants, so that the correction of biases fails (openvino 2026.4); and the
    forecaster's calls took it longer with all other layers in INT8 than in fp32.
    """
    from shared.deploy.int8_network import recurrent_layers

    if layers := recurrent_layers(network):
        raise InvalidInputError(
            f"{name} has recurrent layers ({', '.join(layers)}), which OpenVINO does not compute in INT8; "
            "quantise its weights alone with --int8 dynamic"
        )


def _rows(examples: Examples, dense: DenseNetwork) -> list[dict[str, Any]]:
    """The calls one row each, as arrays; whole, where the network has no one batch."""
    calls = [{name: value.numpy() for name, value in call.items()} for call in examples.inputs]
    if not is_batched(dense):
        return calls
    return [
        {name: value[number : number + 1] for name, value in call.items()}
        for call in calls
        for number in range(len(next(iter(call.values()))))
    ][:MAX_ROWS]


def _written(
    method: Method,
    network: Path,
    folder: Path,
    examples: Examples,
    dense: DenseNetwork,
    say: Callable[[str], object],
) -> Iterator[Written]:
    """Writes a quantised network into ``folder`` and tells of it; then another, with more left in floating point."""
    if method == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(network), str(folder / "onnx-int8.onnx"), weight_type=QuantType.QInt8)
        yield Written("nothing", {})
        return
    import openvino

    from shared.deploy.int8_network import read_network
    from shared.deploy.programs.openvino import compiled_in_memory, openvino_compute
    from shared.deploy.sensitivity import Judge, candidates

    rows = _rows(examples, dense)
    kept = set(range(ASIDE - 1, len(rows), max(ASIDE, len(rows) // MAX_ASIDE)))
    aside = [row for number, row in enumerate(rows) if number in kept]
    rest = [row for number, row in enumerate(rows) if number not in kept]
    place = Placement("cpu", compute_threads())
    model = read_network(network)

    def run(model: Any, format: Format = "int8") -> Callable[[Any], Any]:
        try:
            return openvino_compute(compiled_in_memory(model, format, place)).arrays
        except RuntimeError as error:  # all that OpenVINO raises
            raise InvalidInputError(
                "OpenVINO cannot compute this network in INT8; quantise its weights alone with --int8 dynamic"
            ) from error

    judge = Judge(aside, [run(model, "fp32")(row) for row in aside], dense.logits, run)
    for found in candidates(model, rest, judge, say=say):
        openvino.save_model(found.model, folder / "openvino-int8.xml", compress_to_fp16=False)
        yield Written(
            found.described,
            {
                "smoothing": found.smoothing,
                "error of the outputs": float(f"{found.error:.3g}"),
                "inputs kept aside": len(aside),
            },
        )


def _machine(place: Placement) -> str:
    from shared.deploy.programs.machine import machine

    return machine(place.device, place.threads)
