"""The events of a run are passed to a function of the user, such as a logger."""

from __future__ import annotations

import json

import pytest

from shared.engine.loop import fit
from shared.engine.run import Run
from tests.shared.engine import line


def test_every_event_is_passed_to_the_function_of_the_user(tmp_path):
    events = []
    fit(line.recipe(steps=10), Run(tmp_path, "line", "line"), device="cpu", quiet=True, on_event=events.append)
    lines = [json.loads(text) for text in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events == lines
    kinds = [event["event"] for event in events]
    assert kinds[0] == "begin" and kinds[-1] == "end" and {"train", "validation"} <= set(kinds)


def test_an_error_of_that_function_ends_the_run_and_is_recorded(tmp_path):
    def fail(event):
        if event["event"] != "begin":
            raise ConnectionError("the tracking server does not answer")

    run = Run(tmp_path, "line", "line")
    with pytest.raises(ConnectionError, match="does not answer"):
        fit(line.recipe(steps=10), run, device="cpu", quiet=True, on_event=fail)
    last = json.loads(run.events_file.read_text().splitlines()[-1])
    assert (last["event"], last["why"]) == ("end", "ConnectionError: the tracking server does not answer")
    assert fit(line.recipe(steps=10), run, device="cpu", quiet=True).steps == 10
