"""What the command line can say of a server and its store: a dataclass a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

Device: TypeAlias = Annotated[Literal["cpu", "cuda"] | None, arg(metavar="cpu|cuda")]
ProgramName: TypeAlias = Annotated[str | None, arg(metavar="NAME")]
Folder: TypeAlias = Annotated[Path | None, arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve the applications: forms, JSON routes, the Open Inference Protocol and metrics.

    Example: trivium serve --port 8000

    Example: trivium serve --registry models
    """

    host: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """The address to listen on; TRIVIUM_HOST, or 127.0.0.1."""
    port: Annotated[int | None, arg(metavar="PORT")] = None
    """The port to listen on; TRIVIUM_PORT, or 8000."""
    grpc_port: Annotated[int | None, arg(metavar="PORT")] = None
    """Answer the Open Inference Protocol over gRPC on this port too; TRIVIUM_GRPC_PORT, or not at all."""
    tls_cert: Annotated[Path | None, arg(metavar="FILE")] = None
    """Answer over TLS with this certificate and those that lead to its authority, PEM; TRIVIUM_TLS_CERT."""
    tls_key: Annotated[Path | None, arg(metavar="FILE")] = None
    """Its private key, PEM; TRIVIUM_TLS_KEY."""
    registry: Folder = None
    """Your own artifacts (see export), served before those that ship under the same name; TRIVIUM_REGISTRY."""
    device: Device = None
    """Where to compute; TRIVIUM_DEVICE, or the GPU where there is one."""
    program: ProgramName = None
    """Compute with this program rather than the fastest; TRIVIUM_PROGRAM."""
    keep_inputs: bool = False
    """Keep what was analysed whole with its case, for `trivium reviews`; TRIVIUM_KEEP_INPUTS, or not."""
    demo: bool = False
    """Say in the terminal what to open."""


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Bring cases from the domain's own network to a running server, and its answers back, with nobody at hand.

    medical: CT series by DICOM C-STORE, reports back by C-STORE or DICOMweb; they name the patient as the images do.
    `trivium gateway medical -- --help` lists its settings. Where the server wants a key, TRIVIUM_KEY holds it. Where a
    proxy before it wants to know who asks, TRIVIUM_AUTHORIZATION holds what is sent as the header Authorization, as in
    "Bearer TOKEN"; the key then goes in X-Api-Key.

    Example: trivium gateway medical --server http://127.0.0.1:8000 --aet TRIVIUM --to PACS@pacs.hospital:104
    """

    app: Annotated[Positional[str], arg(metavar="APP")]
    """The application."""
    server: Annotated[str, arg(metavar="URL")] = "http://127.0.0.1:8000"
    """The server that answers."""
    spool: Annotated[Path, arg(metavar="DIR")] = Path("spool")
    """The folder of what waits: images of patients, for this account alone, deleted as soon as they are answered."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """Write a server's cases and jobs, with their files, to one file. The server may go on meanwhile.

    TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as they do for serve.

    Example: trivium backup cases.tar
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file to write, which must not exist."""


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Bring what backup wrote into an empty store, whose database may be another one.

    Example: TRIVIUM_STORE=new trivium restore cases.tar
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """What backup wrote."""


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Write a server's reviewed cases as training data, which train, evaluate and calibrate read.

    Of a case counts the newest review, and of several analyses of one input the one that was reviewed last. The server
    may go on meanwhile. TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as they do for serve.

    Example: trivium reviews medical --out reviewed

    Example: trivium reviews driving --store store --out reviewed --reviewer anna
    """

    app: Annotated[Positional[str], arg(metavar="APP")]
    """The application."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The folder to write, which must be new or empty."""
    store: Folder = None
    """The folder of the store; TRIVIUM_STORE, or store."""
    reviewer: Annotated[str | None, arg(metavar="NAME")] = None
    """Only the reviews of this reviewer; of each case the newest by default."""


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Delete a server's old cases with their files, and jobs that ended before. The server may go on meanwhile.

    Example: trivium purge --older-than 30d

    Example: trivium purge --app medical --older-than 12h
    """

    older_than: Annotated[str, arg(metavar="AGE")]
    """Days or hours, as 30d or 12h."""
    app: Annotated[str | None, arg(metavar="APP")] = None
    """Only cases of this application."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Add, list or revoke keys: who has one is answered by a server of this store with TRIVIUM_REQUIRE_KEY=true.

    add prints the key, which is kept nowhere; programs send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, a
    browser asks for it as a password. TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as they do for serve. The
    server may go on meanwhile.

    Example: trivium keys add pacs-gateway

    Example: trivium keys add anna --role operator

    Example: trivium keys add desk-1 --group desk

    Example: trivium keys list

    Example: trivium keys revoke anna
    """

    action: Positional[Literal["add", "list", "revoke"]]
    """What to do. A key that is revoked lets nobody in after two seconds."""
    name: Annotated[Positional[str], arg(metavar="[NAME]")] = ""
    """Whose key it is (add and revoke); the server's log names it."""
    role: Literal["user", "operator"] = "user"
    """A user predicts, reads cases and deletes them; an operator also changes models and reads /admin and /metrics."""
    group: Annotated[str | None, arg(metavar="GROUP")] = None
    """It sees only the cases and jobs that keys of this group hand in; those of all unless it is given (add)."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """List the versions of a running server's models and their stages, or change which one is live.

    The new version is loaded beside the old one, which answers what it was given; no request is dropped. Where the
    server wants a key, TRIVIUM_KEY holds it.

    Example: trivium versions

    Example: trivium versions pointpillars --promote 2

    Example: trivium versions pointpillars --roll-back

    Example: trivium versions pointpillars --retire 1
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]")] = ""
    """The model; all of them where none is named."""
    promote: Annotated[int | None, arg(metavar="N")] = None
    """Make this version the live one."""
    roll_back: bool = False
    """Make the version live again that was before the last promotion."""
    retire: Annotated[int | None, arg(metavar="N")] = None
    """End this version's workers, and never roll back to it."""
    reload: bool = False
    """Read the registry again, and start the model's workers anew."""
    server: Annotated[str, arg(metavar="URL")] = "http://127.0.0.1:8000"
    """The server."""
