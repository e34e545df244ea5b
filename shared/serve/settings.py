"""The settings of a server, from the environment (``TRIVIUM_PORT=9000``) or the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import InvalidInputError

# Browsers resolve the segments . and .. of a path, so a root path cannot contain them.
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")


class Settings(BaseSettings):
    """Settings of one server.

    grpc_port        port for the Open Inference Protocol over gRPC; none by default
    hosts            accepted host names, separated by commas; by default the names of the loopback device if the server
                     listens there, else any
    tls_cert         the TLS certificate with its chain, PEM
    tls_key          the private key of the certificate, PEM
    root_path        the path at which a reverse proxy exposes the server, such as /trivium; none by default
    require_key      answer only requests with a key (`trivium keys`)
    registry         folder of your own artifacts, which take precedence over shipped ones of the same name
    store            folder of the cases, and of uploads while they are processed
    store_url        any SQLAlchemy URL; SQLite in ``store`` by default
    device           where predictors compute; ``auto`` uses a GPU if there is one
    program          the program that computes the networks, as `trivium programs` lists them; the fastest by default
    workers          processes for each application and each network; 0 computes in the server's own process
    instances        number of workers by device, as in cuda:0=2,cuda:1=2,cpu=1; overrides device and workers
    worker_memory_bytes  memory limit of a worker process (setrlimit's RLIMIT_DATA); half of the machine's memory by
                     default
    keep_days        delete cases and ended jobs after this many days; never by default
    keep_cases       maximum number of cases kept per application and group of keys, the newest; all by default
    keep_bytes       maximum bytes of cases kept per application and group of keys, the newest; unlimited by default
    keep_inputs      keep the analysed input in full with its case, for `trivium reviews`
    max_upload_bytes maximum size of a request body with files; 413 above it
    max_tensor_bytes maximum size of a request body of the Open Inference Protocol, which is held in memory
    max_json_bytes   maximum size of the JSON in it, because parsing takes twenty times its size in memory; also of
                     output tensors returned as JSON
    max_files        maximum number of files in one request
    upload_s         maximum time to receive a request body; 408 after it
    min_upload_rate  minimum bytes per second at which a body arrives, over windows of ten seconds; 408 below it
    header_s         maximum time to receive a request header; the connection is closed after it
    queue_length     maximum number of waiting requests per application (or network) and group of keys; 503 above it
    max_per_client   maximum number of concurrent requests from one address; 429 above it; unlimited by default
    max_batch        maximum number of requests (for a network: rows) that are computed together
    max_batch_s      maximum time that a batch takes by recent measurements; a batch has at least one request
    deadline_s       maximum time from the end of a request body to the answer, queueing included; 504 after it
    job_deadline_s   maximum time that a job may compute
    max_jobs         maximum number of waiting jobs per application and group of keys; 503 above it
    webhook_url      address that is notified of every finished job; none by default
    webhook_secret   the key that signs the notifications, as in Standard Webhooks: whsec_ and base64
    drain_s          time for accepted requests to finish when the server is stopped
    log_json         log every line as JSON, including errors with their tracebacks; the access log always is JSON
    warm             load the predictors in the background as soon as the server runs
    """

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: int | None = Field(None, ge=0, le=65535)
    hosts: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    root_path: str = ""
    require_key: bool = False
    registry: Path | None = None
    store: Path = Path("store")
    store_url: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    program: str | None = None
    workers: int = Field(1, ge=0)
    instances: str | None = Field(None, pattern=r"^(cpu|cuda:\d{1,3})=[1-9]\d?(,(cpu|cuda:\d{1,3})=[1-9]\d?)*$")
    worker_memory_bytes: int | None = Field(None, ge=1)
    keep_days: float | None = Field(None, gt=0)
    keep_cases: int | None = Field(None, ge=1)
    keep_bytes: int | None = Field(None, ge=1)
    keep_inputs: bool = False
    max_upload_bytes: int = Field(2_000_000_000, ge=1)
    max_tensor_bytes: int = Field(256_000_000, ge=1)
    max_json_bytes: int = Field(16_000_000, ge=1)
    max_files: int = Field(10_000, ge=1)
    upload_s: float = Field(1800.0, gt=0)
    min_upload_rate: float = Field(10_000.0, ge=0)
    header_s: float = Field(10.0, gt=0)
    queue_length: int = Field(32, ge=1)
    max_per_client: int | None = Field(None, ge=1)
    max_batch: int = Field(8, ge=1)
    max_batch_s: float = Field(0.25, gt=0)
    deadline_s: float = Field(120.0, gt=0)
    job_deadline_s: float = Field(6 * 3600.0, gt=0)
    max_jobs: int = Field(100, ge=1)
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = None
    drain_s: float = Field(20.0, ge=0)
    log_json: bool = False
    warm: bool = True

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, path: str) -> str:
        if not _ROOT_PATH.fullmatch(path):
            raise ValueError("give only the path, such as /trivium")
        return path

    @property
    def request_limit(self) -> int:
        """Maximum number of requests per application (or network) and group of keys, waiting or computing."""
        return self.queue_length + self.max_batch

    @property
    def worker_devices(self) -> list[tuple[str, int | None]]:
        """The device of each worker process of a model, and the number of its GPU if ``instances`` sets one."""
        if self.instances is None:
            return [(self.device, None)] * self.workers
        devices: list[tuple[str, int | None]] = []
        for group in self.instances.split(","):
            device_spec, _, count = group.partition("=")
            device, _, gpu = device_spec.partition(":")
            devices += [(device, int(gpu) if gpu else None)] * int(count)
        return devices

    def with_one_worker(self) -> Settings:
        """These settings with a single worker, on the first of its devices; unchanged if there are no workers."""
        if not self.worker_devices:
            return self
        first = None if self.instances is None else f"{self.instances.partition('=')[0]}=1"
        return self.model_copy(update={"workers": 1, "instances": first})

    @property
    def root(self) -> str:
        """The prefix of every path in answers: ``root_path`` without a trailing slash."""
        return self.root_path.rstrip("/")

    @property
    def host_names(self) -> list[str]:
        """The host names in ``hosts``, in lower case."""
        return [name.strip().lower() for name in (self.hosts or "").split(",") if name.strip()]


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment and from ``overrides``, which takes precedence; None values are ignored.

    Raises ``InvalidInputError`` for values that are not valid, each named by its environment variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            f"TRIVIUM_{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise InvalidInputError(f"invalid server settings: {faults}") from error
