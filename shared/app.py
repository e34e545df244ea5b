"""The seam between the runtime and its applications, and how applications are found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import threading

    from fastapi import APIRouter
    from torch import Tensor, nn

    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Codec, Predictor
    from shared.job_client import JobClient
    from shared.recipe import DataConfig, Recipe
    from shared.review import Reviewing
    from shared.serve.service import Service

GROUP = "trivium.apps"
log = logging.getLogger("trivium")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseNetwork:
    """The part of a model that is exported: tensors in, tensors out.

    ``inputs`` are example tensors by name, in the order of ``module.forward``; axis 0 of each is the batch, unless
    ``dynamic`` names the dynamic axes of an input or output otherwise ({tensor name: {axis: name}}); an axis called
    ``16*x`` is a multiple of 16. ``logits`` are those outputs that are logits of scores, one a channel (axis 1): what
    else is said of a cell counts as much as its score, so that a quantised network is compared where it matters.
    ``has_onnx`` is False for one with an operation of which no ONNX is made: programs that need it are not tried.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    logits: Sequence[str] = ()
    has_onnx: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A case that the forms offer. ``files`` returns what to predict on, making it in ``folder`` where it must."""

    name: str
    title: str
    synthetic: bool
    source: str
    files: Callable[[Path], Sequence[Path]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What ``reproduce`` prints: rows of claim, peer and ours. ``notes`` say what the figures rest on.

    ``further`` are tables of other columns, which are printed below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    further: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainScore:
    """A score by the domain's own protocol, on so many of what ``count`` says; ``data`` is what it was taken of."""

    name: str
    value: float
    count: str
    data: str
    higher_is_better: bool = True

    def loss(self, other: DomainScore) -> float:
        """By how much ``other`` is worse, in parts of this one; below 0 where it is better."""
        worse = self.value - other.value if self.higher_is_better else other.value - self.value
        return worse / max(abs(self.value), 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Importer:
    """Turns a public checkpoint into a model of the application: weights only, by name.

    ``arguments`` are what the command line calls the words after the importer's name, such as ``CHECKPOINT``, in
    brackets what may be left out; ``load`` takes them, the data set that is named with ``--data`` where one is, and by
    keyword the ``options`` that are given with ``--option``, and returns the model. ``options`` are these by name, with
    the values that they take.
    ``recipe`` reads the recipe of such a model back from the settings ``model`` and ``input`` in its artifact, so that
    it can be calibrated; None where they are the settings of a named recipe. ``fine_tuned`` gives a recipe that starts
    from such a model its network and its input; None where the network is that of the recipe.
    """

    summary: str
    arguments: tuple[str, ...]
    load: Callable[..., Imported]
    options: Mapping[str, str] = field(default_factory=dict)
    recipe: Callable[[Mapping[str, Any]], Recipe] | None = None
    fine_tuned: Callable[[Recipe, Mapping[str, Any]], Recipe] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an importer made: a recipe whose ``model`` and ``input`` describe the network, and the network itself.

    ``source`` says in JSON types where the weights come from (file name, SHA-256, library, what was compared);
    ``calibration`` goes into the manifest, as that of an export does.
    """

    recipe: Recipe
    network: nn.Module
    source: Mapping[str, Any]
    calibration: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schemas:
    """Typed dictionaries of a request's options and of ``result.json``, which the HTTP interface is described by.

    ``missed`` is that of a finding that a reviewer says was missed; None where reviews are verdicts and a note alone.
    """

    options: type
    result: type
    missed: type | None = None


class Gateway(Protocol):
    """What brings cases from the domain's own network to a running server, and its answers back.

    A dataclass: its fields are settings of ``trivium gateway APP``, and its docstring is their help.
    """

    def run(self, jobs: JobClient, folder: Path, stop: threading.Event) -> None:
        """Runs until ``stop`` is set; what waits lies in ``folder``, so that it goes on when it is started again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """One vertical. Its functions are imported when they are called (``on_use``), so that finding an app costs nothing.

    notice       what it must not be used for
    root         the app's folder: ``pages/`` (form.html, form.js), ``weights/``, ``datasets/registry.json``
    models       the names of the models that it predicts with, the one that serves by default first
    partners     those of ``models`` that take part in the answers of another alone, such as a second stage: by name,
                 whether one belongs to an artifact of another model (partner, other)
    recipes      named recipes: functions that return one
    dense        the dense network of a model that a recipe built, for export; NotImplementedError where it has none
    calibrate    what turns the trained network's outputs into decisions (JSON types), or None; ``calibrate_second`` the
                 same of a network that an artifact is served with, for both together
    predictor    a predictor on a device: with one artifact for each of ``models``, or with some of them
    codec        what decodes requests for a predictor and encodes its outputs
    read_options what a request's options say, as the codec reads them, without its files; refuses unknown and bad ones.
                 So that a job is refused before it waits. Or None
    schemas      what describes options, result.json and missed findings, for clients made from the OpenAPI document;
                 or None
    data_sets    the data sets that it is trained and scored on, by the name that ``--data`` takes: config classes
    importers    what turns public checkpoints into artifacts, by the name that ``trivium import`` takes
    fine_tuned   gives a recipe that starts from a network that was trained here what it must keep of that: recipe, the
                 settings that were recorded of the network. Or None
    evaluate     scores a predictor on a data set by the field's protocol: predictor, data set, most cases or None
    score        the protocol's few numbers by which two programs of one network are compared; as ``evaluate``
    training_cases  inputs of a predictor from what a data set has to learn from, evenly chosen: data set, the recipe's
                 input, at most how many. What a network is quantised on; None, or where it gives None, for the samples
    served_with  the artifacts that one is always served with, such as a second stage: they are scored together. After
                 the artifact come registries in which they are looked for first
    score_files  scores files of results without a model (a submission beside annotations), by name: takes paths by
                 option name
    result_table the rows that a person wants of a ``result.json``: what ``trivium predict`` prints
    case_label   what stands for a ``result.json`` in a list of cases, beside the time and size of its inputs; or None
    models_table the public models that it runs or refuses, with what was tested: what ``trivium models`` prints
    samples      the cases that the form offers; only those whose files are at hand
    router       routes of the domain under /api/<name>, besides those that every app has; or None. The JSON that they
                 take is bounded by TRIVIUM_MAX_JSON_BYTES; a form of theirs is theirs to bound
    predict_folder  goes through a folder, or a file of many cases, one by one: predictor, folder, where results go,
                 options, who is told how far it is; returns how many cases were left out. Or None
    reviewing    how its cases are reviewed; None for what ``shared.review.IN_GENERAL`` says
    compare      two folders that ``trivium predict`` wrote, the newer first, on what is the same at two times, and the
                 days between them or None: content in JSON types, and its table. Or None
    gateway      the class of its gateway: see ``Gateway``. Or None
    kinds        endings of file names; where it is given, names may be those of persons, and a case keeps these instead
    job_bytes    files of more bytes are handed in as a job by the form: so large, they take longer than one waits
    input_needed what a file must hold for the network of an artifact, in words for the form, which then offers no
                 samples; None for one that takes any file of the application. Or None
    sample_jobs  whether samples are as large, so that the form hands them in as jobs and shows the stage
    reproduce    the headline table; ``quick`` is a matter of minutes on two cores. Or None
    """

    name: str
    title: str
    summary: str
    notice: str
    root: Path
    models: tuple[str, ...]
    recipes: Callable[[], Mapping[str, Callable[[], Recipe]]]
    dense: Callable[[Recipe, nn.Module], DenseNetwork]
    predictor: Callable[[Sequence[Artifact], str], Predictor[Any, Any]]
    codec: Callable[[Predictor[Any, Any]], Codec[Any, Any]]
    samples: Callable[[], Sequence[Sample]] = tuple
    reproduce: Callable[[bool], Table] | None = None
    read_options: Callable[[Mapping[str, str]], object] | None = None
    schemas: Callable[[], Schemas] | None = None
    partners: Mapping[str, Callable[[Artifact, Artifact], bool]] = field(default_factory=dict)
    job_bytes: int = 20_000_000
    input_needed: Callable[[Artifact], str | None] | None = None
    sample_jobs: bool = False
    data_sets: Callable[[], Mapping[str, type[DataConfig]]] | None = None
    importers: Callable[[], Mapping[str, Importer]] | None = None
    fine_tuned: Callable[[Any, Mapping[str, Any]], Recipe] | None = None
    evaluate: Callable[[Predictor[Any, Any], DataConfig, int | None], Table] | None = None
    score: Callable[[Predictor[Any, Any], DataConfig, int | None], Sequence[DomainScore]] | None = None
    training_cases: Callable[[DataConfig, Any, int], Iterator[Any] | None] | None = None
    served_with: Callable[..., Sequence[Artifact]] = lambda artifact, *registries: ()
    score_files: Callable[[Mapping[str, Path]], Table] | None = None
    result_table: Callable[[Mapping[str, Any]], Table] | None = None
    case_label: Callable[[Mapping[str, Any]], str] | None = None
    models_table: Callable[[], Table] | None = None
    calibrate: Callable[[Recipe, nn.Module], dict[str, Any]] | None = None
    calibrate_second: Callable[[Recipe, nn.Module, Artifact], dict[str, Any]] | None = None
    router: Callable[[Service], APIRouter] | None = None
    predict_folder: (
        Callable[[Predictor[Any, Any], Path, Path, Mapping[str, str], Callable[[str], object]], int] | None
    ) = None
    reviewing: Callable[[], Reviewing] | None = None
    compare: Callable[[Path, Path, float | None], tuple[Mapping[str, Any], Table]] | None = None
    gateway: Callable[[], type[Gateway]] | None = None
    kinds: tuple[str, ...] | None = None

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def data_registry(self) -> Path:
        return self.root / "datasets" / "registry.json"


def on_use(place: str) -> Callable[..., Any]:
    """What calls the function at ``place``, as in ``package.module:function``, and imports its module then."""
    return partial(_use, place)


def _use(place: str, *arguments: Any) -> Any:
    return resolve_name(place)(*arguments)


@cache
def installed() -> dict[str, App]:
    """The installed applications by name. One that cannot be imported is left out, and the log says why."""
    found: dict[str, App] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except Exception as error:
            log.warning("the application %s is left out: %s (%s)", point.name, error, point.value)
    return found


def find(name: str) -> App:
    """The application called ``name``; refuses one that is not installed."""
    apps = installed()
    if name not in apps:
        raise InvalidInputError(f"there is no application {name!r}; installed: {', '.join(apps) or 'none'}")
    return apps[name]
