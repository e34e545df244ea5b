"""A PostgreSQL server for tests, which they can kill and restart."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.servers import free_port

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


def running() -> Iterator[PostgreSQL]:
    """For a fixture: yields a server and stops it after the tests. Skips them if PostgreSQL is not installed."""
    if executable() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = PostgreSQL(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class PostgreSQL:
    """A server on loopback with its data in ``folder``.

    PostgreSQL refuses to run as root, so under root it runs as the user ``postgres`` that its package creates.
    """

    def __init__(self, folder: Path) -> None:
        program = executable()
        assert program is not None
        self._binaries, self._folder = Path(program).resolve().parent, folder
        account = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        os.chown(folder, account.pw_uid, account.pw_gid)
        secret = folder / "secret"
        secret.write_text("a secret\n")
        os.chown(secret, account.pw_uid, account.pw_gid)
        self._identity = {"user": account.pw_uid, "group": account.pw_gid} if os.getuid() == 0 else {}
        self._port = free_port()
        self._run("initdb", "--username=trivium", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync")
        self._databases = 0

    def start(self) -> None:
        """Starts the server and waits until it answers. After ``kill``, retries until the old processes have ended."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        deadline = time.monotonic() + 30
        while True:
            try:
                self._run("pg_ctl", "--wait", f"--log={self._folder / 'log'}", f"--options={options}", "start")
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def database(self) -> str:
        """Creates an empty database and returns its address."""
        self._databases += 1
        name = f"database_{self._databases}"
        engine = create_engine(self._address("postgres").replace("://", "+pg8000://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self._address(name)

    def kill(self) -> None:
        """Kills the main process with SIGKILL; the others then end by themselves."""
        process = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """Stops the server immediately."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def _address(self, database: str) -> str:
        return f"postgresql://trivium:a%20secret@127.0.0.1:{self._port}/{database}"

    def _run(self, program: str, *options: str) -> None:
        command: list[Any] = [self._binaries / program, "--pgdata", self._folder / "data", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=60, **self._identity)


def executable() -> str | None:
    """The path of PostgreSQL's server program on this machine, or None."""
    return shutil.which("postgres") or (str(INSTALLED[-1]) if INSTALLED else None)
