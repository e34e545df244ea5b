"""What the command line can say: a dataclass a command. Importing this imports no torch."""

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
    """Train a recipe, or go on with a run that was interrupted.

    Any setting of the recipe can be given on the command line; `trivium train finance --recipe tiny -- --help`
    lists them. With --data those of that data set take the place of the recipe's own. Under torchrun the processes
    share every batch.

    Example: trivium train finance --recipe tiny --out runs/first --limits.epochs 2

    Example: trivium train driving --data kitti --data.root DIR

    Example: torchrun --nproc-per-node 2 --no-python trivium train finance --recipe tiny
    """

    app: AppName
    """The application: medical, driving or finance."""
    recipe: Annotated[str, arg(metavar="NAME|FILE.yaml")] = "small"
    """The name of the recipe, or a run's recipe.yaml."""
    data: DataSet = None
    """Train on this data set in place of the recipe's; `trivium models APP` lists them."""
    out: Folder = None
    """The run's directory; runs/APP-RECIPE by default."""
    optimizer: Annotated[Literal["adamw", "sgd"] | None, arg(metavar="adamw|sgd")] = None
    """Another optimizer than the recipe's, with its own learning rate."""
    schedule: Annotated[Literal["cosine", "constant", "steps"] | None, arg(metavar="cosine|constant|steps")] = None
    """Another learning-rate schedule than the recipe's."""
    strategy: Annotated[Literal["ddp", "fsdp"] | None, arg(metavar="ddp|fsdp")] = None
    """Over several processes: the whole model on each (ddp, the default), or spread over them (fsdp)."""
    device: Device = None
    """Where to compute; the GPU by default where there is one."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Compare runs: how far each came, its best score and last loss, how it stands, and in which settings they differ.

    Reads the directories of runs, which may be training; the best score is that of limits.monitor.

    Example: trivium runs

    Example: trivium runs runs/first runs/second --json
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="[DIR ...]")] = (Path("runs"),)
    """Runs, or directories that hold runs."""
    json: bool = False
    """Print JSON: the runs with all their settings, and those that differ."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run or an artifact: on the validation data of its recipe, or on a data set by the field's protocol.

    Files of results can be scored without a model, where the application knows a protocol for them.

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
    """An artifact's directory; the one that ships with the application by default."""
    data: DataSet = None
    """The data set to score on; `trivium models APP` lists them."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """Score at most this many cases of the data set."""
    device: Device = None
    """Where to compute."""
    program: ProgramName = None
    """Compute with this program rather than the fastest, for --data NAME; `trivium programs APP` lists them."""


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Set the operating point on a data set of your own: writes the artifact's next version into a registry.

    Example: trivium calibrate driving --artifact models/pointpillars/1 --data kitti --data.root DIR
    """

    app: AppName
    """The application."""
    artifact: Folder = None
    """An artifact's directory; by default that of the registry which predicts, else the one that ships."""
    data: DataSet = None
    """The data set to calibrate on, by its validation part; `trivium models APP` lists them."""
    registry: Path = Path("models")
    """A directory in Triton's repository layout; made where it is missing."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a public checkpoint into an artifact: weights only, nothing in the file is executed.

    Example: trivium import medical monai-bundle model.pt --registry models
    """

    app: AppName
    """The application."""
    importer: Annotated[Positional[str], arg(metavar="IMPORTER")]
    """How to read it; `trivium models APP` lists the importers and their arguments."""
    arguments: Annotated[Positional[tuple[str, ...]], arg(metavar="[ARGUMENT ...]")] = ()
    """What the importer takes, such as the checkpoint's file."""
    data: DataSet = None
    """A data set for what the checkpoint does not hold, such as encoders that are fitted anew."""
    option: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """What the checkpoint does not say, as name=value; one or several behind each `--option`."""
    registry: Path = Path("models")
    """A directory in Triton's repository layout; made where it is missing."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List what an application can run: recipes, shipped artifacts, importers and data sets.

    Example: trivium models driving
    """

    app: Annotated[Positional[str], arg(metavar="[APP]")] = ""
    """The application; all of them where none is named."""


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
    """The directory for what comes out."""
    artifact: Folder = None
    """An artifact's directory; the one that ships with the application by default."""
    device: Device = None
    """Where to compute."""
    program: ProgramName = None
    """Compute with this program rather than the fastest; `trivium programs APP` lists them."""
    option: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Options of the application, as name=value; one or several behind each `--option`."""
    each: bool = False
    """Go through a folder or ROS bag of any number of cases one by one, on from where it stopped (driving)."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What became of the findings since an earlier scan: two answers of `trivium predict`, the newer first (medical).

    Example: trivium compare medical out out_before --days 183
    """

    app: AppName
    """The application."""
    now: Annotated[Positional[Path], arg(metavar="DIR")]
    """What `trivium predict` wrote."""
    before: Annotated[Positional[Path], arg(metavar="EARLIER_DIR")]
    """The same of the earlier scan."""
    days: Annotated[float | None, arg(metavar="DAYS")] = None
    """The days between them, for the doubling time."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write it as JSON, too."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a run's best checkpoint: safetensors, ONNX and a manifest, as the next version in a registry.

    Example: trivium export runs/first --registry models
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run's directory."""
    registry: Path = Path("models")
    """A directory in Triton's repository layout; made where it is missing."""
    programs: Annotated[str, arg(metavar="NAME[,NAME]")] = "onnx"
    """What to compile the network to, with commas between: onnx, openvino, torchscript, aotinductor."""
    calibrate: Annotated[tuple[Path, ...], arg(metavar="FILE")] = ()
    """Files of the domain: on what the network sees of them programs are compared with torch; else on the samples."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """List what the networks compute with on this machine and why; make programs of weights that are there already.

    What is made goes into the user's cache folder, and the fastest is measured anew.

    Example: trivium programs medical

    Example: trivium programs --make onnx,openvino
    """

    app: Annotated[Positional[str], arg(metavar="[APP]")] = ""
    """The application; all of them where none is named."""
    make: Annotated[str, arg(metavar="NAME[,NAME]")] = ""
    """The programs to make, with commas between: onnx, openvino, torchscript, aotinductor."""
    artifact: Folder = None
    """An artifact's directory; those that ship with the application by default."""
    device: Device = None
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantise an artifact's network to INT8 and compare the domain's score before and after; refuses a loss over 1 %.

    The program goes into the user's cache. Detectors take it where it is the fastest; finance's forecaster and the
    nodules' second stage compute in it only where --program names it. Calibrated on the files named with --calibrate,
    by default on what --data has to learn from; scored on what --data has to validate on, together with what the
    artifact is served with. --data is by default the recipe's own.

    Example: trivium quantize apps/driving/weights/pointpillars/4 --cases 64
    """

    artifact: Annotated[Positional[Path], arg(metavar="ARTIFACT")]
    """The artifact's directory."""
    int8: Literal["static", "dynamic"] = "static"
    """static: weights and activations, by NNCF for OpenVINO; dynamic: weights, by ONNX Runtime, which is what networks
    with recurrent layers take, as finance's forecaster is."""
    calibrate: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")] = ()
    """Files of the domain to calibrate on."""
    data: DataSet = None
    """The data set to calibrate and score on; `trivium models APP` lists them."""
    cases: Annotated[int | None, arg(metavar="N")] = None
    """Score on at most this many cases."""
    force: bool = False
    """Keep the program however much is lost."""
    into_artifact: bool = False
    """Write the program into the artifact as well, whose manifest then names it."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Print an application's headline table: published claim, peer and ours.

    Example: trivium reproduce finance --quick
    """

    app: AppName
    """The application."""
    quick: bool = False
    """A smaller run of minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """List, fetch or verify the public data sets that the applications know; remove what was made for trainings.

    Example: trivium data list

    Example: trivium data clear
    """

    action: Positional[Literal["list", "fetch", "verify", "clear"]]
    """What to do. clear removes the samples that trainings made in the user's cache: not while one runs."""
    names: Positional[tuple[str, ...]] = ()
    """Names of data sets; all of them where none is named (list and verify)."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Print the switches of a cluster and the order of hosts whose rings stay inside switches.

    Reads Slurm's topology.conf, the JSON of `kubectl get nodes -o json`, NCCL's topology XML, a CSV of latencies.

    Example: trivium topology /etc/slurm/topology.conf --hosts "node[1-12]"
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """What tells the switches."""
    hosts: Annotated[str | None, arg(metavar="HOSTS")] = None
    """The hosts of the job, as Slurm writes lists; all of the file by default."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict a training step on a cluster: its time, its share of communication, memory, and the best way.

    Example: trivium plan --model resnet50 --nodes 256 --gpus 8 --intra nvlink4 --inter ib-hdr

    Example: trivium plan --validate
    """

    model: Annotated[str, arg(metavar="NAME|FILE")] = "bert-base"
    """resnet50, bert-base, bert-large, or a safetensors file (give --compute-ms with it)."""
    nodes: Annotated[int, arg(metavar="N")] = 256
    """Nodes of the cluster."""
    gpus: Annotated[int, arg(metavar="N")] = 8
    """GPUs on each."""
    intra: Annotated[str, arg(metavar="LINK")] = "nvlink4"
    """The link between GPUs of a node: nvlink3, nvlink4, pcie4, pcie5, or FILE:intra of a calibration."""
    inter: Annotated[str, arg(metavar="LINK")] = "ib-hdr"
    """A network port: ib-edr, ib-hdr, ib-ndr, ethernet-1g to ethernet-100g, or FILE:inter of a calibration."""
    ports: Annotated[int | None, arg(metavar="N")] = None
    """Network ports of a node; by default one for each GPU."""
    device: Annotated[str, arg(metavar="NAME")] = "h100"
    """v100, a100 or h100."""
    batch: Annotated[int, arg(metavar="N")] = 64
    """Samples a GPU and step."""
    compute_ms: Annotated[float | None, arg(metavar="MS")] = None
    """A measured step without communication, in place of the device's rate."""
    memory_gb: Annotated[float | None, arg(metavar="GB")] = None
    """A GPU's memory: what does not fit comes last."""
    oversubscription: Annotated[float, arg(metavar="X")] = 1.0
    """How many times what nodes can send exceeds what the switches above carry."""
    busy: Annotated[float, arg(metavar="X")] = 0.0
    """The fraction of the links that others' traffic takes."""
    jitter: Annotated[float, arg(metavar="X")] = 0.0
    """The standard deviation of a process's step over its mean: everybody waits for the slowest."""
    interleaved: bool = False
    """Ranks are dealt to nodes in turns."""
    powersgd_rank: Annotated[int, arg(metavar="N")] = 4
    """The rank of PowerSGD's gradients."""
    scenario: bool = False
    """Print the case in which 256 nodes go from 28 % to 12 % communication, and what carries it."""
    calibrate: Annotated[Path | None, arg(metavar="FILE")] = None
    """Fit the links to a sweep between the hosts of a torchrun job, or without one on a shaped network of this machine
    (root, Linux), and write them."""
    validate: bool = False
    """Compare predictions with measurements on 2 to 8 processes on that network."""
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where to draw predictions over measurements."""
    mbit_s: Annotated[float, arg(metavar="MBIT")] = 100.0
    """The rate between hosts of that network."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at this machine: versions, devices, applications, weights and data, with a remedy for each fault.

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
