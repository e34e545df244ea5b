"""Deterministic Hypothesis: the same examples in every run, without a database of earlier ones."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings


def repeatable(examples: int) -> settings:
    """Settings for a test with this many examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
