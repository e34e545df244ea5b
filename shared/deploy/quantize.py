"""Quantises an artifact's network to INT8 and measures the loss by the domain's own score.

The network is calibrated on its inputs while the predictor runs on the recipe's training cases. The layers whose
quantisation causes the largest output errors are left in floating point. The result is scored on other cases, together
with the artifacts that it is served with. If the score falls too far, more layers are left in floating point; if it
still falls too far, the result is rejected.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from shared.app import App, DenseNetwork, DomainScore
from shared.deploy.artifact import Artifact, ProgramEntry, describe_file, write_manifest
from shared.deploy.calibration_inputs import MAX_ROWS, calibration_inputs
from shared.deploy.predictor import programs_of
from shared.deploy.programs.artifact_network import dense_network
from shared.deploy.programs.choices import clear_choices
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.machine import describe_machine
from shared.deploy.programs.making import Examples, cache_onnx, largest_error
from shared.deploy.programs.program import Format, Placement, Program, Source, is_batched
from shared.deploy.programs.store import (
    StoredProgram,
    add_to_cache,
    cache_folder,
    is_accepted,
    stored_programs,
    weights_digest,
)
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure_latency
from shared.deploy.programs.torch_eager import load_eager
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.threads import compute_threads

Method = Literal["static", "dynamic"]
MAX_SCORE_LOSS = 0.01
"""The maximum relative loss of a score."""
HOLDOUT_INTERVAL, MAX_HOLDOUT = 6, 8
"""One in so many calibration inputs, but at most so many in all, is held out to measure the error of each layer on."""
PROGRAMS: dict[Method, str] = {"static": "openvino-int8", "dynamic": "onnx-int8"}


@dataclass(frozen=True, slots=True)
class WrittenNetwork:
    """A quantised network written into a folder: the layers left in floating point, and its measurements."""

    floating_layers: str
    measurements: dict[str, Any]


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
    report: Callable[[str], object] = lambda line: None,
) -> ProgramEntry:
    """Quantises the network and stores the program in the user's cache, for predictors that may use INT8.

    With ``into_artifact``, the program is also written into the artifact and its manifest. The network is calibrated on
    ``files``, or else on the training part of ``data``. The domain's scores before and after are measured on at most
    ``cases`` cases of the validation part of ``data``. ``report`` gets lines on the progress, and a line if a predictor
    would still reject the program because its outputs on the predictor's own example differ too much.

    Raises ``InvalidInputError`` if a score falls by more than ``MAX_SCORE_LOSS``, unless ``force`` is given; a program
    accepted before is kept. The method ``static`` is refused for networks with recurrent layers before anything is
    computed.
    """
    if app.score is None:
        raise InvalidInputError(
            f"{app.name} has no score to compare a quantised network by; its App needs a function `score`"
        )
    name = PROGRAMS[method]
    runtime, format = find_program(name)
    if (reason := runtime.why_not(format, "cpu")) is not None:
        raise InvalidInputError(f"{name} cannot be made: {reason}")
    try:
        dense = dense_network(app, artifact)
    except NotImplementedError as error:
        raise InvalidInputError(f"{artifact.path} cannot be quantised: {error}") from error
    network = _find_or_make_onnx(artifact, dense)
    if method == "static":
        _refuse_recurrent(network, artifact.manifest.name)
    examples = calibration_inputs(app, artifact, files, data=data)
    report(f"calibrated on {examples.description}")
    before: Sequence[DomainScore] | None = None
    found: StoredProgram | None = None
    place = Placement("cpu", compute_threads())
    reference = Program(name="torch", compute=load_eager(dense), batched=is_batched(dense))
    last = examples.inputs[-1]
    with tempfile.TemporaryDirectory(prefix="trivium-int8-") as temporary:
        folder = Path(temporary) / "written"
        folder.mkdir()
        for attempt, written in enumerate(_write_networks(method, network, folder, examples, dense, report)):
            # The next network is written while this one may still be in use.
            attempt_folder = folder.rename(Path(temporary) / str(attempt))
            folder.mkdir()
            file = runtime.file(format)
            assert file is not None
            program = Program(
                name=name,
                compute=runtime.load(Source(attempt_folder / file, lambda: dense), format, place),
                batched=reference.batched,
            )
            milliseconds = measure_latency({"torch": reference, name: program}, last, time.process_time)
            entry = ProgramEntry(
                file=file,
                weights=weights_digest(artifact),
                version=version(runtime.package),
                error=float(f"{largest_error(program, [last], [reference(last)]):.3g}"),
                latency_ms=float(f"{milliseconds[name]:.4g}"),
                inputs=examples.description,
                machine=describe_machine(place.device, place.threads),
                scores={
                    "kept in floating point": written.floating_layers,
                    **written.measurements,
                    "torch_ms": float(f"{milliseconds['torch']:.4g}"),
                },
            )
            before = before or _measure_scores(app, artifact, data, cases, "torch")
            after = _measure_scores(app, artifact, data, cases, name, StoredProgram(attempt_folder / file, entry))
            accepted = all(old.loss(new) <= MAX_SCORE_LOSS for old, new in zip(before, after, strict=True))
            measurements = {
                "accepted": accepted,
                "before": [asdict(score) for score in before],
                "after": [asdict(score) for score in after],
            }
            found = StoredProgram(attempt_folder / file, replace(entry, scores={**entry.scores, **measurements}))
            for old, new in zip(before, after, strict=True):
                report(
                    f"{old.name}: {old.value:.4g} before, {new.value:.4g} after, on {old.count} "
                    f"({written.floating_layers} in floating point)"
                )
            if accepted:
                break
        assert found is not None
        entry = _store_program(artifact, name, found, force)
    if not entry.scores["accepted"]:
        raise InvalidInputError(
            f"{artifact.manifest.name} loses more than {MAX_SCORE_LOSS:.0%} of a score in INT8; use --force to accept "
            "the loss"
        )
    if before and not any(score.value for score in before):
        names = ", ".join(score.name for score in before)
        report(
            f"{names}: 0 already before, so that it cannot show what INT8 loses; quantise again with --data in which "
            "the network finds something"
        )
    if into_artifact:
        _copy_into_artifact(artifact, name, entry)
    for remark in _rejection_remarks(app, artifact, name):
        report(f"{remark}; it is used only with --program {name}")
    return entry


def _rejection_remarks(app: App, artifact: Artifact, name: str) -> list[str]:
    """The remarks on why a predictor that chooses its program by itself would not use this program."""
    program = programs_of(app.predictor([artifact, *app.served_with(artifact)], "cpu"))[artifact.manifest.name]
    return [remark for remark in program.remarks if remark.startswith((f"{name} is rejected", f"{name} cannot"))]


def _store_program(artifact: Artifact, name: str, stored: StoredProgram, force: bool) -> ProgramEntry:
    """Stores a program in the cache and returns its entry.

    A rejected program is stored too, for requests by name, but it does not replace an accepted program.
    """
    entry = stored.entry
    if force and not entry.scores["accepted"]:
        entry = replace(entry, scores={**entry.scores, "accepted": True, "forced": True})
    existing = stored_programs(artifact)[0].get(name)
    if entry.scores["accepted"] or existing is None or not is_accepted(existing.entry):
        add_to_cache(artifact, stored.path.parent, {name: entry})
        clear_choices(artifact)
    return entry


def _copy_into_artifact(artifact: Artifact, name: str, entry: ProgramEntry) -> None:
    """Copies a program from the cache into the artifact. The manifest is written last, so that it is always valid."""
    files = sorted(cache_folder(artifact).glob(f"{Path(entry.file).stem}.*"))
    for file in files:
        shutil.copyfile(file, artifact.path / file.name)
    manifest = artifact.manifest
    write_manifest(
        artifact.path,
        replace(
            manifest,
            programs={**manifest.programs, name: entry},
            files={**manifest.files, **{file.name: describe_file(artifact.path / file.name) for file in files}},
        ),
    )


def _measure_scores(
    app: App, artifact: Artifact, data: DataConfig, cases: int | None, program: str, stored: StoredProgram | None = None
) -> Sequence[DomainScore]:
    """The domain scores with one program of the artifact's network; artifacts served with it use their own programs.

    ``stored`` is the program's file if it is not in the cache yet.
    """
    assert app.score is not None
    with use_program(program, artifact.manifest.name, stored):
        predictor = app.predictor([artifact, *app.served_with(artifact)], "cpu")
    if programs_of(predictor)[artifact.manifest.name].name != program:
        raise InvalidInputError("; ".join(programs_of(predictor)[artifact.manifest.name].remarks))
    return app.score(predictor, data, cases)


def _find_or_make_onnx(artifact: Artifact, dense: DenseNetwork) -> Path:
    """The path of the network's ONNX file; if there is none, it is exported into the cache, for OpenVINO as well."""
    programs, _ = stored_programs(artifact)
    return programs["onnx"].path if "onnx" in programs else cache_onnx(artifact, dense)


def _refuse_recurrent(network: Path, name: str) -> None:
    """Raises ``InvalidInputError`` for a network with recurrent layers, which OpenVINO does not compute in INT8.

    OpenVINO needs their weights as constants, so that bias correction fails (openvino 2026.4). The forecaster was also
    slower with all other layers in INT8 than in fp32.
    """
    from shared.deploy.int8_network import recurrent_layers

    if layers := recurrent_layers(network):
        raise InvalidInputError(
            f"{name} has recurrent layers ({', '.join(layers)}), which OpenVINO does not compute in INT8; "
            "quantise its weights alone with --int8 dynamic"
        )


def _split_into_rows(examples: Examples, dense: DenseNetwork) -> list[dict[str, Any]]:
    """Splits the calls into arrays of one row each; calls of a network without a common batch axis are not split."""
    calls = [{name: value.numpy() for name, value in call.items()} for call in examples.inputs]
    if not is_batched(dense):
        return calls
    return [
        {name: value[row : row + 1] for name, value in call.items()}
        for call in calls
        for row in range(len(next(iter(call.values()))))
    ][:MAX_ROWS]


def _write_networks(
    method: Method,
    network: Path,
    folder: Path,
    examples: Examples,
    dense: DenseNetwork,
    report: Callable[[str], object],
) -> Iterator[WrittenNetwork]:
    """Writes quantised networks into ``folder``, one for each item yielded, each with more layers in floating point."""
    if method == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(network), str(folder / "onnx-int8.onnx"), weight_type=QuantType.QInt8)
        yield WrittenNetwork("nothing", {})
        return
    import openvino

    from shared.deploy.int8_network import read_network
    from shared.deploy.programs.openvino import compile_in_memory, openvino_compute
    from shared.deploy.sensitivity import Evaluator, find_candidates

    rows = _split_into_rows(examples, dense)
    holdout_rows = set(range(HOLDOUT_INTERVAL - 1, len(rows), max(HOLDOUT_INTERVAL, len(rows) // MAX_HOLDOUT)))
    holdout = [row for index, row in enumerate(rows) if index in holdout_rows]
    calibration_rows = [row for index, row in enumerate(rows) if index not in holdout_rows]
    place = Placement("cpu", compute_threads())
    model = read_network(network)

    def compile_model(model: Any, format: Format = "int8") -> Callable[[Any], Any]:
        try:
            return openvino_compute(compile_in_memory(model, format, place)).arrays
        except RuntimeError as error:  # OpenVINO raises only this class
            raise InvalidInputError(
                "OpenVINO cannot compute this network in INT8; quantise its weights alone with --int8 dynamic"
            ) from error

    evaluator = Evaluator(holdout, [compile_model(model, "fp32")(row) for row in holdout], dense.logits, compile_model)
    for candidate in find_candidates(model, calibration_rows, evaluator, report=report):
        openvino.save_model(candidate.model, folder / "openvino-int8.xml", compress_to_fp16=False)
        yield WrittenNetwork(
            candidate.floating_layers,
            {
                "smoothing": candidate.smoothing,
                "error of the outputs": float(f"{candidate.error:.3g}"),
                "inputs kept aside": len(holdout),
            },
        )
