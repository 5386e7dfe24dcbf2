"""The fused kernels beside their function bodies, a plain Add and the bound of the machine, point by point.

All forms of one point run in one process and take turns, so that whatever slows the machine down slows all of them.
Inputs and outputs are bound beforehand. The bound is the larger of the bytes of x, f and y over the measured copy
bandwidth and the operations of the low-rank products over the measured rate of multiply-adds.

    python -m laurel_graph.tools.bench_kernels --rows 64 1024 --widths 768 --ranks 16 --variants rw+lr --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laurel_graph import runtime
from laurel_graph.errors import KernelLibraryError
from laurel_graph.opset.schema import DOMAIN, VERSION, Operator

ROWS = (1, 8, 16, 64, 256, 1024, 4096)
WIDTHS = (384, 768, 1024, 2048)
RANKS = (4, 16, 32, 64)
RESNET50_JOINS = ((3136, 256, 3), (784, 512, 4), (196, 1024, 6), (49, 2048, 3))
"""(positions, channels, how many) of the joins of ResNet-50 at 224 x 224."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_OPSET = 17


@dataclass(frozen=True)
class Point:
    """One point of the grid; *rows* are positions in the channel layouts."""

    rows: int
    D: int
    rank: int
    variant: str
    layout: str
    dtype: str

    @property
    def operator(self) -> Operator:
        """The operator: the variant's parts (``rw``, ``lr``, ``pa<k>``, ``pal<k>``, ``bias``) and an epilogue."""
        parts = self.variant.split("+")
        fields: dict[str, Any] = {"rw": "rw" in parts, "lr": "lr" in parts, "bias": "bias" in parts}
        for part in parts:
            if part.startswith("pa"):
                fields.update(previous=int(part.lstrip("pal")), low_rank_previous=part.startswith("pal"))
            epilogue = {"relu": "Relu", "layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}.get(part)
            if epilogue:
                fields["epilogue"] = epilogue
        return Operator(**fields, layout="" if self.layout == "tokens" else self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x: (rows, D), or (1, D, ...) with *rows* positions as near a cube as divisors allow."""
        if self.layout == "tokens":
            return (self.rows, self.D)
        sizes, left = [], self.rows
        for axes in range(int(self.layout[0]), 0, -1):
            size = max(s for s in range(1, left + 1) if left % s == 0 and s**axes <= left)
            sizes.append(size)
            left //= size
        return (1, self.D, *sizes[:-1], sizes[-1] * left)

    def floor(self, bytes_per_us: float, flops_per_us: float) -> float:
        """The time in µs below which no implementation can come."""
        op = self.operator
        arrays = 3 + op.previous + (1 if op.epilogue in ("LayerNorm", "RMSNorm") else 0)
        products = op.lr + op.previous * op.low_rank_previous
        elements = self.rows * self.D
        flops = elements * 4 * self.rank * products
        return max(elements * arrays * _BYTES[self.dtype] / bytes_per_us, flops / flops_per_us)


@dataclass(frozen=True)
class Row:
    """What was measured at one point: medians in µs."""

    rows: int
    D: int
    rank: int
    variant: str
    layout: str
    dtype: str
    threads: int
    fused_us: float
    body_us: float
    add_us: float
    bound_us: float
    body_over_fused: float
    fused_over_add: float


def _tensors(op: Operator, shape: tuple[int, ...], rank: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    d, k = shape[op.axis], op.previous
    shapes = {
        "alpha": (), "beta": (), "A": (d, rank), "B": (rank, d), "gamma": (k,), "previous_A": (k, d, rank),
        "previous_B": (k, rank, d), "bias": (d,), "scale": (d,), "offset": (d,),
    }  # fmt: skip
    scales = {"A": d**-0.5, "B": max(1, rank) ** -0.5, "previous_A": d**-0.5, "previous_B": max(1, rank) ** -0.5}
    return {name: rng.standard_normal(shapes.get(name, shape)) * scales.get(name, 1) for name in op.inputs}


def _element_type(dtype: str) -> int:
    from onnx import TensorProto

    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]


def model_of(point: Point) -> Any:
    """Returns a ModelProto with the point's operator as its only node; parameters are initializers."""
    from onnx import helper

    op, element = point.operator, _element_type(point.dtype)
    inputs, initializers = [], []
    for name, values in _tensors(op, point.shape, point.rank).items():
        if values.shape == point.shape and (name in "xf" or name.startswith("previous_")):
            inputs.append(helper.make_tensor_value_info(name, element, point.shape))
        else:
            initializers.append(helper.make_tensor(name, element, values.shape, values.astype(np.float32).ravel()))
    output = helper.make_tensor_value_info("y", element, point.shape)
    # Function bodies want every output named; nobody uses the second one here.
    node = helper.make_node(op.name, op.inputs, op.outputs, domain=DOMAIN)
    if op.epilogue in ("LayerNorm", "RMSNorm"):
        node.attribute.append(helper.make_attribute("epsilon", 1e-5))
    graph = helper.make_graph([node], "point", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _add_model(point: Point) -> Any:
    from onnx import helper

    element = _element_type(point.dtype)
    x, f, y = (helper.make_tensor_value_info(name, element, point.shape) for name in "xfy")
    # bfloat16 has no Add on ONNX Runtime's CPU: the nearest thing that it runs.
    cast = point.dtype == "bfloat16"
    nodes = [helper.make_node("Add", ["x", "f"], ["y"])]
    if cast:
        nodes = [
            helper.make_node("Cast", ["x"], ["x32"], to=1),
            helper.make_node("Cast", ["f"], ["f32"], to=1),
            helper.make_node("Add", ["x32", "f32"], ["y32"]),
            helper.make_node("Cast", ["y32"], ["y"], to=element),
        ]
    graph = helper.make_graph(nodes, "add", [x, f], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def runner(model: Any, threads: int, fused: bool) -> Callable[[], None]:
    """Returns a function that runs *model* once on inputs and outputs bound beforehand."""
    import onnxruntime as ort

    if fused:
        names = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
        options = runtime.session_options(threads=threads, operators=names)
    else:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rng = np.random.default_rng(0)
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        array = rng.standard_normal(shape).astype(np.float32)
        if tensor.elem_type == _element_type("float16"):
            held = ort.OrtValue.ortvalue_from_numpy(array.astype(np.float16))
        elif tensor.elem_type == _element_type("bfloat16"):
            bits = (array.view(np.uint32) >> 16).astype(np.uint16)
            held = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, tensor.elem_type)
        else:
            held = ort.OrtValue.ortvalue_from_numpy(array)
        if value in model.graph.output:
            binding.bind_ortvalue_output(value.name, held)
        else:
            binding.bind_ortvalue_input(value.name, held)
    return lambda: session.run_with_iobinding(binding)


def interleaved(runners: Sequence[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Returns the times in µs of each runner over the same number of turns, taken one after the other."""
    clock = time.perf_counter
    for run in runners:
        run()
    times: list[list[float]] = [[] for _ in runners]
    stop = clock() + seconds
    while clock() < stop or len(times[0]) < 5:
        for run, found in zip(runners, times, strict=True):
            run()  # what the others left in the caches is gone
            before = clock()
            run()
            found.append((clock() - before) * 1e6)
    return times


def measure(point: Point, threads: int, seconds: float, bytes_per_us: float, flops_per_us: float) -> Row:
    """Measures one point.

    Raises:
        KernelLibraryError: there is no library of fused kernels.
    """
    from laurel_graph.opset import functions

    if runtime.library_path() is None:
        raise KernelLibraryError("There are no fused kernels to measure: reinstall laurel-graph with a C++ compiler.")
    model = model_of(point)
    fused = runner(model, threads, fused=True)
    functions.attach(model)
    body = runner(model, threads, fused=False)
    add = runner(_add_model(point), threads, fused=False)
    times = interleaved([fused, body, add], seconds)
    median = statistics.median
    paired = [median(b / a for a, b in zip(times[i], times[j], strict=True)) for i, j in ((0, 1), (2, 0))]
    return Row(
        **asdict(point),
        threads=threads,
        fused_us=round(median(times[0]), 2),
        body_us=round(median(times[1]), 2),
        add_us=round(median(times[2]), 2),
        bound_us=round(point.floor(bytes_per_us, flops_per_us), 2),
        body_over_fused=round(paired[0], 3),
        fused_over_add=round(paired[1], 3),
    )


def _in_threads(work: Callable[[int], None], threads: int) -> float:
    """Returns the seconds until *work* has run in that many threads at once."""
    pool = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    before = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return time.perf_counter() - before


def copy_bandwidth(threads: int) -> float:
    """Returns bytes read and written per µs by a copy of arrays that no cache holds, the best of several."""
    size = 32 << 20
    arrays = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]

    def copy(i: int) -> None:
        np.copyto(arrays[i][1], arrays[i][0])

    best = min(_in_threads(copy, threads) for _ in range(30))
    return 2 * size * threads / best / 1e6


def multiply_add_rate(threads: int) -> float:
    """Returns float32 operations per µs of multiply-adds on registers, on all threads, the best of several."""
    rounds = 2_000_000
    total = [0.0] * threads

    def work(i: int) -> None:
        total[i] = runtime.multiply_adds(rounds)

    best = min(_in_threads(work, threads) for _ in range(20))
    return sum(total) / best / 1e6


def _grid(args: argparse.Namespace) -> Iterator[Point]:
    for layout, dtype, variant in itertools.product(args.layouts, args.dtypes, args.variants):
        low_rank = any(part.startswith(("lr", "pal")) for part in variant.split("+"))
        ranks = args.ranks if low_rank else (0,)
        if args.resnet50:
            sizes: list[tuple[int, int]] = [(rows, width) for rows, width, _ in RESNET50_JOINS]
        else:
            sizes = list(itertools.product(args.rows, args.widths))
        for (rows, width), rank in itertools.product(sizes, ranks):
            yield Point(rows, width, rank, variant, layout, dtype)


def _summary(rows: Sequence[Row]) -> list[str]:
    def mean(values: Sequence[float]) -> float:
        return math.exp(statistics.fmean(map(math.log, values)))

    lines = []
    for label, chosen in (
        ("rows <= 16", [r for r in rows if r.rows <= 16]),
        ("rows >= 64, r <= 32", [r for r in rows if r.rows >= 64 and r.rank <= 32]),
        ("rows >= 64, r >= 64", [r for r in rows if r.rows >= 64 and r.rank >= 64]),
    ):
        if chosen:
            ratios = [r.body_over_fused for r in chosen]
            lines.append(f"{label:>20}: body/fused geometric mean {mean(ratios):.2f}, least {min(ratios):.2f}")
    return lines


def _plot(rows: Sequence[Row], bytes_per_us: float, flops_per_us: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    low_rank = [row for row in rows if row.rank]
    points = [Point(r.rows, r.D, r.rank, r.variant, r.layout, r.dtype) for r in low_rank]
    flops = [point.floor(math.inf, 1.0) for point in points]
    intensity = [f / point.floor(1.0, math.inf) for f, point in zip(flops, points, strict=True)]
    edge = np.geomspace(min(intensity, default=1) / 2, max(intensity, default=100) * 2, 100)
    axes.plot(edge, np.minimum(edge * bytes_per_us, flops_per_us) / 1e3, color="black", label="bound")
    for name, color in (("body", "tab:orange"), ("fused", "tab:blue")):
        rates = [f / getattr(row, f"{name}_us") / 1e3 for f, row in zip(flops, low_rank, strict=True)]
        axes.scatter(intensity, rates, s=14, color=color, label=name, alpha=0.7)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench_kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--variants", nargs="+", default=["rw+lr"], help="rw, lr, rw+lr, rw+lr+pa3, lr+layernorm, ...")
    parser.add_argument("--layouts", nargs="+", default=["tokens"], choices=["tokens", "1d", "2d", "3d"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(_BYTES))
    parser.add_argument("--resnet50", action="store_true", help="rows and widths of ResNet-50's joins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.25, help="time for one point")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument("--plot", type=Path, help="draw a roofline to this file")
    args = parser.parse_args(argv)

    bytes_per_us, flops_per_us = copy_bandwidth(args.threads), multiply_add_rate(args.threads)
    rows = []
    head = f"{'rows':>6} {'D':>5} {'r':>3} {'variant':>12} {'layout':>6} {'dtype':>8}"
    head += f" {'fused µs':>10} {'body µs':>10} {'add µs':>10} {'bound µs':>10}"
    head += f" {'body/fused':>10} {'fused/add':>9} {'of bound':>8}"
    if not args.json:
        _say(
            f"{runtime.isa()}, {args.threads} threads: copy {bytes_per_us / 1e3:.1f} GB/s, "
            f"multiply-adds {flops_per_us / 1e3:.0f} GFLOP/s"
        )
        _say(head)
    for point in _grid(args):
        row = measure(point, args.threads, args.seconds, bytes_per_us, flops_per_us)
        rows.append(row)
        if not args.json:
            _say(
                f"{row.rows:6} {row.D:5} {row.rank:3} {row.variant:>12} {row.layout:>6} {row.dtype:>8}"
                f" {row.fused_us:10.1f} {row.body_us:10.1f} {row.add_us:10.1f} {row.bound_us:10.1f}"
                f" {row.body_over_fused:10.2f} {row.fused_over_add:9.2f} {row.bound_us / row.fused_us:8.0%}"
            )
    if args.json:
        machine = {"isa": runtime.isa(), "copy_gb_s": bytes_per_us / 1e3, "gflop_s": flops_per_us / 1e3}
        _say(json.dumps({**machine, "rows": [asdict(row) for row in rows]}))
    else:
        for line in _summary(rows):
            _say(line)
    if args.plot:
        _plot(rows, bytes_per_us, flops_per_us, args.plot)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
