"""The runtime of the applications: training engine, data loading, communication, deployment and serving."""
