"""Splits and dividends are reported as such, and neither hide nor cause other events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.finance.inference.corporate_actions import corporate_actions
from apps.finance.outputs.files import result
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from apps.finance.types import DAY_NS, Series, iso_utc
from shared.deploy.predictor import Request
from tests.apps.finance.untrained import untrained

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
ROWS, SPLIT, JUMP = 900, 500, 700
TIMES = 19_000 * DAY_NS + np.arange(ROWS) * DAY_NS
predictor = pytest.fixture(scope="module")(untrained)


def share(*, new: int = 4, old: int = 1, matching: bool = True) -> dict[str, np.ndarray]:
    """Closes of a share with a split at row 500, a real fall of 25 % at row 700, and a dividend at rows 300 and 600."""
    generator = np.random.default_rng(1)
    adjusted = 100 * np.exp(np.cumsum(0.01 * generator.standard_normal(ROWS)))
    adjusted[JUMP:] *= 0.75
    factor = np.ones(ROWS)
    for row in (300, 600):
        factor[:row] *= 0.99
    factor[:SPLIT] *= old / new
    volume = 1e6 * np.exp(0.3 * generator.standard_normal(ROWS))
    if matching:
        volume[SPLIT:] *= new / old
    else:
        volume[SPLIT] *= 12
    return {"close": np.round(adjusted / factor, 2), "adjusted": np.round(adjusted, 4), "volume": np.round(volume)}


def ask(
    predictor: FinancePredictor, path: Path, columns: dict[str, np.ndarray], names: dict[str, str], **options: str
) -> dict[str, Any]:
    """The result of a file with these columns, without pictures."""
    lines = [",".join(["date", *names.values()])]
    for row in range(ROWS):
        lines.append(",".join([iso_utc(int(TIMES[row]))[:10], *(str(columns[name][row]) for name in names)]))
    path.write_text("\n".join(lines))
    decoded = FinanceCodec(predictor).decode(Request(files=(path,), options=options))
    (found,) = predictor.predict(decoded.inputs, decoded.options)
    return result(found, model="untrained", notes=decoded.context.notes)


def days(result: dict[str, Any]) -> dict[str, list[str]]:
    """The days of events that begin from row 400 on, by note, or by channel without one."""
    found: dict[str, list[str]] = {}
    for event in result["events"]:
        if event["start"] >= iso_utc(int(TIMES[400])):
            found.setdefault(event.get("note", event["channel"]), []).append(event["start"][:10])
    return found


SPLIT_DAY, JUMP_DAY = iso_utc(int(TIMES[SPLIT]))[:10], iso_utc(int(TIMES[JUMP]))[:10]
NAMES = {"close": "Close", "adjusted": "Adj Close", "volume": "Volume"}


def test_the_adjusted_close_is_scored_if_present_and_its_adjustments_are_noted(predictor, tmp_path):
    response = ask(predictor, tmp_path / "share.csv", share(), NAMES)
    assert response["series"]["column"] == "Adj Close"
    assert "column 'Adj Close' is adjusted for 1 split and 2 dividends" in response["series"]["notes"]
    assert not [event for event in response["events"] if event["channel"] == "corporate_action"]
    assert JUMP_DAY in days(response)["jump"]


@pytest.mark.parametrize(
    ("new", "old", "name"), [(4, 1, "4-for-1 split"), (3, 2, "3-for-2 split"), (1, 10, "1-for-10 reverse split")]
)
@pytest.mark.parametrize("column", ["adjusted", "volume"])
def test_a_split_is_found_by_adjusted_close_or_volume_as_one_row(predictor, tmp_path, new, old, name, column):
    names = {"close": "Close", column: NAMES[column]}
    response = ask(predictor, tmp_path / "share.csv", share(new=new, old=old), names, value="Close")
    found = days(response)
    assert found[name] == [SPLIT_DAY]
    (event,) = [event for event in response["events"] if event.get("note") == name]
    assert event["channel"] == "corporate_action" and event["start"] == event["end"]
    # The price after the split is as expected, and the fall 200 days later is a separate event.
    assert event["observed"] == pytest.approx(event["expected"], rel=0.1) and JUMP_DAY in found["jump"]
    assert all(SPLIT_DAY not in listed for kind, listed in found.items() if kind != name)


def test_a_split_is_found_by_the_volume_in_crsps_newer_layout():
    columns = share()
    values = {"DlyPrc": columns["close"], "DlyVol": columns["volume"]}
    found = corporate_actions(Series(name="s", times_ns=TIMES, values=values, column="DlyPrc", interval_ns=DAY_NS))
    assert [(action.row, action.note) for action in found] == [(SPLIT, "4-for-1 split")]


def test_a_halved_price_is_no_split_if_the_volume_suggests_a_crash(predictor, tmp_path):
    names = {"close": "Close", "volume": "Volume"}
    found = days(ask(predictor, tmp_path / "share.csv", share(new=2, matching=False), names))
    assert SPLIT_DAY in found["jump"] and not any("split" in kind for kind in found)


def test_a_dividend_is_listed_if_visible_and_never_scored(predictor):
    generator = np.random.default_rng(2)
    adjusted = 100 * np.exp(np.cumsum(0.005 * generator.standard_normal(ROWS)))
    paid = np.where(np.arange(ROWS) < 300, 0.9 * 0.995, np.where(np.arange(ROWS) < 600, 0.9, 1.0))
    values = {"close": adjusted / paid, "adj close": adjusted}
    series = Series(name="s", times_ns=TIMES, values=values, column="close", interval_ns=DAY_NS)
    (found,) = predictor.predict([series])
    actions = [event for event in found.anomalies if event.channel == "corporate_action"]
    assert [event.start_ns for event in actions] == [TIMES[600]] and actions[0].note.startswith("dividend of ")
    assert actions[0].note.endswith("(10 %)")
