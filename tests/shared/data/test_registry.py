from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shared import cli
from shared.app import installed
from shared.data.registry import read_registry
from shared.errors import InvalidInputError


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def public(tmp_path):
    """A web server on loopback with one file, and a registry with that file."""
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "prices.csv").write_bytes(b"time,price\n1,2\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        content = (folder / "prices.csv").read_bytes()
        entry = {
            "name": "prices",
            "title": "Prices",
            "licence": "MIT",
            "source": "a test",
            "files": [
                {
                    "path": "finance/prices.csv",
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "url": f"http://127.0.0.1:{server.server_port}/prices.csv",
                }
            ],
        }
        registry = tmp_path / "registry.json"
        registry.write_text(json.dumps([entry]))
        yield folder, registry
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIVIUM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_missing_file_is_downloaded_once_and_verified(public, tmp_path):
    folder, registry = public
    entry = read_registry(registry)["prices"]
    assert entry.locate() is None
    with pytest.raises(InvalidInputError, match="trivium data fetch prices"):
        entry.require()
    root = entry.fetch()
    assert (root / "finance/prices.csv").read_bytes() == (folder / "prices.csv").read_bytes()
    (folder / "prices.csv").unlink()
    assert entry.fetch() == root and entry.verify() == []


def test_a_file_that_changed_at_its_source_is_refused(public):
    folder, registry = public
    (folder / "prices.csv").write_bytes(b"time,price\n1,3\n")
    entry = read_registry(registry)["prices"]
    with pytest.raises(InvalidInputError, match="SHA-256 differs"):
        entry.fetch()
    assert entry.locate() is None


def test_the_folder_in_trivium_data_is_searched_first(public, tmp_path, monkeypatch):
    _folder, registry = public
    (tmp_path / "own" / "finance").mkdir(parents=True)
    (tmp_path / "own" / "finance" / "prices.csv").write_bytes(b"something else")
    monkeypatch.setenv("TRIVIUM_DATA", str(tmp_path / "own"))
    entry = read_registry(registry)["prices"]
    assert entry.locate() == tmp_path / "own"
    assert "14 bytes instead of 15" in entry.verify()[0]


def test_a_file_without_address_is_refused_with_instructions(public):
    _folder, registry = public
    document = json.loads(registry.read_text())
    document[0]["files"][0]["url"] = None
    registry.write_text(json.dumps(document))
    entry = read_registry(registry)["prices"]
    for action in (entry.fetch, entry.require):
        with pytest.raises(
            InvalidInputError, match=r"put it into .*trivium.data, or .* contains finance/prices.csv"
        ) as e:
            action()
        assert "data fetch" not in str(e.value) and entry.source in str(e.value)


def test_the_list_says_where_a_named_data_set_comes_from(capsys):
    assert cli.main(["data", "list", "nab"]) == 0
    assert "a clone of https://github.com/numenta/NAB" in " ".join(capsys.readouterr().out.split())


def test_the_registries_of_the_applications_are_valid():
    for app in installed().values():
        entries = read_registry(app.data_registry)
        assert entries
        for entry in entries.values():
            assert entry.licence and entry.source
            for file in entry.files:
                assert file.bytes > 0 and len(file.sha256) == 64 and not file.path.startswith(("/", ".."))
