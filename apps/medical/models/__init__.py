"""Networks over MONAI, checkpoint import, fast paths."""

MODELS = ("lung_nodules",)
"""The names of the artifacts that the application predicts with."""
