"""The arguments of the command line: one dataclass for each command. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from shared.cli.server_arguments import Backup as Backup
from shared.cli.server_arguments import Device as Device
from shared.cli.server_arguments import Folder as Folder
from shared.cli.server_arguments import Gateway as Gateway
from shared.cli.server_arguments import Keys as Keys
from shared.cli.server_arguments import ProgramName as ProgramName
from shared.cli.server_arguments import Purge as Purge
from shared.cli.server_arguments import Restore as Restore
from shared.cli.server_arguments import Reviews as Reviews
from shared.cli.server_arguments import Serve as Serve
from shared.cli.server_arguments import Versions as Versions

AppName: TypeAlias = Annotated[Positional[str], arg(metavar="APP")]
DataSet: TypeAlias = Annotated[str | None, arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe, or resume an interrupted run.

    Any setting of the recipe can be given on the command line; `trivium train finance --recipe tiny -- --help`
    lists them. With --data, the settings of that data set replace those of the recipe's own. Under torchrun the
    processes share every batch.

    Example: trivium train finance --recipe tiny --out runs/first --limits.epochs 2

    Example: trivium train driving --data kitti --data.root DIR

    Example: torchrun --nproc-per-node 2 --no-python trivium train finance --recipe tiny
    """

    app: AppName
    """The application: medical, driving or finance."""
    recipe: Annotated[str, arg(metavar="NAME|FILE.yaml")] = "small"
    """The name of a recipe, or the recipe.yaml of a run."""
    data: DataSet = None
    """Train on this data set instead of the recipe's; `trivium models APP` lists the data sets."""
    out: Folder = None
    """The run's directory; by default runs/APP-RECIPE."""
    optimizer: Annotated[Literal["adamw", "sgd"] | None, arg(metavar="adamw|sgd")] = None
    """Use this optimizer, with its own default learning rate, instead of the recipe's."""
    schedule: Annotated[Literal["cosine", "constant", "steps"] | None, arg(metavar="cosine|constant|steps")] = None
    """Use this learning-rate schedule instead of the recipe's."""
    strategy: Annotated[Literal["ddp", "fsdp"] | None, arg(metavar="ddp|fsdp")] = None
    """With several processes: replicate the model on each (ddp, the default) or shard it over them (fsdp)."""
    device: Device = None
    """The device to compute on; by default the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Compare runs: steps trained, best score, last loss and state of each, and the settings in which they differ.

    Reads the runs' directories; the runs may still be training. The best score is the one named by limits.monitor.

    Example: trivium runs

    Example: trivium runs runs/first runs/second --json
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="[DIR ...]")] = (Path("runs"),)
    """The directories of runs, or directories that contain runs."""
    json: bool = False
    """Print JSON: the runs with all their settings, and the settings that differ."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run or an artifact on its recipe's validation data, or on a data set by the field's standard protocol.

    Files of results can be scored without a model if the application has a protocol for them.

    Example: trivium evaluate finance

    Example: trivium evaluate driving --run runs/first --data kitti --data.root DIR

    Example: trivium evaluate medical --data synthetic --limit 15 --program openvino-bf16

    Example: trivium evaluate medical --submission CSV --annotations CSV --excluded CSV --series CSV
    """

    app: AppName
    """The application."""
    run: Folder = None
    """A run's directory; its best checkpoint is scored."""
    artifact: Folder = None
    """An artifact's directory; by default the artifact that ships with the application."""
    data: DataSet = None
    """The data set to score on; `trivium models APP` lists the data sets."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """Score at most this many cases of the data set."""
    device: Device = None
    """The device to compute on; by default the GPU if there is one."""
    program: ProgramName = None
    """With --data, use this program instead of the fastest; `trivium programs APP` lists the programs."""


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Set the operating point on your own data set, and write the artifact's next version into a registry.

    Example: trivium calibrate driving --artifact models/pointpillars/1 --data kitti --data.root DIR
    """

    app: AppName
    """The application."""
    artifact: Folder = None
    """An artifact's directory; by default the one the registry serves, or else the one that ships."""
    data: DataSet = None
    """Calibrate on the validation part of this data set; `trivium models APP` lists the data sets."""
    registry: Path = Path("models")
    """A directory in Triton's model repository layout; created if it is missing."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Convert a public checkpoint to an artifact. Only weights are read; no code in the file is executed.

    Example: trivium import medical monai-bundle model.pt --registry models
    """

    app: AppName
    """The application."""
    importer: Annotated[Positional[str], arg(metavar="IMPORTER")]
    """The importer to use; `trivium models APP` lists the importers and their arguments."""
    arguments: Annotated[Positional[tuple[str, ...]], arg(metavar="[ARGUMENT ...]")] = ()
    """The arguments of the importer, such as the checkpoint file."""
    data: DataSet = None
    """A data set from which to compute what the checkpoint lacks, such as encoders, which are refitted."""
    option: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings that the checkpoint does not contain, as name=value; each `--option` takes one or more."""
    registry: Path = Path("models")
    """A directory in Triton's model repository layout; created if it is missing."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the recipes, shipped artifacts, data sets and importers of an application.

    Example: trivium models driving
    """

    app: Annotated[Positional[str], arg(metavar="[APP]")] = ""
    """The application; by default all of them."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict on files and write result.json and picture.png.

    Example: trivium predict finance tests/data/metric.csv --out out
    """

    app: AppName
    """The application."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT [INPUT ...]")]
    """A file, several files, or a folder."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The output directory."""
    artifact: Folder = None
    """An artifact's directory; by default the artifact that ships with the application."""
    device: Device = None
    """The device to compute on; by default the GPU if there is one."""
    program: ProgramName = None
    """Use this program instead of the fastest; `trivium programs APP` lists the programs."""
    option: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Options of the application, as name=value; each `--option` takes one or more."""
    each: bool = False
    """Predict on the cases of a folder or ROS bag one by one, resuming where an earlier call stopped (driving)."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare the findings of two scans of a patient, from two outputs of `trivium predict`, newer first (medical).

    Example: trivium compare medical out out_before --days 183
    """

    app: AppName
    """The application."""
    now: Annotated[Positional[Path], arg(metavar="DIR")]
    """The output directory of `trivium predict` for the newer scan."""
    before: Annotated[Positional[Path], arg(metavar="EARLIER_DIR")]
    """The output directory for the earlier scan."""
    days: Annotated[float | None, arg(metavar="DAYS")] = None
    """The days between the scans, for the doubling time."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the comparison to this file as JSON."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a run's best checkpoint: safetensors, ONNX and a manifest, as the next version in a registry.

    Example: trivium export runs/first --registry models
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run's directory."""
    registry: Path = Path("models")
    """A directory in Triton's model repository layout; created if it is missing."""
    programs: Annotated[str, arg(metavar="NAME[,NAME]")] = "onnx"
    """The programs to compile the network to, comma-separated: onnx, openvino, torchscript, aotinductor."""
    calibrate: Annotated[tuple[Path, ...], arg(metavar="FILE")] = ()
    """Input files on which programs are compared with torch; by default the application's samples."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """List the program each network uses on this machine and why; compile programs from existing weights.

    Compiled programs are stored in the user's cache folder; the fastest is then measured again.

    Example: trivium programs medical

    Example: trivium programs --make onnx,openvino
    """

    app: Annotated[Positional[str], arg(metavar="[APP]")] = ""
    """The application; by default all of them."""
    make: Annotated[str, arg(metavar="NAME[,NAME]")] = ""
    """The programs to compile, comma-separated: onnx, openvino, torchscript, aotinductor."""
    artifact: Folder = None
    """An artifact's directory; by default the artifacts that ship with the application."""
    device: Device = None
    """The device to compute on; by default the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantise an artifact's network to INT8 and compare the domain's score before and after; refuse a loss above 1 %.

    The program is stored in the user's cache folder. Detectors use it if it is the fastest; the forecaster of finance
    and the second stage for nodules use it only if --program names it. The network is calibrated on the files given
    with --calibrate, by default on the training part of --data. It is scored on the validation part of --data,
    together with the artifacts that it is served with. --data is by default the recipe's data set.

    Example: trivium quantize apps/driving/weights/pointpillars/4 --cases 64
    """

    artifact: Annotated[Positional[Path], arg(metavar="ARTIFACT")]
    """The artifact's directory."""
    int8: Literal["static", "dynamic"] = "static"
    """static: weights and activations, by NNCF for OpenVINO; dynamic: weights only, by ONNX Runtime, for networks with
    recurrent layers such as the forecaster of finance."""
    calibrate: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")] = ()
    """Input files to calibrate on."""
    data: DataSet = None
    """The data set to calibrate and score on; `trivium models APP` lists the data sets."""
    cases: Annotated[int | None, arg(metavar="N")] = None
    """Score on at most this many cases."""
    force: bool = False
    """Keep the program whatever the loss."""
    into_artifact: bool = False
    """Also write the program into the artifact and list it in the manifest."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Print an application's headline table: the published figures, the peer's and ours.

    Example: trivium reproduce finance --quick
    """

    app: AppName
    """The application."""
    quick: bool = False
    """A smaller run, of minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """List, fetch or verify the public data sets that the applications know; clear the cache of packed training data.

    Example: trivium data list

    Example: trivium data list nab

    Example: trivium data clear
    """

    action: Positional[Literal["list", "fetch", "verify", "clear"]]
    """The action. clear removes the training data that was packed into the user's cache; no training may be running."""
    names: Positional[tuple[str, ...]] = ()
    """Names of data sets; list and verify take all of them by default. list NAME says where to get a missing one."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Print the switches of a cluster, and the order of hosts in which a ring leaves a switch least often.

    Reads Slurm's topology.conf, the JSON of `kubectl get nodes -o json`, NCCL's topology XML or a CSV of latencies.

    Example: trivium topology /etc/slurm/topology.conf --hosts "node[1-12]"
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file that describes the topology."""
    hosts: Annotated[str | None, arg(metavar="HOSTS")] = None
    """The hosts of the job, in Slurm's list notation; by default all hosts in the file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict a training step on a cluster: step time, communication share, memory, and the best parallel strategy.

    Example: trivium plan --model resnet50 --nodes 256 --gpus 8 --intra nvlink4 --inter ib-hdr

    Example: trivium plan --validate
    """

    model: Annotated[str, arg(metavar="NAME|FILE")] = "bert-base"
    """resnet50, bert-base, bert-large, or a safetensors file (which also needs --compute-ms)."""
    nodes: Annotated[int, arg(metavar="N")] = 256
    """The number of nodes."""
    gpus: Annotated[int, arg(metavar="N")] = 8
    """The number of GPUs of each node."""
    intra: Annotated[str, arg(metavar="LINK")] = "nvlink4"
    """The link between the GPUs of a node: nvlink2 to nvlink4, pcie4, pcie5, or FILE:intra from a calibration."""
    inter: Annotated[str, arg(metavar="LINK")] = "ib-hdr"
    """The network link: ib-edr, ib-hdr, ib-ndr, ethernet-1g to ethernet-100g, or FILE:inter from a calibration."""
    ports: Annotated[int | None, arg(metavar="N")] = None
    """Network ports of a node; by default one for each GPU with InfiniBand, otherwise one."""
    device: Annotated[str, arg(metavar="NAME")] = "h100"
    """The GPU: v100, a100 or h100."""
    batch: Annotated[int, arg(metavar="N")] = 64
    """Samples per GPU and step."""
    compute_ms: Annotated[float | None, arg(metavar="MS")] = None
    """The measured time of a step without communication, to use instead of the device's rate."""
    memory_gb: Annotated[float | None, arg(metavar="GB")] = None
    """The memory of a GPU; strategies that do not fit are listed last."""
    oversubscription: Annotated[float, arg(metavar="X")] = 1.0
    """The ratio of the bandwidth of the nodes to that of the switches above them."""
    busy: Annotated[float, arg(metavar="X")] = 0.0
    """The fraction of the links' bandwidth that other traffic takes."""
    jitter: Annotated[float, arg(metavar="X")] = 0.0
    """The standard deviation of a process's step time divided by its mean; every step waits for the slowest process."""
    interleaved: bool = False
    """Assign ranks to nodes round-robin."""
    powersgd_rank: Annotated[int, arg(metavar="N")] = 4
    """The rank of the PowerSGD approximation."""
    scenario: bool = False
    """Print the case in which communication on 256 nodes falls from 28 % to 12 %, and what each technique saves."""
    calibrate: Annotated[Path | None, arg(metavar="FILE")] = None
    """Fit the links to a sweep between the hosts of a torchrun job, or without torchrun to a sweep on a simulated
    network on this machine (root, Linux), and write them to this file."""
    validate: bool = False
    """Compare predictions with measurements of 2 to 8 processes on the simulated network."""
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Draw predictions against measurements into this file."""
    mbit_s: Annotated[float, arg(metavar="MBIT")] = 100.0
    """The bandwidth between hosts of the simulated network."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this machine: versions, devices, applications, weights and data, with a remedy for each fault.

    Example: trivium doctor
    """


Command: TypeAlias = (
    Annotated[Train, subcommand("train")]
    | Annotated[Runs, subcommand("runs")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Programs, subcommand("programs")]
    | Annotated[Quantize, subcommand("quantize")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Calibrate, subcommand("calibrate")]
    | Annotated[Models, subcommand("models")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Gateway, subcommand("gateway")]
    | Annotated[Backup, subcommand("backup")]
    | Annotated[Restore, subcommand("restore")]
    | Annotated[Purge, subcommand("purge")]
    | Annotated[Reviews, subcommand("reviews")]
    | Annotated[Keys, subcommand("keys")]
    | Annotated[Versions, subcommand("versions")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Topology, subcommand("topology")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Doctor, subcommand("doctor")]
)
