"""The arguments of the commands for a server and its store: one dataclass for each command."""

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
    """Serve the applications: web forms, JSON routes, the Open Inference Protocol and metrics.

    Example: trivium serve --port 8000

    Example: trivium serve --registry models
    """

    host: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """The address to listen on; by default TRIVIUM_HOST, or else 127.0.0.1."""
    port: Annotated[int | None, arg(metavar="PORT")] = None
    """The port to listen on; by default TRIVIUM_PORT, or else 8000."""
    grpc_port: Annotated[int | None, arg(metavar="PORT")] = None
    """Also serve the Open Inference Protocol over gRPC on this port; by default TRIVIUM_GRPC_PORT, or else no gRPC."""
    tls_cert: Annotated[Path | None, arg(metavar="FILE")] = None
    """Serve over TLS with this certificate chain (PEM); by default TRIVIUM_TLS_CERT."""
    tls_key: Annotated[Path | None, arg(metavar="FILE")] = None
    """The private key of the certificate (PEM); by default TRIVIUM_TLS_KEY."""
    registry: Folder = None
    """Your own artifacts (see export), which replace shipped ones of the same name; by default TRIVIUM_REGISTRY."""
    device: Device = None
    """The device to compute on; by default TRIVIUM_DEVICE, or else the GPU if there is one."""
    program: ProgramName = None
    """Use this program instead of the fastest; by default TRIVIUM_PROGRAM."""
    store: Folder = None
    """The folder for cases, jobs and keys; by default TRIVIUM_STORE, or else store."""
    keep_inputs: bool = False
    """Store the complete input with each case, for `trivium reviews`; by default TRIVIUM_KEEP_INPUTS, or else off."""
    demo: bool = False
    """Print the addresses to open."""


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Send cases from the domain's own network to a running server, and return its answers, unattended.

    medical: receives CT series by DICOM C-STORE and sends reports by C-STORE or DICOMweb; a report has the patient data
    of the images. `trivium gateway medical -- --help` lists its settings. If the server needs a key, set TRIVIUM_KEY.
    If a proxy in front of the server needs authentication, set TRIVIUM_AUTHORIZATION to the value of the Authorization
    header, such as "Bearer TOKEN"; the key is then sent as X-Api-Key.

    Example: trivium gateway medical --server http://127.0.0.1:8000 --aet TRIVIUM --to PACS@pacs.hospital:104
    """

    app: Annotated[Positional[str], arg(metavar="APP")]
    """The application."""
    server: Annotated[str, arg(metavar="URL")] = "http://127.0.0.1:8000"
    """The address of the server."""
    spool: Annotated[Path, arg(metavar="DIR")] = Path("spool")
    """The folder for pending cases: patients' images, readable by this account only, deleted once answered."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """Write a server's cases and jobs, with their files, to one file. The server may keep running.

    TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as they do for serve.

    Example: trivium backup cases.tar
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file to write; it must not exist."""
    store: Folder = None
    """The folder of the store; by default TRIVIUM_STORE, or else store."""


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Restore a backup into an empty store; the store may use another database system.

    Example: trivium restore cases.tar --store new
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """A file written by backup."""
    store: Folder = None
    """The folder of the store; by default TRIVIUM_STORE, or else store."""


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Write a server's reviewed cases as training data for train, evaluate and calibrate.

    Uses the newest review of each case and, if one input was analysed several times, the analysis that was reviewed
    last. The server may keep running. TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as for serve.

    Example: trivium reviews medical --out reviewed

    Example: trivium reviews driving --store store --out reviewed --reviewer anna
    """

    app: Annotated[Positional[str], arg(metavar="APP")]
    """The application."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The folder to write; it must be new or empty."""
    store: Folder = None
    """The folder of the store; by default TRIVIUM_STORE, or else store."""
    reviewer: Annotated[str | None, arg(metavar="NAME")] = None
    """Use only reviews of this reviewer; by default the newest review of each case."""
    group: Annotated[str | None, arg(metavar="GROUP")] = None
    """Use only cases of this group of keys; by default of all groups, and those without a group."""


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Delete a server's old cases with their files, and jobs that ended that long ago. The server may keep running.

    Example: trivium purge --older-than 30d

    Example: trivium purge --app medical --older-than 12h

    Example: trivium purge --group radiology --older-than 30d
    """

    older_than: Annotated[str, arg(metavar="AGE")]
    """The minimum age in days or hours, such as 30d or 12h."""
    app: Annotated[str | None, arg(metavar="APP")] = None
    """Delete only cases and jobs of this application; by default of all."""
    group: Annotated[str | None, arg(metavar="GROUP")] = None
    """Delete only cases and jobs of this group of keys; by default of all groups, and those without a group."""
    store: Folder = None
    """The folder of the store; by default TRIVIUM_STORE, or else store."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Add, list or revoke API keys. A server on this store with TRIVIUM_REQUIRE_KEY=true requires one.

    add prints the key, which is not stored. Programs send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; a
    browser asks for it as a password. TRIVIUM_STORE and TRIVIUM_STORE_URL name the store, as for serve. The server may
    keep running.

    Example: trivium keys add pacs-gateway

    Example: trivium keys add anna --role operator

    Example: trivium keys add desk-1 --group desk

    Example: trivium keys list

    Example: trivium keys revoke anna
    """

    action: Positional[Literal["add", "list", "revoke"]]
    """The action. Servers refuse a revoked key within two seconds."""
    name: Annotated[Positional[str], arg(metavar="[NAME]")] = ""
    """The name of the key's owner (add and revoke), which the server's log shows."""
    role: Literal["user", "operator"] = "user"
    """A user predicts, and reads and deletes cases; an operator also manages models and reads /admin and /metrics."""
    group: Annotated[str | None, arg(metavar="GROUP")] = None
    """Restrict the key to cases and jobs submitted with keys of this group; by default it sees all of them (add)."""
    store: Folder = None
    """The folder of the store; by default TRIVIUM_STORE, or else store."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """List the versions of a running server's models and their stages, or change which version is live.

    The old version keeps answering while the new one is loaded, and then finishes its requests; no request is dropped.
    If the server needs a key, set TRIVIUM_KEY.

    Example: trivium versions

    Example: trivium versions pointpillars --promote 2

    Example: trivium versions pointpillars --roll-back

    Example: trivium versions pointpillars --retire 1
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]")] = ""
    """The model; by default all of them."""
    promote: Annotated[int | None, arg(metavar="N")] = None
    """Make this version the live one."""
    roll_back: bool = False
    """Make the version that was live before the last promotion live again."""
    retire: Annotated[int | None, arg(metavar="N")] = None
    """Stop this version's workers, and never roll back to it."""
    reload: bool = False
    """Read the registry again and restart the model's workers."""
    server: Annotated[str, arg(metavar="URL")] = "http://127.0.0.1:8000"
    """The address of the server."""
