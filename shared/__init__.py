"""The runtime of the applications: training engine, data loading, communication, deployment and serving."""

import os

# onnxruntime 1.29 and newer otherwise report every session to Microsoft, from the moment that they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
