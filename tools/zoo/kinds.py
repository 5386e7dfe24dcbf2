"""The kinds of graph that exporters, optimisers and quantisers make of one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from laurel_graph.onnx_model.walk import copy_of

KINDS = (
    "symbolic", "export", "dynamic", "decomposed", "onnx", "noshapes", "torchscript", "optimised", "optimised_noshapes",
    "qdq", "int8", "fp16",
)  # fmt: skip
"""Kinds of graph that are made of an architecture."""


def without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy that states no shape anywhere but in its weights."""
    copy = copy_of(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.ClearField("shape")
    return copy


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns *model* as ONNX Runtime writes it after its extended optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def quantised_static(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns *model* with QuantizeLinear and DequantizeLinear around its operators."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    random = np.random.default_rng(0)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{value.name: self.array(value) for value in model.graph.input}]

        def array(self, value: onnx.ValueInfoProto) -> Any:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            if np.issubdtype(dtype, np.floating):
                return random.standard_normal(shape).astype(dtype)
            return random.integers(1, 2, shape).astype(dtype)

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    onnx.save(model, folder / "model.onnx")
    quantize_static(folder / "model.onnx", folder / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ)
    return onnx.load(folder / "qdq.onnx")


def quantised_dynamic(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns *model* with its activations quantised as it runs."""
    from onnxruntime.quantization import quantize_dynamic

    bare = copy_of(model)
    del bare.graph.value_info[:]
    onnx.save(bare, folder / "model.onnx")
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx")
    return onnx.load(folder / "int8.onnx")
