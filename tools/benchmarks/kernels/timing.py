"""How bench_kernels measures: sessions on bound arrays that take turns in one process, and the machine's speeds."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np

from laurel_graph import runtime
from laurel_graph.errors import KernelLibraryError
from laurel_graph.opset.schema import DOMAIN

from .points import Point, add_model, element_type, model_of, repeated, separate_model_of, skip_norm_model_of

_COPIED = 128 << 20
"""Bytes of an array that is copied to measure the memory."""

_ROUNDS = 1_000_000
"""Of a dozen multiply-adds each: some milliseconds."""

_TIMES = 3
"""Measurements of both rates at a probe."""

_REPEATED_ELEMENTS = 2 << 20
"""Of x in all nodes of a session: small nodes are repeated, as a model has many, so that neither calling the session
nor waking its threads is what is measured."""

_MOST_REPEATS = 16


@dataclass(frozen=True)
class Rates:
    """What a machine reaches: of a copy of arrays that no cache holds, and of multiply-adds on registers.

    Attributes:
        copy_gb_s: 1e9 bytes read and written in a second.
        gflop_s: 1e9 float32 operations in a second.
    """

    copy_gb_s: float
    gflop_s: float

    def higher(self, other: Rates) -> Rates:
        """Returns the higher of each."""
        return Rates(max(self.copy_gb_s, other.copy_gb_s), max(self.gflop_s, other.gflop_s))

    def bound_us(self, point: Point) -> float:
        """Returns the time below which no implementation of *point* can come."""
        return round(point.floor(self.copy_gb_s * 1e3, self.gflop_s * 1e3), 2)


@dataclass(frozen=True)
class Row(Point):
    """A point and what was measured there: medians in µs of one node, and medians of the ratios of neighbouring turns.

    Attributes:
        fused_over_add: and what follows: None where there is no such thing to compare with.
        one_thread_us: the fused kernel in a session of one thread; None if that is what was measured.
        separate_us: the fused residual, then ONNX Runtime's own norm.
        skip_norm_us: ONNX Runtime's fused norm of a plain residual.
    """

    threads: int
    copy_gb_s: float
    gflop_s: float
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
    """Returns a function that runs *model* once on inputs and outputs bound beforehand, repeated nodes as often as they
    are there."""
    import onnxruntime as ort

    if fused:
        names = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
        options = runtime.session_options(threads=threads, operators=names)
    else:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["CommonSubexpressionElimination"],
    )
    binding = session.io_binding()
    rng = np.random.default_rng(0)
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        array = rng.standard_normal(shape, dtype=np.float32)
        if tensor.elem_type == element_type("float16"):
            array = array.astype(np.float16)
        elif tensor.elem_type == element_type("bfloat16"):
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        held = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_aligned(array), tensor.elem_type)
        if value in model.graph.output:
            binding.bind_ortvalue_output(value.name, held)
        else:
            binding.bind_ortvalue_input(value.name, held)
    return lambda: session.run_with_iobinding(binding)


def _aligned(array: np.ndarray) -> np.ndarray:
    """Returns a copy that begins where ONNX Runtime's own arrays do: at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def interleaved(runners: Sequence[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Returns the times in µs of each runner over the same number of turns, taken one after the other."""
    clock = time.perf_counter
    for run in runners:
        run()
    times: list[list[float]] = [[] for _ in runners]
    stop = clock() + seconds
    while clock() < stop or len(times[0]) < 5:
        for run, found in zip(runners, times, strict=True):
            # What the others left in the caches is gone after two runs, not after one: some third-level caches keep
            # what they have seen before.
            run()
            run()
            before = clock()
            run()
            found.append((clock() - before) * 1e6)
    return times


def measure(point: Point, machine: Machine, seconds: float) -> Row:
    """Measures one point.

    Raises:
        KernelLibraryError: there is no library of fused kernels.
    """
    from laurel_graph.opset import functions

    if runtime.library_path() is None:
        raise KernelLibraryError("There are no fused kernels to measure: reinstall laurel-graph with a C++ compiler.")
    threads = machine.threads
    repeats = max(1, min(_MOST_REPEATS, _REPEATED_ELEMENTS // (point.rows * point.D)))

    def timed(model: Any, threads: int, fused: bool) -> Callable[[], None]:
        return runner(repeated(model, repeats), threads, fused)

    model = model_of(point)
    runners = {"fused": timed(model, threads, fused=True), "add": timed(add_model(point), threads, fused=False)}
    if threads > 1:
        runners["one_thread"] = timed(model, 1, fused=True)
    if point.normed and point.dtype == "float32":  # ONNX Runtime has not all of its norms in the 16-bit types
        runners["separate"] = timed(separate_model_of(point), threads, fused=True)
        runners["skip_norm"] = timed(skip_norm_model_of(point), threads, fused=False)
    functions.attach(model)
    runners["body"] = timed(model, threads, fused=False)
    before = machine.rates()
    found = interleaved(list(runners.values()), seconds)
    rates = before.higher(machine.rates())
    times = {name: [us / repeats for us in run] for name, run in zip(runners, found, strict=True)}
    medians: dict[str, Any] = {f"{name}_us": round(statistics.median(run), 2) for name, run in times.items()}
    ratios: dict[str, Any] = {}
    for upper, lower in (("body", "fused"), ("fused", "add"), ("one_thread", "fused"), ("separate", "fused"),
                         ("fused", "skip_norm")):  # fmt: skip
        if upper in times and lower in times:
            pairs = zip(times[upper], times[lower], strict=True)
            ratios[f"{upper}_over_{lower}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return Row(**asdict(point), threads=threads, bound_us=rates.bound_us(point), **asdict(rates), **medians, **ratios)


def _in_threads(work: Callable[[int], None], threads: int) -> float:
    """Returns the seconds until *work* has run in that many threads at once."""
    pool = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    before = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return time.perf_counter() - before


class Machine:
    """Measures what *threads* threads reach together right now.

    A shared machine is at times half as fast as at others, so the rates are measured beside every point.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._arrays = [(np.ones(_COPIED, np.uint8), np.zeros(_COPIED, np.uint8)) for _ in range(threads)]

    def rates(self) -> Rates:
        """Returns the highest of a few measurements of both rates."""
        done = [0.0] * self.threads

        def copy(i: int) -> None:
            source, target = self._arrays[i]
            np.copyto(target, source)

        def multiply_add(i: int) -> None:
            done[i] = runtime.multiply_adds(_ROUNDS)

        found = []
        for _ in range(_TIMES):
            copied = 2 * _COPIED * self.threads / _in_threads(copy, self.threads) / 1e9
            seconds = _in_threads(multiply_add, self.threads)
            found.append(Rates(copied, sum(done) / seconds / 1e9))
        return reduce(Rates.higher, found)
