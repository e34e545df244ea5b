"""Networks over mmdetection3d, checkpoint import, fast paths."""

MODELS = ("pointpillars", "fcos3d")
"""The names of the artifacts that the application ships and predicts with, the one that serves by default first."""
