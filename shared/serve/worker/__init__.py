"""What a worker process runs: it computes for the server, which reads no file and no tensor itself."""
