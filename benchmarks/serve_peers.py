"""The scripts of the servers that ``benchmarks.serve`` compares ours with; arguments are an ONNX file and a port."""

from __future__ import annotations

PLAIN = """
import os, sys
from typing import Any
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
app = FastAPI()

class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]

class Body(BaseModel):
    inputs: list[Tensor]

@app.post("/infer")
async def infer(body: Body) -> dict[str, Any]:
    feeds = {t.name: np.asarray(t.data, np.float32).reshape(t.shape) for t in body.inputs}
    outputs = session.run(names, feeds)
    return {"outputs": [{"name": n, "shape": list(o.shape), "datatype": "FP32", "data": o.ravel().tolist()}
                        for n, o in zip(names, outputs)]}

@app.post("/raw")
async def raw(request: Request) -> Response:
    given = session.get_inputs()[0]
    array = np.frombuffer(await request.body(), np.float32).reshape(-1, *given.shape[1:])
    return Response(b"".join(output.tobytes() for output in session.run(names, {given.name: array})))

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
"""
LITSERVE = """
import os, sys
import numpy as np, onnxruntime, litserve
from fastapi import Response

class API(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
    def decode_request(self, request):
        if "raw" in request:
            given = self.session.get_inputs()[0]
            array = np.frombuffer(request["raw"].file.read(), np.float32).reshape(-1, *given.shape[1:])
            return {given.name: array}
        return {t["name"]: np.asarray(t["data"], np.float32).reshape(t["shape"]) for t in request["inputs"]}
    def batch(self, inputs):
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
    def predict(self, feeds):
        return self.session.run(self.names, feeds)
    def unbatch(self, outputs):
        return [[o[i : i + 1] for o in outputs] for i in range(len(outputs[0]))]
    def encode_response(self, outputs):
        if sum(o.nbytes for o in outputs) > 1_000_000:
            return Response(b"".join(o.tobytes() for o in outputs))
        return {"outputs": [{"name": n, "shape": list(o.shape), "data": o.ravel().tolist()}
                            for n, o in zip(self.names, outputs)]}

if __name__ == "__main__":
    server = litserve.LitServer(API(max_batch_size=32, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""
