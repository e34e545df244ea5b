"""Networks over MONAI, checkpoint import, fast paths."""

MODELS = ("lung_nodules", "lung_nodule_candidates")
"""The names of the artifacts that the application predicts with: the detector, and the stage that ranks its marks."""
