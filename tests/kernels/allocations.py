"""A program that runs with count_allocations.cc preloaded: prints what each model of a list asks of the heap in a run.

No arena and no memory pattern, so that memory from ONNX Runtime's allocator is asked of the heap as well. Inputs and
the output y are bound beforehand.
"""

import ctypes
import json
import sys

import numpy as np
import onnxruntime as ort
from onnx import helper

from laurel_graph import runtime
from laurel_graph.tools.benchmarks.kernels.points import Point, model_of

RUNS = 8


def asked(model, threads):
    """Returns (bytes, the largest single request) of the run that asked least.

    What a run needs, every run asks for; what the process does once meanwhile, on any of its threads, is not counted.
    """
    names = [node.op_type for node in model.graph.node if node.domain == "ai.laurel"]
    options = runtime.session_options(threads=threads, operators=names)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for value in (*model.graph.input, *model.graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = ort.OrtValue.ortvalue_from_numpy(np.ones(shape, np.float32))
        bind = binding.bind_ortvalue_input if value in model.graph.input else binding.bind_ortvalue_output
        bind(value.name, array)
    for _ in range(3):
        session.run_with_iobinding(binding)
    heap = ctypes.CDLL(None)
    heap.count_total.restype = heap.count_largest.restype = ctypes.c_size_t
    runs = []
    for _ in range(RUNS):
        heap.count_begin()
        session.run_with_iobinding(binding)
        heap.count_end()
        runs.append((heap.count_total(), heap.count_largest()))
    return min(runs)


def with_factors_as_inputs(model):
    """Makes A and B inputs of the graph, which a kernel has to lay out anew in every run."""
    for name in ("A", "B"):
        tensor = next(item for item in model.graph.initializer if item.name == name)
        shape = list(tensor.dims)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, shape))
        model.graph.initializer.remove(tensor)
    return model


def main():
    found = []
    for rows, width, rank, variant, layout, threads, constant in json.load(sys.stdin):
        model = model_of(Point(rows, width, rank, variant, layout, "float32"))
        found.append(asked(model if constant else with_factors_as_inputs(model), threads))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
