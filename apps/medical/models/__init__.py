"""MONAI's networks, checkpoint import and fast paths."""

MODELS = ("lung_nodules", "lung_nodule_candidates")
"""The artifacts that the application predicts with: the detector, and the second stage that rescores its candidates."""
