"""Empty tensors under the Open Inference Protocol: answered or refused, but never passed to the network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from shared.errors import InvalidInputError
from shared.serve.worker.network import OnnxNetwork

INFER = "/v2/models/echo/infer"
X = {"name": "x", "datatype": "FP32", "shape": [0, 2], "data": []}
INDEX = {"name": "index", "datatype": "INT64", "shape": [0], "data": []}

# In a separate process: before zero rows were answered without the network, ONNX Runtime crashed with SIGABRT.
_PROGRAM = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from shared.serve.app import create_app
from shared.serve.settings import Settings

with TestClient(create_app(Settings(store=Path(sys.argv[1]), hosts="testserver", warm=False, device="cpu"))) as client:
    for model in client.get("/v2").json()["models"]:
        described = client.get(f"/v2/models/{model}").json()
        for zero in range(max(len(tensor["shape"]) for tensor in described["inputs"])):
            inputs = []
            for tensor in described["inputs"]:
                shape = [1 if size == -1 else size for size in tensor["shape"]]
                if zero < len(shape):
                    shape[zero] = 0
                inputs.append({**tensor, "shape": shape, "data": []})
            answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
            print(json.dumps([described, zero, answer.status_code, answer.json()]), flush=True)
"""


@pytest.mark.usefixtures("networks_of_shipped")
def test_shipped_models_answer_zero_rows_and_refuse_other_empty_tensors(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    models = set()
    for line in completed.stdout.splitlines():
        described, zero, status, answer = json.loads(line)
        models.add(described["name"])
        if zero == 0 and any(-1 in output["shape"][1:] for output in described["outputs"]):
            assert status == 400 and "depends on them" in answer["error"]
        elif zero == 0:
            assert status == 200, answer
            shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
            assert shapes == {output["name"]: [0, *output["shape"][1:]] for output in described["outputs"]}
            assert all(output["data"] == [] for output in answer["outputs"])
        else:
            assert status == 400, answer
    assert {"lung_nodules", "pointpillars", "fcos3d", "tft-anomaly"} <= models


@pytest.fixture
def unused_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(self: OnnxNetwork, *batch: object) -> None:
        raise AssertionError("the network was run")

    monkeypatch.setattr(OnnxNetwork, "compute", compute)


@pytest.mark.usefixtures("unused_network")
def test_zero_rows_as_binary_data_are_answered_as_binary_data(echo_client: TestClient) -> None:
    header = {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": 0}}
            for name, datatype, shape in (("x", "FP32", [0, 2]), ("index", "INT64", [0]))
        ],
        "parameters": {"binary_data_output": True},
    }
    body = json.dumps(header).encode()
    response = echo_client.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(len(body))})
    assert response.status_code == 200, response.text
    assert int(response.headers["Inference-Header-Content-Length"]) == len(response.content)
    outputs = json.loads(response.content)["outputs"]
    assert [output["shape"] for output in outputs] == [[0, 2], [0]]
    assert all(output["parameters"] == {"binary_data_size": 0} for output in outputs)


@pytest.mark.usefixtures("unused_network")
def test_zero_rows_in_only_some_inputs_are_refused(echo_client: TestClient) -> None:
    response = echo_client.post(INFER, json={"inputs": [X, {**INDEX, "shape": [1], "data": [1]}]})
    assert response.status_code == 400 and "'batch'" in response.json()["error"]


@pytest.mark.usefixtures("unused_network")
def test_zero_rows_are_refused_if_the_manifest_does_not_fix_the_output_shape(
    serve: Callable[..., TestClient], tmp_path: Path
) -> None:
    path = tmp_path / "echo" / "weights" / "echo" / "2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"][0]["shape"] = [-1, -1]
    path.write_text(json.dumps(manifest))
    response = serve().post(INFER, json={"inputs": [X, INDEX]})
    assert response.status_code == 400 and "the shape of the output 'y' depends on them" in response.json()["error"]


def test_a_network_without_a_batch_axis_refuses_empty_tensors() -> None:
    class Tensor:
        name, shape = "x", (3, "length")

    class Session:
        get_inputs = get_outputs = staticmethod(lambda: [Tensor])
        get_providers = staticmethod(list)

    with pytest.raises(InvalidInputError, match="'x' has size 0 in axis 1"):
        OnnxNetwork(Session()).check({"x": np.empty((3, 0), np.float32)})
