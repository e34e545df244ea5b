"""A real tritonserver serves the output of ``write_python_model``, and answers as ``trivium serve`` does.

PyPI's nvidia-pytriton carries tritonserver with its Python backend, for a separate Python 3.11 (docs/integrators.md
has the command). The test is skipped if TRIVIUM_TRITON_VENV does not name that environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from shared.app import find
from shared.deploy.artifact import Artifact
from shared.deploy.registry import shipped
from shared.deploy.triton import write_python_model
from shared.errors import InvalidInputError
from tests.servers import free_port

_SECONDS = 60.0
_TRITON = Path("pytriton") / "tritonserver"


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return shipped(find("finance"))[0]


@pytest.fixture(scope="module")
def triton(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of inference and of metrics."""
    named = os.environ.get("TRIVIUM_TRITON_VENV")
    if not named:
        pytest.skip("TRIVIUM_TRITON_VENV names no environment with nvidia-pytriton")
    venv, folder = Path(named), tmp_path_factory.mktemp("triton")
    packages = venv / "lib" / "python3.11" / "site-packages"
    write_python_model(artifact, folder / "models")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(packages / _TRITON / "backends" / "python").glob("*.*"), _stub(packages)):
        (backend / file.name).symlink_to(file)
    libdir_command = [str(venv / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    libpython = subprocess.run(libdir_command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    environment = os.environ | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": f"{libpython}:{packages / 'nvidia_pytriton.libs'}",
    }
    ports = free_port(), free_port()
    command = [
        str(packages / _TRITON / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={ports[0]}",
        "--allow-grpc=false",
        f"--metrics-port={ports[1]}",
        "--exit-timeout-secs=5",
    ]
    log = folder / "log.txt"
    with (
        log.open("w") as log_file,
        subprocess.Popen(command, env=environment, stdout=log_file, stderr=log_file) as process,
    ):
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{ports[0]}/v2/health/ready", log)
            yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/metrics"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _stub(packages: Path) -> Path:
    return packages / _TRITON / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        try:
            process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            try:
                with urllib.request.urlopen(address, timeout=5):
                    return
            except OSError:
                continue
        break
    pytest.fail(f"tritonserver was not ready after {_SECONDS:g} s:\n{log.read_text(errors='replace')[-2000:]}")


def test_a_real_tritonserver_answers_as_trivium_serve_does(
    triton: tuple[str, str], artifact: Artifact, client: TestClient
) -> None:
    manifest, random = artifact.manifest, np.random.default_rng(0)
    inputs = []
    for spec in manifest.inputs:
        shape = [3, *spec.shape[1:]]
        values = random.normal(size=shape).astype(np.float32)
        inputs.append({"name": spec.name, "datatype": "FP32", "shape": shape, "data": values.ravel().tolist()})
    path = f"/v2/models/{manifest.name}/infer"
    request = urllib.request.Request(triton[0] + path, json.dumps({"inputs": inputs}).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        theirs = json.load(response)["outputs"]
    ours = client.post(path, json={"inputs": inputs}).raise_for_status().json()["outputs"]
    assert [tensor["name"] for tensor in theirs] == [tensor["name"] for tensor in ours]
    for their_tensor, our_tensor in zip(theirs, ours, strict=True):
        assert (their_tensor["shape"], their_tensor["datatype"]) == (our_tensor["shape"], our_tensor["datatype"])
        np.testing.assert_allclose(their_tensor["data"], our_tensor["data"], rtol=1e-5, atol=1e-6)
    with urllib.request.urlopen(triton[1], timeout=30) as response:
        metrics = response.read().decode()
    # The request to warm up counts too.
    assert f'nv_inference_count{{model="{manifest.name}",version="{manifest.version}"}} 4' in metrics


def test_an_artifact_without_a_network_has_no_python_model(artifact: Artifact, tmp_path: Path) -> None:
    bare = Artifact(artifact.path, replace(artifact.manifest, inputs=(), outputs=(), files={}))
    with pytest.raises(InvalidInputError, match="no dense network"):
        write_python_model(bare, tmp_path)
