"""Networks over mmdetection3d, checkpoint import, fast paths."""

MODELS = ("pointpillars", "fcos3d")
"""The names of the artifacts that the application ships and predicts with, the one that serves by default first."""
SECOND_STAGE = "lidar_rcnn"
"""That of the artifact which corrects the boxes of a PointPillars."""
IMPORTED = ("mmdet3d_lidar", "mmdet3d_camera")
"""Those of artifacts that `trivium import` makes of mmdet3d's checkpoints."""
