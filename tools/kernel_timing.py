"""How bench_kernels measures: sessions on bound arrays that take turns in one process, and the machine's speeds."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from laurel_graph import runtime
from laurel_graph.errors import KernelLibraryError
from laurel_graph.opset.schema import DOMAIN
from laurel_graph.tools.kernel_points import (
    Point,
    add_model,
    element_type,
    model_of,
    separate_model_of,
    skip_norm_model_of,
)


@dataclass(frozen=True)
class Row(Point):
    """A point and what was measured there: medians in µs, and medians of the ratios of neighbouring turns.

    Attributes:
        fused_over_add: and what follows: None where there is no such thing to compare with.
        one_thread_us: the fused kernel in a session of one thread; None if that is what was measured.
        separate_us: the fused residual, then ONNX Runtime's own norm.
        skip_norm_us: ONNX Runtime's fused norm of a plain residual.
    """

    threads: int
    fused_us: float
    body_us: float
    add_us: float
    bound_us: float
    body_over_fused: float
    fused_over_add: float
    one_thread_us: float | None = None
    one_thread_over_fused: float | None = None
    separate_us: float | None = None
    separate_over_fused: float | None = None
    skip_norm_us: float | None = None
    fused_over_skip_norm: float | None = None


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
        if tensor.elem_type == element_type("float16"):
            held = ort.OrtValue.ortvalue_from_numpy(array.astype(np.float16))
        elif tensor.elem_type == element_type("bfloat16"):
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
    runners = {"fused": runner(model, threads, fused=True), "add": runner(add_model(point), threads, fused=False)}
    if threads > 1:
        runners["one_thread"] = runner(model, 1, fused=True)
    if point.normed and point.dtype == "float32":  # ONNX Runtime has not all of its norms in the 16-bit types
        runners["separate"] = runner(separate_model_of(point), threads, fused=True)
        runners["skip_norm"] = runner(skip_norm_model_of(point), threads, fused=False)
    functions.attach(model)
    runners["body"] = runner(model, threads, fused=False)
    times = dict(zip(runners, interleaved(list(runners.values()), seconds), strict=True))
    medians: dict[str, Any] = {f"{name}_us": round(statistics.median(found), 2) for name, found in times.items()}
    ratios: dict[str, Any] = {}
    for upper, lower in (("body", "fused"), ("fused", "add"), ("one_thread", "fused"), ("separate", "fused"),
                         ("fused", "skip_norm")):  # fmt: skip
        if upper in times and lower in times:
            pairs = zip(times[upper], times[lower], strict=True)
            ratios[f"{upper}_over_{lower}"] = round(statistics.median(a / b for a, b in pairs), 3)
    bound_us = round(point.floor(bytes_per_us, flops_per_us), 2)
    return Row(**asdict(point), threads=threads, bound_us=bound_us, **medians, **ratios)


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
