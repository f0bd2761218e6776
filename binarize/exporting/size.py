"""Where an ONNX file's bytes go."""

from __future__ import annotations

from typing import Any

import onnx

from binarize.exporting.emit import binary_nodes, own_nodes
from binarize.report import Report


def size_report(model: onnx.ModelProto, report: Report) -> dict[str, Any]:
    """Bytes of `model` by purpose, beside the float32 weights that the packed ones replace.

    `packed_weights` over `float_weights_replaced` is 1/32, plus the padding of channels to 64.
    """
    sizes = {tensor.name: _bytes(tensor) for tensor in model.graph.initializer}
    packed = {node.input[1] for node in binary_nodes(model)}
    epilogue = {name for node in binary_nodes(model) for name in node.input[2:] if name in sizes}
    epilogue |= {name for node in own_nodes(model, "Activate", "ActivateLink") for name in node.input if name in sizes}
    total = model.ByteSize()
    packed_bytes = sum(sizes[name] for name in packed)
    epilogue_bytes = sum(sizes[name] for name in epilogue)
    metadata = sum(entry.ByteSize() for entry in model.metadata_props)
    rest = sum(size for name, size in sizes.items() if name not in packed and name not in epilogue)
    return {
        "file": total,
        "packed_weights": packed_bytes,
        "float_weights_replaced": sum(d.weight_bytes for d in report.binarized),
        "scales_links_thresholds": epilogue_bytes,
        "float_layers": rest,
        "metadata": metadata,
        "graph_and_functions": total - packed_bytes - epilogue_bytes - rest - metadata,
        "largest_float_layers": dict(
            sorted(((n, s) for n, s in sizes.items() if n not in packed | epilogue), key=lambda item: -item[1])[:3]
        ),
    }


def _bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()
