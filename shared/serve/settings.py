"""How a server is set up: from the environment (``TRIVIUM_PORT=9000``), or from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import InvalidInputError

# Browsers take the segments . and .. off a path.
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")


class Settings(BaseSettings):
    """Settings of one server.

    grpc_port        where the Open Inference Protocol is answered over gRPC too; nowhere by default
    hosts            names under which it is asked, with commas between; the loopback device's own by default where it
                     listens there, any elsewhere
    tls_cert         the certificate, with those that lead to its authority, by which it answers over TLS; PEM
    tls_key          its private key
    root_path        the path that a reverse proxy shows it under, as /trivium; none by default
    require_key      whether only those who have a key are answered (`trivium keys`)
    registry         folder of artifacts of one's own, which come before those that ship under the same name
    store            folder of the cases, and of uploads while they are looked at
    store_url        any SQLAlchemy address; SQLite in ``store`` by default
    device           where predictors compute; ``auto`` takes the GPU where there is one
    program          what the networks compute with, as `trivium programs` lists them; the fastest by default
    workers          processes for each application and each network; 0 computes in the server's own process
    instances        the same by device, as in cuda:0=2,cuda:1=2,cpu=1; it comes before device and workers
    worker_memory_bytes  the most memory that such a process may have (setrlimit's RLIMIT_DATA); half of the machine's
                     by default
    keep_days        cases that are older are deleted; none by default
    keep_cases       of each application, the most cases that are kept, the newest; all by default
    keep_bytes       of each application, the most bytes of cases that are kept, the newest; all by default
    keep_inputs      whether what was analysed is kept whole with its case, for `trivium reviews`
    max_upload_bytes the largest request body with files; 413 above it
    max_tensor_bytes the largest request body of the Open Inference Protocol, which is held in memory
    max_json_bytes   the most JSON in it, which takes twenty times its size in memory to read; and of tensors that are
                     answered as JSON
    max_files        the most files in one request
    upload_s         the longest that a request body takes to come; 408 after it
    min_upload_rate  bytes per second that it must come at, measured over ten seconds each; 408 below it
    header_s         the longest that a request's header takes to come; the connection is closed after it
    queue_length     requests of an application (or of a network) and a group of keys that may wait; 503 above it
    max_per_client   requests that one address may have inside at a time; 429 above it; any number by default
    max_batch        the most requests (of a network: rows) that are computed together when several wait
    max_batch_s      no more are computed together than take so many seconds by the last times; always one
    deadline_s       the longest that a request takes once its body is there, queueing included; 504 after it
    job_deadline_s   the longest that a job is computed
    max_jobs         jobs of an application and a group of keys that may wait; 503 above it
    webhook_url      what is told of every job that has ended; nobody by default
    webhook_secret   the key that signs what it is told, as Standard Webhooks writes it: whsec_ and base64
    drain_s          how long requests that were accepted have to end when the server is told to
    log_json         every line of the log as JSON, errors with their tracebacks too; answers always are
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
            raise ValueError("write the path alone, as /trivium")
        return path

    @property
    def request_limit(self) -> int:
        """How many requests of an application (or a network) and a group of keys may be inside, waiting or computed."""
        return self.queue_length + self.max_batch

    @property
    def worker_devices(self) -> list[tuple[str, int | None]]:
        """The device of each worker process of a model, and which of the server's GPUs, where that is set."""
        if self.instances is None:
            return [(self.device, None)] * self.workers
        found: list[tuple[str, int | None]] = []
        for group in self.instances.split(","):
            place, _, count = group.partition("=")
            device, _, gpu = place.partition(":")
            found += [(device, int(gpu) if gpu else None)] * int(count)
        return found

    def with_one_worker(self) -> Settings:
        """The same for a single worker, at the first of its devices; without workers, without."""
        if not self.worker_devices:
            return self
        first = None if self.instances is None else f"{self.instances.partition('=')[0]}=1"
        return self.model_copy(update={"workers": 1, "instances": first})

    @property
    def root(self) -> str:
        """What stands before every path in what is answered: ``root_path`` without a slash at its end."""
        return self.root_path.rstrip("/")

    @property
    def host_names(self) -> list[str]:
        """The names in ``hosts``."""
        return [name.strip().lower() for name in (self.hosts or "").split(",") if name.strip()]


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, and from what is given (None is as good as absent); refuses what does not fit."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            f"TRIVIUM_{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise InvalidInputError(f"the server's settings cannot be used: {faults}") from error
