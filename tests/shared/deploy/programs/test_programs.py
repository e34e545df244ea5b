"""Every program has torch's outputs: on whole batches, empty batches, more rows than the maximum, and single rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.app import DenseNetwork
from shared.deploy.artifact import (
    WEIGHTS,
    Artifact,
    ProgramEntry,
    describe_file,
    open_artifact,
    write_manifest,
)
from shared.deploy.programs.choices import clear_choices, read_choice, valid_choices
from shared.deploy.programs.choosing import use_program
from shared.deploy.programs.inductor import find_compiler, load_compiled
from shared.deploy.programs.making import make_programs, random_examples
from shared.deploy.programs.program import Placement, Program, ProgramError, Source, relative_error
from shared.deploy.programs.store import add_to_cache, cache_folder, stored_programs, weights_digest
from shared.deploy.programs.table import RUNTIMES, find_program, program_names
from shared.deploy.programs.torch_eager import load_eager
from shared.errors import InvalidInputError
from shared.threads import compute_threads
from tests.shared.deploy.programs.edges import WRITTEN, Edges, network, opened

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def load(name: str, folder: Path, **settings: object) -> Program:
    runtime, format = find_program(name)
    file = runtime.file(format)
    source = Source(None if file is None else folder / file, network)
    return replace(Program(name=name, compute=runtime.load(source, format, Placement())), **settings)


@pytest.mark.parametrize("name", ["torch", *WRITTEN])
def test_a_program_has_the_outputs_of_torch(folder: Path, name: str) -> None:
    program = load(name, folder, max_batch=2)
    for rows, size in ((1, (8, 12)), (2, (6, 4)), (5, (10, 8))):
        inputs = {"image": torch.randn(rows, 1, *size), "gain": torch.rand(rows)}
        with torch.no_grad():
            edges, mean = Edges().eval()(*inputs.values())
        found = program(inputs)
        assert list(found) == ["edges", "mean"] and found["edges"].shape == (rows, 2, *size)
        assert relative_error({"edges": edges, "mean": mean}, found) < 1e-4
    none = program({"image": torch.zeros(0, 1, 8, 12), "gain": torch.zeros(0)})
    assert none["edges"].shape == (0, 2, 8, 12) and none["mean"].shape == (0,)
    with pytest.raises(ValueError, match="different numbers of rows"):
        program({"image": torch.zeros(2, 1, 8, 12), "gain": torch.zeros(3)})


def test_openvino_with_a_fixed_batch_size_has_the_same_outputs(folder: Path) -> None:
    compute = find_program("openvino")[0].load(Source(folder / "openvino.xml", network, rows=4), "fp32", Placement())
    for rows in (4, 1, 4, 7):
        inputs = {"image": torch.rand(rows, 1, 6, 10), "gain": torch.rand(rows)}
        assert relative_error(load_eager(network())(inputs), compute(inputs)) < 1e-4


def test_a_call_does_not_change_earlier_outputs(folder: Path) -> None:
    for name in ["torch", *WRITTEN]:
        program = load(name, folder)
        first = program({"image": torch.ones(1, 1, 8, 12), "gain": torch.ones(1)})
        before = {key: value.clone() for key, value in first.items()}
        program({"image": torch.zeros(1, 1, 8, 12), "gain": torch.ones(1)})
        assert all(torch.equal(first[key], value) for key, value in before.items()), name


class Weighted(nn.Module):
    """A network of two inputs (B, 2) that must not be swapped."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - 2 * second


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProgramEntry]:
    """A program made by torch's compiler, in a folder, and its entry."""
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    from torch._inductor import config

    root = tmp_path_factory.mktemp("compiled")
    inputs = {"first": torch.rand(2, 2), "second": torch.rand(2, 2)}
    dense = DenseNetwork(module=Weighted(), inputs=inputs, outputs=("y",))
    # The generated code that calls the kernels is long, and a compiler takes seconds to optimise it.
    with config.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
        return root, make_programs(dense, ["aotinductor"], root, "", random_examples(dense))["aotinductor"]


def test_a_compiled_program_takes_its_inputs_by_name(
    compiled: tuple[Path, ProgramEntry],
) -> None:
    folder, entry = compiled
    assert entry.error < 1e-4
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    program = load("aotinductor", folder)
    for inputs in ({"first": first, "second": second}, {"second": second, "first": first}):
        torch.testing.assert_close(program(inputs)["y"], first - 2 * second)


def test_a_package_for_another_cpu_is_refused_before_it_is_loaded(
    compiled: tuple[Path, ProgramEntry], artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, entry = compiled
    aside = artifact.path.parent / "aside"
    shutil.copytree(folder, aside)
    add_to_cache(artifact, aside, {"aotinductor": replace(entry, weights=weights_digest(artifact))})

    def loaded(path: str) -> None:
        raise AssertionError("what it holds would end the process")

    monkeypatch.setattr("torch._inductor.aoti_load_package", loaded)
    monkeypatch.setattr("shared.deploy.programs.inductor.vector_instructions", lambda: frozenset({"avx", "avx2"}))
    with use_program("aotinductor"):
        program = opened(artifact)
    assert program.name != "aotinductor"
    requested, *others = program.remarks
    assert (
        "aotinductor.pt2 needs " in requested
        and "which this CPU lacks" in requested
        and "trivium programs --make aotinductor" in requested
    )
    assert any("aotinductor cannot be used: aotinductor.pt2 needs " in remark for remark in others)


def test_programs_that_need_a_missing_compiler_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.deploy.programs.inductor.find_compiler", lambda: None)
    with pytest.raises(ProgramError, match="no C\\+\\+ compiler"):
        make_programs(network(), ["aotinductor"], tmp_path, "", random_examples(network()))
    assert "compiler" in str(RUNTIMES["compile"].why_not("fp32", "cpu"))


def test_a_compiled_network_keeps_the_types_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)

    class Classifier(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.argmax(1), x.softmax(1).max(1).values

    x = torch.rand(4, 3)
    dense = DenseNetwork(module=Classifier(), inputs={"x": x}, outputs=("class", "score"))
    for load in (load_eager, load_compiled):
        found = load(dense, "fp32", "cpu")({"x": x})
        assert {name: value.dtype for name, value in found.items()} == {"class": torch.int64, "score": torch.float32}


def test_a_program_with_other_outputs_is_not_made(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.jit.is_tracing() else x * 3

    dense = DenseNetwork(module=Fickle(), inputs={"x": torch.rand(2, 2)}, outputs=("y",))
    with pytest.raises(ArithmeticError, match="torchscript differs from torch"):
        make_programs(dense, ["torchscript"], tmp_path, "", random_examples(dense))


def test_a_network_that_torch_cannot_trace_is_refused_with_a_remedy(tmp_path: Path) -> None:
    class Attached(nn.Module):
        @property
        def trainer(self) -> object:
            raise RuntimeError("not attached to a trainer")

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    dense = DenseNetwork(module=nn.Sequential(Attached()), inputs={"x": torch.rand(2, 2)}, outputs=("y",))
    with pytest.raises(ProgramError, match=r"torchscript cannot be made: .*not attached to a trainer.*onnx"):
        make_programs(dense, ["torchscript"], tmp_path, "", random_examples(dense))


def test_programs_are_named_by_runtime_and_format() -> None:
    names = program_names()
    assert {"torch", "torch-bf16", "onnx", "openvino-int8", "cudagraph-fp16"} <= set(names)
    assert all(find_program(name) for name in names)
    with pytest.raises(InvalidInputError, match=r"no program 'openvino-int4'; there are torch, "):
        find_program("openvino-int4")


def test_the_fastest_is_measured_once_and_kept(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    program = opened(artifact)
    assert "the fastest here" in program.reason and f"{program.name} " in program.reason
    choice = read_choice(artifact, Placement("cpu", compute_threads()))
    assert choice is not None and {"torch", "onnx", "openvino"} <= choice.milliseconds.keys()
    assert choice.milliseconds[choice.program] <= 1.15 * min(choice.milliseconds.values())

    def never() -> DenseNetwork:
        raise AssertionError("nothing is measured again, and an ONNX needs no modules of torch")

    (file,) = cache_folder(artifact).glob("choice-*.json")
    # Like a program that was written among others, or by another version of a runtime.
    file.with_name("choice-0123456789abcdef.json").write_bytes(file.read_bytes())
    assert valid_choices(artifact) == [choice], "a choice that is no longer valid is left out"
    file.write_text(json.dumps({**json.loads(file.read_text()), "program": "onnx"}))
    assert opened(artifact, build=never).name == "onnx"
    clear_choices(artifact)
    assert read_choice(artifact, Placement("cpu", compute_threads())) is None


def test_a_requested_program_is_used(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_program("openvino"):
        assert opened(artifact).name == "openvino" and opened(artifact).reason == "it was requested"
    monkeypatch.setenv("TRIVIUM_PROGRAM", "onnx")
    assert opened(artifact).name == "onnx"
    with pytest.raises(InvalidInputError, match="no program 'tvm'"), use_program("tvm"):
        pass


def test_torch_computes_with_as_many_threads_as_every_other_runtime(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            monkeypatch.setenv("TRIVIUM_THREADS", str(count))
            with use_program("torch"):
                assert opened(artifact).name == "torch" and torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_a_signal_is_handled_after_another_thread_freed_an_openvino_model(folder: Path) -> None:
    code = (
        "import gc, signal, sys, threading; from pathlib import Path\n"
        "from shared.deploy.programs.openvino import compile_model\n"
        "from shared.deploy.programs.program import Placement\n"
        "held = [compile_model(Path(sys.argv[1]), 'fp32', Placement('cpu', 1))]\n"
        "thread = threading.Thread(target=lambda: (held.clear(), gc.collect())); thread.start(); thread.join()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder / "model.onnx")]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (completed.returncode, completed.stdout) == (0, "handled\n"), completed.stderr


def test_openvino_caches_compiled_models_by_content(artifact: Artifact, folder: Path) -> None:
    inputs = {"image": torch.rand(2, 1, 6, 4), "gain": torch.ones(2)}
    with use_program("openvino"):
        first = opened(artifact)(inputs)
        compiled_cache = cache_folder(artifact) / "compiled"
        assert list(compiled_cache.rglob("*.blob"))
        assert relative_error(first, opened(artifact)(inputs)) == 0
        for blob in compiled_cache.rglob("*.blob"):
            blob.write_bytes(blob.read_bytes()[:100])
        assert relative_error(first, opened(artifact)(inputs)) == 0
        other_network = network()
        with torch.no_grad():
            other_network.module.second.bias += 1
        make_programs(other_network, ["onnx"], artifact.path.parent, "", random_examples(other_network))
        changed, stored = artifact.path.parent / "model.onnx", artifact.path / "model.onnx"
        os.utime(changed, ns=(stored.stat().st_atime_ns, stored.stat().st_mtime_ns))  # a copy within the same second
        assert changed.stat().st_size == stored.stat().st_size
        changed.replace(stored)
        assert relative_error(load_eager(other_network)(inputs), opened(artifact)(inputs)) < 1e-4


def test_a_program_that_cannot_be_loaded_is_skipped_with_a_remark(artifact: Artifact) -> None:
    with use_program("torchscript"):
        program = opened(artifact)
    assert program.name != "torchscript"
    assert "the requested program torchscript cannot be used: there is no torchscript.pt" in program.remarks[0]


def test_a_file_of_another_version_is_reported_and_the_next_program_is_used(artifact: Artifact) -> None:
    (artifact.path / "model.onnx").write_bytes(b"not a network of this version")
    program = opened(artifact)
    assert program.name == "torch"
    assert any("onnx cannot be used: onnxruntime" in remark for remark in program.remarks)
    assert any("openvino cannot be used: openvino" in remark for remark in program.remarks)


def test_a_program_of_other_weights_is_not_used(artifact: Artifact, tmp_path: Path, folder: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "torchscript.pt").write_bytes((folder / "torchscript.pt").read_bytes())
    entries = make_programs(network(), ["torchscript"], aside, "other weights", random_examples(network()))
    add_to_cache(artifact, aside, entries)
    with use_program("torchscript"):
        program = opened(artifact)
    assert program.name != "torchscript" and "made from weights other than" in program.remarks[0]


def test_an_artifact_s_own_program_of_other_weights_is_not_used(
    artifact: Artifact, tmp_path: Path, folder: Path
) -> None:
    (artifact.path / "torchscript.pt").write_bytes((folder / "torchscript.pt").read_bytes())
    aside = tmp_path / "aside"
    aside.mkdir()
    entries = make_programs(network(), ["torchscript"], aside, "other weights", random_examples(network()))
    files = {**artifact.manifest.files, "torchscript.pt": describe_file(artifact.path / "torchscript.pt")}
    for weights, expected in (("other weights", False), (weights_digest(artifact), True)):
        programs = {**artifact.manifest.programs, "torchscript": replace(entries["torchscript"], weights=weights)}
        with use_program("torchscript"):
            program = opened(Artifact(artifact.path, replace(artifact.manifest, programs=programs, files=files)))
        assert (program.name == "torchscript") is expected
        assert expected or "made from weights other than" in program.remarks[0]


@pytest.mark.parametrize("name", ["torchscript", "aotinductor"])
def test_a_program_with_code_is_loaded_from_an_artifact_only_on_request(
    artifact: Artifact, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, format = find_program(name)
    file = str(runtime.file(format))
    (artifact.path / file).write_bytes(b"somebody's code")
    files = {**artifact.manifest.files, file: describe_file(artifact.path / file)}
    entry = replace(artifact.manifest.programs["onnx"], file=file)
    with_code = replace(artifact.manifest, programs={**artifact.manifest.programs, name: entry}, files=files)
    loaded = []

    def load(_: object, source: Source, *__: object) -> None:
        loaded.append(source.file)
        raise ProgramError("it is not loaded in this test")

    monkeypatch.setattr(type(runtime), "load", load)
    program = opened(Artifact(artifact.path, with_code))
    assert loaded == [] and any(f"contains code, so it is used only on request: --program {name}" in remark
                                for remark in program.remarks)  # fmt: skip
    with use_program(name):
        opened(Artifact(artifact.path, with_code))
    assert loaded[0] == artifact.path / file


def test_an_altered_program_in_the_cache_is_not_used(artifact: Artifact, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    digest = weights_digest(artifact)
    add_to_cache(artifact, aside, make_programs(network(), ["torchscript"], aside, digest, random_examples(network())))
    with use_program("torchscript"):
        assert opened(artifact).name == "torchscript"
        file = cache_folder(artifact) / "torchscript.pt"
        file.write_bytes(file.read_bytes() + b" ")
        program = opened(artifact)
    assert program.name != "torchscript" and "missing or was altered" in program.remarks[0]


@pytest.mark.parametrize("requested", [None, "onnx"])
def test_an_onnx_file_of_unknown_weights_is_replaced(artifact: Artifact, requested: str | None) -> None:
    """The ONNX file is next to other weights with the right digests, and the manifest has no entry for it."""
    other_network = network()
    with torch.no_grad():
        other_network.module.second.bias += 5
    save_file({key: value.clone() for key, value in other_network.module.state_dict().items()}, artifact.path / WEIGHTS)
    files = {**artifact.manifest.files, WEIGHTS: describe_file(artifact.path / WEIGHTS)}
    write_manifest(artifact.path, replace(artifact.manifest, programs={}, files=files))
    changed = open_artifact(artifact.path)
    inputs = {"image": torch.rand(3, 1, 14, 6), "gain": torch.ones(3)}
    with use_program(requested):
        first, second = opened(changed, build=lambda: other_network), opened(changed, build=lambda: other_network)
    for program in (first, second):
        assert requested in (None, program.name)
        assert relative_error(load_eager(other_network)(inputs), program(inputs)) < 0.02
    (remark,) = first.remarks
    assert "does not say from which weights it was made" in remark and "--make onnx" in remark
    assert not second.remarks
    assert stored_programs(changed)[0]["onnx"].path.parent == cache_folder(changed)


def test_if_no_onnx_can_be_made_torch_is_used_with_a_remark(artifact: Artifact) -> None:
    class Branches(Edges):
        def forward(self, image: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(image if image.sum() > 0 else -image, gain)

    files = {WEIGHTS: artifact.manifest.files[WEIGHTS]}
    bare = Artifact(artifact.path, replace(artifact.manifest, programs={}, files=files))
    program = opened(bare, build=lambda: replace(network(), module=Branches().eval()))
    assert program.name.startswith("torch") and program.remarks[0].startswith("no ONNX file could be made: ")


def test_missing_cpu_instructions_are_reported(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.deploy.programs.openvino.cpu_has_bf16", lambda: False)
    with use_program("openvino-bf16"):
        program = opened(artifact)
    assert "the requested program openvino-bf16 cannot be used: this CPU has neither AVX512-BF16" in program.remarks[0]
