"""Time and memory of detection on a generated deep network.

``python -m laurel_graph.tools.benchmarks.detection [--nodes 1000 10000 100000] [--json]``

The network is a transformer of ever more layers: per layer 26 nodes, two residual connections, GELU written out, a
mask that every layer reads.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.tools.console import print_json, print_table

WIDTH = 8
NODES_PER_LAYER = 26


@dataclass(frozen=True)
class Timing:
    """One size: nodes, joins found, seconds of the front end and of detection, µs a node, peak memory."""

    nodes: int
    found: int
    view_seconds: float
    detect_seconds: float
    micros_per_node: float
    peak_mb: float


def deep_model(nodes: int) -> onnx.ModelProto:
    """Returns a pre-norm transformer encoder of about *nodes* nodes in ONNX."""
    steps: list[onnx.NodeProto] = []

    def step(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(steps)}"
        steps.append(helper.make_node(op, list(inputs), [name], name=f"n{len(steps)}", **attributes))
        return name

    x = "x"
    for _ in range(max(1, nodes // NODES_PER_LAYER)):
        y = step("LayerNormalization", x, "g", "b", axis=-1)
        q, k, v = (step("Add", step("MatMul", y, "w"), "b") for _ in range(3))
        weights = step("MatMul", q, step("Transpose", k, perm=[0, 2, 1]))
        weights = step("Softmax", step("Add", step("Mul", weights, "half"), "mask"), axis=-1)
        y = step("Add", step("MatMul", step("MatMul", weights, v), "w"), "b")
        x = step("Add", x, y)
        y = step("Add", step("MatMul", step("LayerNormalization", x, "g", "b", axis=-1), "w"), "b")
        y = step("Mul", step("Mul", y, "half"), step("Add", step("Erf", y), "half"))
        x = step("Add", x, step("Dropout", step("Add", step("MatMul", y, "w"), "b")))
    constants = {"w": [WIDTH, WIDTH], "g": [WIDTH], "b": [WIDTH], "half": []}
    shape: list[str | int | None] = ["batch", "length", WIDTH]
    graph = helper.make_graph(
        steps,
        "deep",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, "length"]),
        ],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [
            helper.make_tensor(name, TensorProto.FLOAT, dims, [0.5] * max(1, WIDTH ** len(dims)))
            for name, dims in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def measure(nodes: int, repeats: int = 3) -> Timing:
    """Times detection (best of *repeats*) and notes its peak memory in one further run."""
    model = deep_model(nodes)
    start = time.perf_counter()
    view = view_of(model, "deep")
    seconds = time.perf_counter() - start
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = detect(view)
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    detect(view)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    best = min(times)
    return Timing(view.nodes, len(found.residuals), seconds, best, 1e6 * best / max(1, view.nodes), peak / 2**20)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bench_detect", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="sizes of the network")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    rows = [measure(nodes) for nodes in options.nodes]
    if options.json:
        print_json({"rows": [asdict(row) for row in rows]})
        return 0
    print_table(
        "detection on a generated network",
        ("nodes", "found", "view s", "detect s", "µs/node", "peak MB"),
        [tuple(asdict(row).values()) for row in rows],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
