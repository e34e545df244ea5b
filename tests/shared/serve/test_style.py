"""The colours of the style sheet meet the contrasts of WCAG 2.2, level AA, in both colour schemes."""

from __future__ import annotations

import re

import pytest

from shared.serve.pages import WEB

# Success criterion 1.4.3: text on its background. The last two are the signs of chosen verdicts.
TEXT = """ink ground, ink surface, ink notice, ink accent-soft, muted ground, muted surface, muted notice,
accent ground, accent surface, accent-ink accent, danger danger-soft, surface third, surface danger"""
# Success criterion 1.4.11: the border of a field, the mark of what is chosen, and the lines of a chart.
PARTS = """edge ground, edge surface, current ground, current accent-soft,
first surface, second surface, third surface, fourth surface"""
PAIRS = [(pair.strip(), minimum) for pairs, minimum in ((TEXT, 4.5), (PARTS, 3.0)) for pair in pairs.split(",")]


def _luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_fields_stand_out_from_their_background(scheme: int) -> None:
    style = (WEB / "static" / "style.css").read_text(encoding="utf-8")
    block = re.findall(r":root {(.+?)}", style, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    contrasts = [(pair, minimum, _contrast(*(colours[name] for name in pair.split()))) for pair, minimum in PAIRS]
    assert [row for row in contrasts if row[2] < row[1]] == []
