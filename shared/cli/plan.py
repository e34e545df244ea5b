"""``trivium plan``: predicts the time of a training step on a cluster, and calibrates and validates the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from shared.app import Table
from shared.atomic_files import write_whole
from shared.cli.arguments import Plan
from shared.cli.printing import print_line, print_table
from shared.comms.cost import LINKS, Cluster, Link
from shared.comms.profiles import PROFILES, read_profile
from shared.comms.step_model import DEVICES, CommunicationOption, Prediction, Workload, predict, rank_options
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.comms.calibration import Calibration, Point

T = TypeVar("T")
MAX_MEDIAN_ERROR = 0.2


def run(command: Plan) -> int:
    """Predicts a step, prints the scenario, or calibrates and validates the model, as the command line asks."""
    if command.calibrate is not None or command.validate:
        return _calibrate_and_validate(command)
    if command.scenario:
        return _print_scenario()
    profile = read_profile(command.model)
    if command.model not in PROFILES and command.compute_ms is None:
        raise InvalidInputError(
            f"{command.model} does not say how much its layers compute: give the measured milliseconds of a step "
            "without communication with --compute-ms"
        )
    workload = Workload(
        profile=profile,
        batch=command.batch,
        device=_lookup(DEVICES, command.device, "device", "; of another one, --compute-ms gives the measured time"),
        compute_s=None if command.compute_ms is None else command.compute_ms / 1e3,
        jitter=command.jitter,
        powersgd_rank=command.powersgd_rank,
    )
    inter = _find_link(command.inter)
    cluster = Cluster(
        nodes=command.nodes,
        per_node=command.gpus,
        intra=_find_link(command.intra),
        inter=inter,
        ports=command.ports if command.ports is not None else command.gpus if command.inter.startswith("ib-") else 1,
        oversubscription=command.oversubscription,
        busy=command.busy,
        interleaved=command.interleaved,
    )
    predictions = rank_options(workload, cluster, None if command.memory_gb is None else command.memory_gb * 1e9)
    network = f", {cluster.ports} {'port' if cluster.ports == 1 else 'ports'} of {command.inter} each"
    print_line(
        f"{profile.name}: {profile.parameters / 1e6:.1f} million parameters, {command.batch} samples on each of "
        f"{cluster.world} GPUs; {cluster.nodes} nodes{network if cluster.nodes > 1 else ''}"
    )
    print_table(_predictions_table(predictions, command.memory_gb))
    best = predictions[0]
    print(json.dumps({"best": asdict(best.way), "step_s": best.step_s, "share": best.share}), flush=True)
    return 0


def _predictions_table(predictions: list[Prediction], memory_gb: float | None) -> Table:
    rows = []
    for prediction in predictions:
        fits = memory_gb is None or prediction.memory_bytes <= memory_gb * 1e9
        rows.append(
            (
                f"{prediction.way.sharding}, {prediction.way.route}, {prediction.way.compression}",
                f"{prediction.step_s * 1e3:.2f}",
                f"{prediction.share:.1%}",
                f"{prediction.communication_s / prediction.step_s:.1%}",
                f"{prediction.link_bytes / 1e6:,.0f}",
                f"{prediction.memory_bytes / 1e9:.2f}{'' if fits else ' (does not fit)'}",
            )
        )
    notes = (
        "Share: the communication that computation does not hide, as a fraction of the step. These are predictions; "
        "the rates of links and devices are assumptions until --calibrate. PowerSGD and bf16 also change the training.",
    )
    columns = ("way", "step, ms", "share", "communication / step", "MB a node sends", "GB a GPU")
    return Table(title="", columns=columns, rows=rows, notes=notes)


def _print_scenario() -> int:
    """Prints the case in which the model predicts 28 % to 12 % communication on 256 nodes, technique by technique."""
    device, inter = "a100", "ethernet-100g"
    cluster = Cluster(nodes=256, per_node=8, intra=LINKS["nvlink3"], inter=LINKS[inter], ports=1)
    flat = CommunicationOption(route="flat", compression="none", sharding="DDP")

    def workload(batch: int, bucket_mb: float = 25.0) -> Workload:
        return Workload(
            profile=read_profile("bert-base"),
            batch=batch,
            device=DEVICES[device],
            jitter=0.02,
            bucket_bytes=bucket_mb * 2**20,
        )

    batch = min(range(8, 513, 4), key=lambda size: abs(predict(workload(size), cluster, flat).share - 0.28))
    base_workload = workload(batch)
    round_robin = replace(cluster, interleaved=True, tree=False)
    predictions = {
        "ring over ranks assigned round-robin": predict(base_workload, round_robin, flat),
        "ring in our order, large first bucket (no overlap)": predict(workload(batch, 1e6), cluster, flat),
        "flat (NCCL's best of ring and tree), overlapped": predict(base_workload, cluster, flat),
        "+ hierarchical": predict(base_workload, cluster, replace(flat, route="hierarchical")),
        "+ bf16": predict(base_workload, cluster, replace(flat, compression="bf16")),
        "+ hierarchical, bf16": predict(
            base_workload, cluster, replace(flat, route="hierarchical", compression="bf16")
        ),
        "+ hierarchical, PowerSGD": predict(
            base_workload, cluster, replace(flat, route="hierarchical", compression="powersgd")
        ),
    }
    rows = [
        (name, f"{prediction.step_s * 1e3:.1f}", f"{prediction.share:.1%}") for name, prediction in predictions.items()
    ]
    other_networks = {
        f"one port of {name}": predict(base_workload, replace(cluster, inter=LINKS[name]), flat).share
        for name in ("ethernet-25g", "ib-hdr")
    }
    notes = (
        f"bert-base on 128 tokens, {batch} samples on each of 2,048 {device} GPUs, NVLink 3 inside, one 100 Gbit/s "
        "Ethernet port a node, fp32 gradients, steps that scatter by 2 %. By the model, not measured.",
        "Limits: at 256 nodes a ring in node order sends 2 (P - 1) / P S and the hierarchical route 2 (N - 1) / N S, "
        "which is nearly the same. Once the ranks are in order, the route only saves latency.",
        f"With other networks the initial share is different: "
        f"{', '.join(f'{name}: {share:.0%}' for name, share in other_networks.items())}.",
    )
    print_table(Table(title="", columns=("way", "step, ms", "share"), rows=rows, notes=notes))
    shares = {name: prediction.share for name, prediction in predictions.items()}
    before = shares["flat (NCCL's best of ring and tree), overlapped"]
    after = shares["+ bf16"]
    ok = abs(before - 0.28) <= 0.01 and abs(after - 0.12) <= 0.01
    print(json.dumps({"name": "scenario", "batch": batch, "before": before, "after": after, "ok": ok}), flush=True)
    return 0


def _calibrate_and_validate(command: Plan) -> int:
    """Fits the model to a job's network, or to a simulated network on this machine, which ``--validate`` measures."""
    from shared.comms.shaped_network import missing_privileges

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _calibrate_on_job(command)
    if reason := missing_privileges():
        print_line(f"skipped: {reason}")
        print(json.dumps({"name": "plan", "ok": False, "note": f"skipped: {reason}"}), flush=True)
        return 1
    from shared.comms.calibration import calibrate, validate

    calibration = calibrate(command.mbit_s)
    _report_calibration(calibration, command.calibrate)
    if not command.validate:
        return 0
    points = validate(calibration, command.mbit_s)
    rows = [
        (
            f"{point.hosts} x {point.per_host}",
            point.what,
            f"{point.predicted_s:.3f}",
            f"{point.measured_s:.3f}",
            f"{point.error:.0%}",
        )
        for point in points
    ]
    columns = ("hosts x processes", "what", "predicted, s", "measured, s", "error")
    print_table(Table(title="", columns=columns, rows=rows))
    error = median(point.error for point in points)
    if command.plot is not None:
        _plot(points, command.plot)
    figures = {"points": len(points), "median_error": error, "largest_error": max(point.error for point in points)}
    ok = error <= MAX_MEDIAN_ERROR
    print_line(f"median error {error:.1%} of at most {MAX_MEDIAN_ERROR:.0%}")
    print(json.dumps({"name": "plan --validate", "figures": figures, "ok": ok}), flush=True)
    return 0 if ok else 1


def _calibrate_on_job(command: Plan) -> int:
    """Fits the model to the network between the hosts of a job; the process of rank 0 reports."""
    from shared.comms.calibration import calibrate_job

    if command.validate:
        raise InvalidInputError("--validate creates its own network and processes: run it without torchrun")
    calibration = calibrate_job()
    if os.environ.get("RANK") == "0":
        _report_calibration(calibration, command.calibrate)
    return 0


def _report_calibration(calibration: Calibration, path: Path | None) -> None:
    document = asdict(calibration)
    print_line(
        f"between hosts {calibration.inter.alpha_s * 1e6:.0f} µs and {calibration.inter.bytes_s / 1e6:.2f} MB/s, "
        f"inside {calibration.intra.alpha_s * 1e6:.0f} µs and {calibration.intra.bytes_s / 1e6:.0f} MB/s"
    )
    if path is not None:
        write_whole(path, json.dumps(document, indent=2) + "\n")
    print(json.dumps({"name": "calibrate", **document}), flush=True)


def _plot(points: list[Point], path: Path) -> None:
    """Plots predicted against measured times, with a band of 20 % on either side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for label in sorted({point.what.split(",")[0] for point in points}):
        group = [point for point in points if point.what.split(",")[0] == label]
        axes.loglog([point.measured_s for point in group], [point.predicted_s for point in group], "o", label=label)
    limits = [min(point.measured_s for point in points), max(point.measured_s for point in points)]
    axes.loglog(limits, limits, "k-", linewidth=1)
    axes.fill_between(
        limits,
        [0.8 * limit for limit in limits],
        [1.2 * limit for limit in limits],
        alpha=0.15,
        color="k",
        label="20 %",
    )
    axes.set_xlabel("measured, s")
    axes.set_ylabel("predicted, s")
    axes.legend()
    figure.savefig(path)


def _find_link(name: str) -> Link:
    """Returns a link by its name, or from a calibration file by ``FILE:inter`` or ``FILE:intra``."""
    path, _, part = name.rpartition(":")
    if path and part in ("inter", "intra"):
        try:
            return Link(**json.loads(Path(path).read_text(encoding="utf-8"))[part])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{path} is not a file that --calibrate wrote: {error}") from error
    return _lookup(LINKS, name, "link")


def _lookup(choices: Mapping[str, T], name: str, kind: str, otherwise: str = "") -> T:
    if name not in choices:
        raise InvalidInputError(f"there is no {kind} {name!r}; choose one of {', '.join(choices)}{otherwise}")
    return choices[name]
