"""Commands in a locale whose encoding is not UTF-8, as zh_CN.GBK: here ASCII, which every machine has."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient

from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}


def trivium(*words: str | Path) -> str:
    """What the command prints in an ASCII locale."""
    command = [sys.executable, "-m", "trivium", *map(str, words)]
    completed = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_help_is_printed_without_the_characters_that_the_locale_lacks():
    output = trivium("--help")
    assert "usage: trivium" in output and "doctor" in output


def test_reviews_are_exported_in_utf_8(tmp_path):
    rows = [
        f"{name},2024-01-{1 + n // 24:02d}T{n % 24:02d}:00:00Z,{100 + n * 37 % 11 + 60 * (n == at)}"
        for name, at in (("茅台", 200), ("Münchener", 300))
        for n in range(400)
    ]
    settings = Settings(store=tmp_path / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"finance": find("finance")})) as client:
        file = {"files": ("prices.csv", "\n".join(["代码,time,close", *rows]).encode())}
        response = client.post("/api/finance/predict", files=file)
        assert response.status_code == 200, response.text
        events = response.json()["result"]["events"]
        verdicts = {str(n): "accepted" for n in range(1, len(events) + 1)}
        review = f"/api/finance/cases/{response.json()['case']}/review"
        assert events and client.put(review, json={"verdicts": verdicts}).status_code == 200
    trivium("reviews", "finance", "--store", tmp_path / "store", "--out", tmp_path / "out")
    exported = [path.read_text(encoding="utf-8") for path in sorted((tmp_path / "out" / "series").iterdir())]
    names = [next(csv.DictReader(text.splitlines()))["代码"] for text in exported]
    assert names == ["茅台", "Münchener"]
