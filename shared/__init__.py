"""The runtime that the applications stand on: training engine, data, communication, deployment, serving."""
