"""nginx as a reverse proxy in front of a server, configured as in docs/operating.md."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import free_port

# Debian installs it in a folder that is only on root's PATH.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {directives}
    }}
}}
"""


def documented(upstream: str) -> str:
    """The directives in docs/operating.md for a server at ``upstream`` under the path /trivium."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    server_block, location_block = (block for block in blocks if "proxy_pass" in block)
    directives: str = server_block.partition("location")[0] + location_block
    return directives.replace("http://127.0.0.1:8000", upstream)


@contextmanager
def nginx(folder: Path, directives: str) -> Iterator[str]:
    """Runs an nginx with these ``directives`` in its server block. The context is its address."""
    if NGINX is None:
        pytest.skip("there is no nginx on this machine")
    port = free_port()
    folder.mkdir()
    file = folder / "nginx.conf"
    file.write_text(_CONFIGURATION.format(folder=folder, port=port, directives=directives))
    with subprocess.Popen([NGINX, "-p", str(folder), "-c", str(file)], stderr=subprocess.PIPE) as process:
        try:
            while True:
                assert process.poll() is None and process.stderr is not None, "nginx did not start"
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
