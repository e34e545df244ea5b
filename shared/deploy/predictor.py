"""What every interface (command line, JSON route, form, Python) calls: a predictor of typed values and a codec."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shared.deploy.reading_ahead import read_ahead

if TYPE_CHECKING:
    from shared.deploy.programs.program import Program

Input = TypeVar("Input")
Input_contra = TypeVar("Input_contra", contravariant=True)
Output_co = TypeVar("Output_co", covariant=True)
Output_contra = TypeVar("Output_contra", contravariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Files on local disk, as a person or a program handed them in, and options as text.

    ``files`` holds what was named: one file, several, or one directory. Uploaded files keep their names.
    ``seconds`` is how long the asker waits, so that what takes longer can be refused at once; None where nobody does.
    """

    files: tuple[Path, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Later:
    """Files of a response that are made when somebody asks for them, by the codec's ``make``.

    ``files`` says for each, ``picture.png`` too, what it is made from: names in ``sources``, or of files that the
    response has. A server keeps a source until everything is made from it, those in ``lasting`` as long as the case:
    the application's own routes make more from them.

    ``inputs`` makes what was analysed, whole and under names of its own, for ``trivium reviews``. It is called only
    where a server keeps inputs (``TRIVIUM_KEEP_INPUTS``), which then stay as long as the case. It may hold nothing that
    tells of a person and that the other files do not tell.
    """

    files: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, bytes] = field(default_factory=dict)
    lasting: tuple[str, ...] = ()
    inputs: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What comes out, the same through every interface.

    ``result`` is the content of ``result.json`` in JSON types; it is deterministic and holds no times or paths, but for
    what ``with_programs`` adds: of the milliseconds that were measured once.
    ``picture`` is a PNG that a person can look at. ``files`` maps names (no folders) to content: outputs in the
    field's formats, and what the form's viewer reads. ``model`` is the name of the shipped model that answered, where
    an application has several. What costs time and may not be wanted, the picture too, is left for ``later``.
    """

    result: Mapping[str, object]
    picture: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    model: str | None = None
    later: Later | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded(Generic[Input]):
    """A request as the predictor takes it: one or several inputs, the options for all of them.

    ``options`` are an application's frozen dataclass; inputs of requests with equal options may be predicted together.
    ``context`` is what ``encode`` needs besides: the file's name, remarks of the reader, known truth.
    """

    inputs: tuple[Input, ...]
    options: Hashable
    context: Any = None


class Predictor(Protocol[Input_contra, Output_co]):
    """Pure, and usable from a notebook: typed arrays in, typed findings out. The server owns queue, batch and clock.

    ``predict`` returns one output for each input, in their order; a batch gives what its members would give alone.
    ``options=None`` are the application's defaults. A predictor whose networks are programs has them in ``programs``,
    by the model's name: see ``programs_of``; where a second one takes part in the answers of a model, ``second_stages``
    has its name by that of the model. One that uses other artifacts than it was given has their manifests in
    ``manifests``, the default first; the type of its inputs is in ``takes`` where ``trivium`` is to refuse others. One
    that is faster on the inputs of several requests together has an attribute ``batching`` that is True; others are
    given one request at a time.
    """

    def predict(self, batch: Sequence[Input_contra], options: Any = None) -> Sequence[Output_co]: ...


class Codec(Protocol[Input, Output_contra]):
    """From files and options to a predictor's inputs, and from its outputs to a response. ``apps/<app>/service.py``.

    ``decode`` raises ``InvalidInputError`` for input that cannot be used. One whose responses leave files for later has
    ``make(name: str, sources: Mapping[str, bytes]) -> bytes`` besides, which makes one of them. One that needs not all
    models for a request has ``likely_models(request: Request) -> Sequence[str]``, which guesses by the options and the
    files' names which it needs; it is called in another thread.
    """

    def decode(self, request: Request) -> Decoded[Input]: ...

    def encode(self, decoded: Decoded[Input], outputs: Sequence[Output_contra]) -> Response: ...


def programs_of(predictor: object) -> dict[str, Program]:
    """The programs that a predictor computes with, by the model's name; empty where it has none."""
    return dict(getattr(predictor, "programs", {}))


def second_stages_of(predictor: object) -> dict[str, str]:
    """By a model's name that of the one which corrects what it finds; empty where there is none."""
    return dict(getattr(predictor, "second_stages", {}))


def described_programs(predictor: object) -> dict[str, str]:
    """By the model's name: the program that it computes with, why, and which others could not be used."""
    return {
        name: "; ".join((f"{program.name}: {program.reason}", *program.remarks))
        for name, program in programs_of(predictor).items()
    }


def with_programs(response: Response, predictor: object) -> Response:
    """The response with what the predictor computes with in its result, by model: ``versions`` of the artifacts,
    ``programs`` and ``program_reasons``.

    One that no input has needed so far has no name, and where one model answered it is named alone, or with its second
    stage: so the same input gives the same result, whatever was loaded before.
    """
    answered = (response.model, second_stages_of(predictor).get(response.model or ""))
    used = {
        name: program
        for name, program in programs_of(predictor).items()
        if program.name and (response.model is None or name in answered)
    }
    if not used:
        return response
    versions = {name: program.version for name, program in used.items() if program.version is not None}
    said = {
        **({"versions": versions} if versions else {}),
        "programs": {name: program.name for name, program in used.items()},
        "program_reasons": {name: program.reason for name, program in used.items()},
    }
    return replace(response, result={**response.result, **said})


def answer(predictor: Predictor[Any, Any], request: Request, codec: Codec[Any, Any]) -> Response:
    """One request through a predictor, without a server; nothing is left for later.

    Models that are to be loaded on use are loaded while the input is read. One that is refused waits for none of them.
    """
    if waiting := {name: one for name, one in programs_of(predictor).items() if one.reader is not None}:
        likely = getattr(codec, "likely_models", lambda _: waiting)
        read_ahead(lambda: [waiting[name] for name in likely(request) if name in waiting])
    decoded = codec.decode(request)
    response = codec.encode(decoded, predictor.predict(decoded.inputs, decoded.options))
    return with_programs(with_all_files(response, codec), predictor)


PICTURE = "picture.png"


def with_all_files(response: Response, codec: Any) -> Response:
    """The response with the files made that it left for later."""
    if response.later is None:
        return response
    there = {**response.files, **response.later.sources}
    made = {
        name: codec.make(name, {source: there[source] for source in sources})
        for name, sources in response.later.files.items()
    }
    picture = made.pop(PICTURE, response.picture)
    return replace(response, picture=picture, files={**response.files, **made}, later=None)
