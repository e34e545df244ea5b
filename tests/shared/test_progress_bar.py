"""Progress on a standard error that is not a terminal."""

import pytest

from shared import progress_bar as subject
from shared.progress_bar import progress_bar


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(iter("abc"), 3, "packing")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_its_progress_soon_and_then_every_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 5000, 40))
    monkeypatch.setattr(subject.time, "monotonic", lambda: float(next(clock)))
    assert list(progress_bar(range(4), 4, "packing")) == [0, 1, 2, 3]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["packing: 1 of 4, 2 min left", "packing: 3 of 4, 1 min left"]
    assert list(progress_bar(range(2), None, "searching scans")) == [0, 1]
    assert capsys.readouterr().err == "searching scans: 1\n"
