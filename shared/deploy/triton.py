"""An artifact's configuration for Triton, beside its versions in a model repository."""

from __future__ import annotations

from shared.deploy.artifact import Manifest, TensorSpec

_TRITON = {"FP32": "TYPE_FP32", "FP16": "TYPE_FP16", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "BOOL": "TYPE_BOOL"}


def triton_config(manifest: Manifest) -> str:
    """The model's ``config.pbtxt`` for Triton's ONNX Runtime backend."""

    def tensors(kind: str, specs: tuple[TensorSpec, ...], drop: int) -> str:
        items = []
        for spec in specs:
            # Triton wants at least one dimension besides the batch.
            dims = ", ".join(map(str, spec.shape[drop:])) or "1"
            reshape = "" if spec.shape[drop:] else " reshape: { shape: [ ] }"
            items.append(f'  {{ name: "{spec.name}" data_type: {_TRITON[spec.datatype]} dims: [ {dims} ]{reshape} }}')
        return f"{kind} [\n" + ",\n".join(items) + "\n]\n"

    batched = all(spec.shape[:1] == (-1,) for spec in (*manifest.inputs, *manifest.outputs))
    head = f'name: "{manifest.name}"\nbackend: "onnxruntime"\nmax_batch_size: {8 if batched else 0}\n'
    tail = "dynamic_batching { max_queue_delay_microseconds: 2000 }\n" if batched else ""
    drop = 1 if batched else 0
    return head + tensors("input", manifest.inputs, drop) + tensors("output", manifest.outputs, drop) + tail
