"""The predictor and codec that every interface (command line, JSON routes, web form, Python) calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shared.deploy.preloading import preload

if TYPE_CHECKING:
    from shared.deploy.programs.program import Program

Input = TypeVar("Input")
Input_contra = TypeVar("Input_contra", contravariant=True)
Output_co = TypeVar("Output_co", covariant=True)
Output_contra = TypeVar("Output_contra", contravariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Input files on local disk, and options as text.

    ``files`` holds one file, several files, or one directory. Uploaded files keep their names. ``seconds`` is how long
    the client waits, so that a request that takes longer can be refused at once; None if no client waits.
    """

    files: tuple[Path, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeferredFiles:
    """Files of a response that the codec's ``make`` makes on request.

    ``files`` maps each file name, including ``picture.png``, to what it is made from: names in ``sources`` or of files
    of the response. A server keeps a source until all files have been made from it, and those in ``lasting`` as long as
    the case, because the application's own routes make more files from them.

    ``inputs`` has functions that return the complete analysed input, under new names, for ``trivium reviews``. They are
    called only if the server keeps inputs (``TRIVIUM_KEEP_INPUTS``), and the results are then kept as long as the case.
    They must not reveal personal data that the other files do not reveal.
    """

    files: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, bytes] = field(default_factory=dict)
    lasting: tuple[str, ...] = ()
    inputs: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """The outputs for a request, the same through every interface.

    ``result`` is the content of ``result.json`` in JSON types. It is deterministic and has no times or paths, except
    for the latencies, measured once, in what ``add_programs`` adds. ``picture`` is a PNG for people to look at.
    ``files`` maps names (without folders) to contents: outputs in the field's formats, and files for the form's viewer.
    ``models`` are the names of those that answered, if the application chooses a model for each input. Files that take
    time and may not be needed, including the picture, can be left for ``later``.
    """

    result: Mapping[str, object]
    picture: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    later: DeferredFiles | None = None

    @property
    def model(self) -> str | None:
        """The only model that answered; None if there are several, or if they are not named."""
        return self.models[0] if len(self.models) == 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded(Generic[Input]):
    """A decoded request: one or several inputs for the predictor, and the options for all of them.

    ``options`` is the application's frozen dataclass; inputs of requests with equal options may be predicted in one
    batch. ``context`` is what else ``encode`` needs: the file name, remarks of the reader, ground truth.
    """

    inputs: tuple[Input, ...]
    options: Hashable
    context: Any = None


class Predictor(Protocol[Input_contra, Output_co]):
    """Maps typed arrays to typed findings. Pure and usable from a notebook: the server owns queue, batch and clock.

    ``predict`` returns one output for each input, in order; batching does not change the outputs. ``options=None``
    means the application's defaults. Optional attributes:

    ``programs``       the programs of its networks by model name; see ``programs_of``
    ``second_stages``  by the name of a model, the name of the second-stage model that corrects its findings
    ``manifests``      the manifests of its models, the default first, if it uses other artifacts than it was given
    ``takes``          the type of its inputs, if ``trivium`` should refuse inputs of other types
    ``batching``       True if it is faster on the inputs of several requests together; otherwise it gets one request
                       at a time
    """

    def predict(self, batch: Sequence[Input_contra], options: Any = None) -> Sequence[Output_co]: ...


class Codec(Protocol[Input, Output_contra]):
    """Decodes files and options to a predictor's inputs, and encodes its outputs as a response (``service.py``).

    ``decode`` raises ``InvalidInputError`` for input that cannot be used. A codec whose responses leave files for later
    also has ``make(name: str, sources: Mapping[str, bytes]) -> bytes``, which makes one of them. A codec that does not
    need all models for a request has ``likely_models(request: Request) -> Sequence[str]``, which guesses the needed
    models from the options and the file names; it is called in another thread.
    """

    def decode(self, request: Request) -> Decoded[Input]: ...

    def encode(self, decoded: Decoded[Input], outputs: Sequence[Output_contra]) -> Response: ...


def programs_of(predictor: object) -> dict[str, Program]:
    """The programs of a predictor's networks by model name; empty if it has none."""
    return dict(getattr(predictor, "programs", {}))


def describe_programs(predictor: object) -> dict[str, str]:
    """By model name: the program that it uses, the reason, and remarks on programs that could not be used."""
    return {
        name: "; ".join((f"{program.name}: {program.reason}", *program.remarks))
        for name, program in programs_of(predictor).items()
    }


def add_programs(response: Response, predictor: object) -> Response:
    """Adds to the result, by model, the ``versions`` of the artifacts, the ``programs`` and the ``program_reasons``.

    If ``response`` names the models that answered, only these and their second stages are listed, so that the same
    input gives the same result, whichever models were loaded before. Else all programs that were needed so far are.
    """
    programs, stages = programs_of(predictor), getattr(predictor, "second_stages", {})
    answering = {*response.models, *(stages[name] for name in response.models if name in stages)}
    used = {
        name: program
        for name, program in programs.items()
        if program.name and (not response.models or name in answering)
    }
    versions = {name: program.version for name, program in used.items() if program.version is not None}
    # A model that its library's own modules compute has no program, but a version like any other.
    manifests = getattr(predictor, "manifests", ())
    versions |= {
        each.name: each.version for each in manifests if each.name in response.models and each.name not in programs
    }
    program_facts: dict[str, Any] = {"versions": versions} if versions else {}
    if used:
        program_facts["programs"] = {name: program.name for name, program in used.items()}
        program_facts["program_reasons"] = {name: program.reason for name, program in used.items()}
    return replace(response, result={**response.result, **program_facts})


def answer(predictor: Predictor[Any, Any], request: Request, codec: Codec[Any, Any]) -> Response:
    """Answers one request with a predictor, without a server; all files are made at once.

    Models that are loaded on first use are loaded while the input is read. A refused request does not wait for them.
    """
    if unloaded := {name: program for name, program in programs_of(predictor).items() if program.reader is not None}:
        likely = getattr(codec, "likely_models", lambda _: unloaded)
        preload(lambda: [unloaded[name] for name in likely(request) if name in unloaded])
    decoded = codec.decode(request)
    response = codec.encode(decoded, predictor.predict(decoded.inputs, decoded.options))
    return add_programs(make_all_files(response, codec), predictor)


PICTURE = "picture.png"


def make_all_files(response: Response, codec: Any) -> Response:
    """Returns the response with the files made that it had left for later."""
    if response.later is None:
        return response
    contents = {**response.files, **response.later.sources}
    made_files = {
        name: codec.make(name, {source: contents[source] for source in sources})
        for name, sources in response.later.files.items()
    }
    picture = made_files.pop(PICTURE, response.picture)
    return replace(response, picture=picture, files={**response.files, **made_files}, later=None)
