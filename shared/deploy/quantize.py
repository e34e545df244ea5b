"""Quantises an artifact's network to INT8, and says what that costs by the domain's own score.

Calibrated on what the network sees while the predictor answers about files of the domain; scored on other cases. Where
the score falls too far, the layers next to the outputs are left in floating point, and after that nothing is written.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.app import App, DomainScore
from shared.deploy.artifact import NETWORK, Artifact, ProgramEntry, describe_file, write_manifest
from shared.deploy.predictor import Request, answer, programs_of
from shared.deploy.programs.choosing import asked_program, forget_choices
from shared.deploy.programs.making import Examples, compare, keep_onnx
from shared.deploy.programs.of_artifact import dense_network
from shared.deploy.programs.program import Placement, Program, Source, Tensors, is_batched
from shared.deploy.programs.store import folder_of, found_programs, keep, weights_digest
from shared.deploy.programs.table import find_program
from shared.deploy.programs.timing import measure
from shared.deploy.programs.torch_eager import eager
from shared.errors import InvalidInputError
from shared.recipe import DataConfig
from shared.threads import compute_threads

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["static", "dynamic"]
MOST_LOSS = 0.01
"""How far a score may fall, in parts of itself."""
LEAST_ROWS, MOST_CALLS = 8, 64
PROGRAMS: dict[Method, str] = {"static": "openvino-int8", "dynamic": "onnx-int8"}


@contextmanager
def recorded(program: Program, most: int = MOST_CALLS) -> Iterator[list[dict[str, Tensor]]]:
    """Inside, the inputs of the first ``most`` calls of a program are kept in the list."""
    kept: list[dict[str, Tensor]] = []
    compute = program.compute

    def recording(inputs: Tensors) -> dict[str, Tensor]:
        if len(kept) < most:
            kept.append({name: value.detach().cpu().clone() for name, value in inputs.items()})
        return compute(inputs)

    program.compute = recording
    try:
        yield kept
    finally:
        program.compute = compute


def calibration_inputs(
    app: App, artifact: Artifact, files: Sequence[Path] = (), *, least: int = LEAST_ROWS, most: int = MOST_CALLS
) -> Examples:
    """What the artifact's network sees of ``files``, or of the application's samples where none are named.

    No further file is read once the network was called ``most`` times.

    Raises ``InvalidInputError`` where the application cannot read the files, where the network sees less than
    ``least`` rows of them, and where all that it sees of an input is one value.
    """
    with asked_program("torch"):
        predictor = app.predictor([artifact], "cpu")
    program = programs_of(predictor).get(artifact.manifest.name)
    if program is None:
        raise InvalidInputError(f"the predictor of {app.name} computes with no program of {artifact.manifest.name}")
    codec = app.codec(predictor)
    with recorded(program, most) as kept, tempfile.TemporaryDirectory(prefix="trivium-samples-") as folder:
        samples = () if files else app.samples()
        read = 0
        for source in files or samples:
            named = (source,) if isinstance(source, Path) else tuple(source.files(Path(folder)))
            answer(predictor, Request(files=named), codec)
            read += 1
            if len(kept) >= most:
                break
        if files:
            title = ", ".join(path.name for path in files[:read][:3]) + (", ..." if read > 3 else "")
        else:
            synthetic = sum(sample.synthetic for sample in samples[:read])
            title = f"the application's samples, {synthetic} of {read} synthetic"
    rows = sum(len(next(iter(inputs.values()))) for inputs in kept)
    if rows < least:
        raise InvalidInputError(
            f"the network sees {rows} inputs in {title}; calibration needs at least {least}: name more files"
        )
    for name in kept[0]:
        values = {float(inputs[name].min()) for inputs in kept} | {float(inputs[name].max()) for inputs in kept}
        if len(values) == 1:
            raise InvalidInputError(f"all that the network sees as {name} in {title} is {values.pop():g}")
    return Examples(kept, f"{rows} inputs of {title}")


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
    """Quantises the network and keeps the program in the user's cache, from where predictors take it if it is faster.

    With ``into_artifact`` it becomes a part of the artifact, whose manifest then names it. ``data`` is what the
    domain's scores before and after are taken of, of at most ``cases`` cases. Raises ``InvalidInputError`` where a
    score falls by more than ``MOST_LOSS`` and ``force`` is not given.
    """
    if app.score is None:
        raise InvalidInputError(f"{app.name} has no score by which a quantised network could be judged")
    name = PROGRAMS[method]
    runtime, format = find_program(name)
    if (reason := runtime.why_not(format, "cpu")) is not None:
        raise InvalidInputError(f"{name} cannot be made: {reason}")
    examples = calibration_inputs(app, artifact, files)
    say(f"calibrated on {examples.description}")
    before = _scores(app, artifact, data, cases, "torch")
    place = Placement("cpu", compute_threads())
    dense = dense_network(app, artifact)
    reference = Program(name="torch", compute=eager(dense), batched=is_batched(dense))
    for scope in ("nothing", "the layers next to the outputs"):
        with tempfile.TemporaryDirectory(prefix="trivium-int8-") as made:
            folder = Path(made)
            _write(method, _onnx(artifact, dense, folder), folder, examples, outputs_too=scope == "nothing")
            (folder / NETWORK).unlink()
            file = runtime.file(format)
            assert file is not None
            program = Program(
                name=name,
                compute=runtime.load(Source(folder / file, lambda: dense), format, place),
                batched=reference.batched,
            )
            last = examples.inputs[-1]
            milliseconds = measure({"torch": reference, name: program}, last, time.process_time)
            entry = ProgramEntry(
                file=file,
                weights=weights_digest(artifact),
                version=runtime.version(),
                error=float(f"{compare(program, [last], [reference(last)]):.3g}"),
                latency_ms=float(f"{milliseconds[name]:.4g}"),
                inputs=examples.description,
                machine=_machine(place),
                scores={"kept in floating point": scope, "torch_ms": float(f"{milliseconds['torch']:.4g}")},
            )
            keep(artifact, folder, {name: entry})
        after = _scores(app, artifact, data, cases, name)
        accepted = all(one.loss(other) <= MOST_LOSS for one, other in zip(before, after, strict=True))
        told = {"accepted": accepted, "before": [asdict(s) for s in before], "after": [asdict(s) for s in after]}
        entry = replace(entry, scores={**entry.scores, **told})
        with tempfile.TemporaryDirectory() as empty:
            keep(artifact, Path(empty), {name: entry})
        for one, other in zip(before, after, strict=True):
            say(f"{one.name}: {one.value:.4g} before, {other.value:.4g} after, on {one.count} ({scope} left as it was)")
        if accepted or force:
            if force and not accepted:
                entry = replace(entry, scores={**entry.scores, "accepted": True, "forced": True})
                with tempfile.TemporaryDirectory() as empty:
                    keep(artifact, Path(empty), {name: entry})
            if into_artifact:
                _put_into(artifact, name, entry)
            forget_choices(artifact)
            return entry
    forget_choices(artifact)
    raise InvalidInputError(
        f"{artifact.manifest.name} loses more than {MOST_LOSS:.0%} of a score in INT8; --force takes it all the same"
    )


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


def _scores(app: App, artifact: Artifact, data: DataConfig, cases: int | None, program: str) -> Sequence[DomainScore]:
    assert app.score is not None
    with asked_program(program):
        predictor = app.predictor([artifact], "cpu")
    if programs_of(predictor)[artifact.manifest.name].name != program:
        raise InvalidInputError("; ".join(programs_of(predictor)[artifact.manifest.name].remarks))
    return app.score(predictor, data, cases)


def _onnx(artifact: Artifact, dense: Any, folder: Path) -> Path:
    """``model.onnx`` in ``folder``: that which was made before, or one made now, which is kept for OpenVINO's sake."""
    found, _ = found_programs(artifact)
    own = found.get("onnx")
    if own is not None and (own.entry is not None or dense.dynamic is None):
        shutil.copy(own.path, folder / NETWORK)
        return folder / NETWORK
    shutil.copy(keep_onnx(artifact, dense), folder / NETWORK)
    return folder / NETWORK


def _write(method: Method, network: Path, folder: Path, examples: Examples, *, outputs_too: bool) -> None:
    if method == "dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(network), str(folder / "onnx-int8.onnx"), weight_type=QuantType.QInt8)
        return
    import nncf
    import openvino

    from shared.deploy.programs.openvino import open_core

    model = open_core().read_model(network)
    scope = None if outputs_too else nncf.IgnoredScope(names=_next_to_outputs(model))
    inputs = [{name: value.numpy() for name, value in one.items()} for one in examples.inputs]
    quantised = nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
        ignored_scope=scope,
    )
    openvino.save_model(quantised, folder / "openvino-int8.xml", compress_to_fp16=False)


def _next_to_outputs(model: Any) -> list[str]:
    """The names of the convolutions and products from which each output is made."""
    found: set[str] = set()
    for result in model.get_results():
        waiting = [result.input_value(0).get_node()]
        seen: set[str] = set()
        while waiting:
            node = waiting.pop()
            if node.get_friendly_name() in seen:
                continue
            seen.add(node.get_friendly_name())
            if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData"):
                found.add(node.get_friendly_name())
            else:
                waiting += [node.input_value(n).get_node() for n in range(node.get_input_size())]
    return sorted(found)


def _machine(place: Placement) -> str:
    from shared.deploy.programs.machine import machine

    return machine(place.device, place.threads)
