"""The code of a worker process, which reads the files and tensors of requests so that the server does not."""
