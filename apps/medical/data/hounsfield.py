"""Whether values can be Hounsfield units at all."""

from __future__ import annotations

from shared.refusal import Refusal


def must_be_hounsfield(name: str, low: float, high: float) -> None:
    """Refuses an image whose values span ``low`` to ``high`` where a CT of a body has air near -1000 and tissue."""
    if low > -300 or high - low < 300:
        raise Refusal(f"{name} holds values from {low:g} to {high:g}; expected Hounsfield units, with air near -1000")
