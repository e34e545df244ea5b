"""The interface between the runtime and its applications, and how applications are found."""

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

    ``inputs`` are example tensors by name, in the order of ``module.forward``. Axis 0 of each tensor is the batch,
    unless ``dynamic`` lists the dynamic axes of an input or output ({tensor name: {axis: name}}); an axis named
    ``16*x`` is a multiple of 16. ``logits`` are the outputs that hold logits of scores, one score per channel (axis 1).
    When a quantised network is compared with the original, the other outputs of a cell are weighted by its score.
    ``has_onnx`` is False if the network has an operation that cannot be exported to ONNX: programs that need ONNX are
    then not tried. ``traceable`` is True if no branch or loop of ``forward`` depends on the values or sizes of its
    inputs: one call is then traced to export it, which takes seconds where torch.export takes minutes.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    logits: Sequence[str] = ()
    has_onnx: bool = True
    traceable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A case that the forms offer.

    ``files`` takes a folder and returns the paths to predict on; it creates generated files in that folder.
    ``columns`` are the names of its columns, if it is a table.
    """

    name: str
    title: str
    synthetic: bool
    source: str
    files: Callable[[Path], Sequence[Path]]
    columns: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table to print, such as that of ``reproduce``: claim, peer and ours. ``notes`` say what the figures rest on.

    ``further`` are tables with other columns, which are printed below this one.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    further: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainScore:
    """A score by the protocol of the domain.

    ``count`` says how many items were scored, such as "88 scans"; ``data`` describes the data set.
    """

    name: str
    value: float
    count: str
    data: str
    higher_is_better: bool = True

    def loss(self, other: DomainScore) -> float:
        """By how much ``other`` is worse, relative to this score; negative if it is better."""
        worse = self.value - other.value if self.higher_is_better else other.value - self.value
        return worse / max(abs(self.value), 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Importer:
    """Converts a public checkpoint into a model of the application: weights only, matched by name.

    ``arguments`` are the names of the positional arguments that follow the importer's name on the command line, such
    as ``CHECKPOINT``; optional ones are in brackets. ``options`` maps the names that ``--option`` takes to their
    values. ``load`` takes the arguments, then the data set if ``--data`` names one, then the given options as keyword
    arguments, and returns the model.
    ``recipe`` rebuilds the recipe of an imported model from the settings ``model`` and ``input`` in its artifact, so
    that it can be calibrated; None if they are the settings of a named recipe. ``fine_tuned`` takes a recipe that
    starts from an imported model, and those settings, and returns the recipe with that model's network and input; None
    if the network is that of the recipe.
    """

    summary: str
    arguments: tuple[str, ...]
    load: Callable[..., Imported]
    options: Mapping[str, str] = field(default_factory=dict)
    recipe: Callable[[Mapping[str, Any]], Recipe] | None = None
    fine_tuned: Callable[[Recipe, Mapping[str, Any]], Recipe] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an importer returns: a recipe whose ``model`` and ``input`` describe the network, and the network itself.

    ``source`` says where the weights come from, in JSON types: file name, SHA-256, library, what was compared.
    ``calibration`` goes into the manifest, as it does for an export.
    """

    recipe: Recipe
    network: nn.Module
    source: Mapping[str, Any]
    calibration: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schemas:
    """Typed dictionaries for a request's options and for ``result.json``; the OpenAPI document is generated from them.

    ``missed`` is the type of a finding that a reviewer adds as missed; None if reviews have only verdicts and a note.
    """

    options: type
    result: type
    missed: type | None = None


class Gateway(Protocol):
    """Forwards cases from a network of the domain (such as DICOM) to a running server, and returns its answers.

    A dataclass: its fields are the settings of ``trivium gateway APP``, and its docstring is their help text.
    """

    def run(self, jobs: JobClient, folder: Path, stop: threading.Event) -> None:
        """Runs until ``stop`` is set. Pending work is stored in ``folder``, so a restarted gateway continues it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """One vertical. Its functions are imported when they are first called (``on_use``), so finding an app is cheap.

    Fields with a default are optional. Arguments of functions are in parentheses.

    notice       what it must not be used for
    root         the app's folder: ``pages/`` (form.html, form.js), ``weights/``, ``datasets/registry.json``
    models       names of the models that it predicts with; the first one serves by default
    partners     those of ``models`` that only assist another model, such as a second stage: maps the name to a function
                 (partner artifact, artifact of the other model) that says whether the two belong together
    recipes      named recipes: functions that return one
    dense        returns the dense network of a model, for export (recipe, model); raises NotImplementedError if the
                 model has none
    calibrate    returns the calibration, in JSON types, that turns the outputs of the trained network into decisions
                 (recipe, model)
    calibrate_second  the same for a network that is served with an artifact, calibrated for both together (recipe,
                 model, artifact)
    predictor    returns a predictor (artifacts, device); there may be artifacts for only some of ``models``
    codec        returns the codec that decodes requests for a predictor and encodes its outputs (predictor)
    read_options reads the options of a request as the codec does, but without its files, and refuses unknown and
                 invalid ones, so that a job is refused before it is queued (options)
    schemas      returns the types of options, result.json and missed findings, for clients generated from the OpenAPI
                 document
    data_sets    config classes of the data sets for training and evaluation, by the name that ``--data`` takes
    importers    converters of public checkpoints into artifacts, by the name that ``trivium import`` takes
    fine_tuned   returns a recipe that starts from a network trained here, with what it must keep of that network
                 (recipe, recorded settings of the network)
    evaluate     scores a predictor on a data set by the protocol of the field (predictor, data set, maximum number of
                 cases or None)
    score        the few scores of that protocol by which two programs of one network are compared; same arguments
    training_cases  yields predictor inputs, evenly chosen from the training part of a data set, on which a network is
                 quantised (data set, the recipe's input, maximum number); if it is None or returns None, the samples
                 are used
    served_with  returns the artifacts that are always served with an artifact, such as a second stage, and are scored
                 with it (artifact, registries to search first)
    score_files  scores result files without a model, such as a submission against annotations (paths by option name)
    result_table the rows of a ``result.json`` that ``trivium predict`` prints
    case_label   a short text for a ``result.json`` in a list of cases, shown beside the time and the inputs
    models_table the public models that it runs or refuses, and what was tested: what ``trivium models`` prints
    samples      the cases that the form offers; only those whose files are available
    router       routes of the domain under /api/<name>, besides those that every app has. TRIVIUM_MAX_JSON_BYTES limits
                 their JSON bodies; a route that takes a form must limit it itself
    predict_folder  predicts on the cases in a folder or in a file of many cases, one by one, and returns how many it
                 skipped (predictor, folder, output folder, options, function that is called with the progress)
    reviewing    how its cases are reviewed; None for ``shared.review.IN_GENERAL``
    compare      compares two output folders of ``trivium predict`` for the same subject at two times, and returns the
                 content in JSON types and its table (newer folder, older folder, days between them or None)
    gateway      the class of its gateway: see ``Gateway``
    kinds        file name suffixes. If given, file names may contain names of persons, and a case stores the suffix
                 instead
    job_bytes    the form submits larger uploads as jobs, because they take longer than a user waits
    input_needed for the form: what a file must contain for the network of an artifact; returns None for a network that
                 takes any file of the application
    sample_fault why the network of an artifact cannot read a sample, which is then not offered; None if it can
    sample_jobs  whether the samples are that large, so that the form submits them as jobs and shows the stage
    reproduce    returns the headline table; with ``quick`` it takes minutes on two cores
    """

    name: str
    title: str
    root: Path
    models: tuple[str, ...]
    recipes: Callable[[], Mapping[str, Callable[[], Recipe]]]
    dense: Callable[[Recipe, nn.Module], DenseNetwork]
    predictor: Callable[[Sequence[Artifact], str], Predictor[Any, Any]]
    codec: Callable[[Predictor[Any, Any]], Codec[Any, Any]]
    summary: str = ""
    notice: str = ""
    samples: Callable[[], Sequence[Sample]] = tuple
    reproduce: Callable[[bool], Table] | None = None
    read_options: Callable[[Mapping[str, str]], object] | None = None
    schemas: Callable[[], Schemas] | None = None
    partners: Mapping[str, Callable[[Artifact, Artifact], bool]] = field(default_factory=dict)
    job_bytes: int = 20_000_000
    input_needed: Callable[[Artifact], str | None] | None = None
    sample_fault: Callable[[Artifact, Sample], str | None] | None = None
    sample_jobs: bool = False
    data_sets: Callable[[], Mapping[str, type[DataConfig]]] = dict
    importers: Callable[[], Mapping[str, Importer]] = dict
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
    """A function that imports and calls ``place``, written as ``package.module:function``, only when it is called."""
    return partial(_import_and_call, place)


def _import_and_call(place: str, *arguments: Any) -> Any:
    return resolve_name(place)(*arguments)


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that ``function`` calls with further arguments, imported if it is one of ``on_use``; else itself."""
    while isinstance(function, partial):
        function = resolve_name(function.args[0]) if function.func is _import_and_call else function.func
    return function


@cache
def installed() -> dict[str, App]:
    """The installed applications by name. One that cannot be imported is skipped, with a warning in the log."""
    apps: dict[str, App] = {}
    for entry_point in entry_points(group=GROUP):
        try:
            apps[entry_point.name] = entry_point.load()
        except Exception as error:
            log.warning("skipping the application %s: %s (%s)", entry_point.name, error, entry_point.value)
    return apps


def find(name: str) -> App:
    """The application with this name. Raises ``InvalidInputError`` if it is not installed."""
    apps = installed()
    if name not in apps:
        raise InvalidInputError(f"there is no application {name!r}; installed: {', '.join(apps) or 'none'}")
    return apps[name]
