"""What a domain's routes may use: its predictor behind the queue, and its cases."""

from __future__ import annotations


class Service:
    """One application as it is served."""
