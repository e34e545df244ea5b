"""What detectors are trained and scored on: one file a data set."""
