"""Latency, load time and memory of ONNX files, measured so that two files can be compared on a machine that is in use.

The models take turns run by run, so that whatever slows the machine down slows all of them; a ratio is the median over
the turns of one model's time over the other's in the same turn. Threads of one session must not keep a core busy while
another one runs, so their spinning ends with each run. Load time and peak memory come from fresh processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph import onnx_file, runtime
from laurel_graph.errors import ModelError
from laurel_graph.model_folder import graph_path
from laurel_graph.passes.verify import read_samples
from laurel_graph.passes.verify.drawing import runnable
from laurel_graph.passes.verify.probe import Runner
from laurel_graph.steps import tell

NOISE = 0.1
"""How far apart, over the ratio, the quartiles of a ratio may be for it to say something."""
SLOWER = 1.02
"""The ratio from which one model is called slower than another."""

_PROBE = """
import sys, time, json, resource
import numpy as np, onnxruntime
from laurel_graph import runtime
if runtime.used_operators(sys.argv[1]):
    runtime.session_options()
before = time.perf_counter()
session = runtime.session(sys.argv[1], threads=int(sys.argv[2]))
load = time.perf_counter() - before
with np.load(sys.argv[3]) as arrays:
    feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(json.loads(arrays["names"].tobytes()))}
session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
try:  # a child's ru_maxrss starts at the size of the process that started it, where there is a better figure take that
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([load, peak / 1024]))
"""


@dataclass(frozen=True)
class BenchRow:
    """One model of a measurement.

    Attributes:
        model: the file.
        batch: the batch size of its inputs.
        threads: threads of the session.
        runs: counted runs.
        median_ms: median time of one run.
        quartiles_ms: first and third quartile.
        ratio: median of the paired ratios to the model compared against; ``None`` without one.
        ratio_quartiles: their first and third quartile.
        load_ms: median time to create the session in a fresh process.
        load_ratio: ``load_ms`` over that of the other model.
        peak_mb: largest resident memory of a fresh process that loads the model and runs it once.
        memory_ratio: ``peak_mb`` over that of the other model.
    """

    model: str
    batch: int
    threads: int
    runs: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    load_ms: float | None = None
    load_ratio: float | None = None
    peak_mb: float | None = None
    memory_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self)


def bench(
    models: Sequence[str | Path],
    against: str | Path | None = None,
    *,
    threads: int = 2,
    runs: int = 40,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    cpu_time: bool = False,
    fresh: int = 3,
) -> list[BenchRow]:
    """Measures *models*, and *against* with them.

    Args:
        models: ONNX files or model folders with the same inputs; where names differ they are matched by place.
        against: the file that ratios are taken to, by default the first of several; it comes first in the answer.
        threads: threads of every session.
        runs: counted runs of each model, after warm-up.
        batch: batch size of drawn inputs.
        sizes: sizes of symbolic dims of drawn inputs.
        data: an ``.npz`` file with the inputs instead.
        seed: seed of drawn inputs.
        cpu_time: take the processor time of the process instead of the clock: for one thread on a busy machine.
        fresh: fresh processes per model for load time and memory; 0 leaves both out.

    Raises:
        ModelError: a file cannot be read, one does not run on the inputs, or *runs*, *threads* or *batch* is below 1.
    """
    if runs < 1 or threads < 1 or batch < 1:
        raise ModelError(f"threads, runs and batch must be at least 1, found {threads}, {runs} and {batch}.")
    models = list(models)
    if against is None and len(models) > 1:
        against, *models = models
    elif against is not None and len(models) > 1:
        models = [model for model in models if Path(model) != Path(against)]
    given = ([against] if against is not None else []) + models
    paths = [graph_path(model) for model in given]
    for path in paths:
        if not Path(path).is_file():
            raise ModelError(f"no such file: {path}; expected an ONNX model.")
    first, *others = (Runner(path, None, True) for path in paths)
    feeds = _feeds(first, data, batch, seed, sizes)
    for other in others:
        feeds |= _by_place(other, first, feeds)
        other.run(feeds)  # says which one does not take them
    times = latencies(paths, feeds, threads=threads, runs=runs, cpu_time=cpu_time)
    probes = fresh_processes(paths, feeds, threads, fresh)
    rows = []
    for model, taken, (load, peak) in zip(given, times, probes, strict=True):
        row = BenchRow(str(model), batch, threads, runs, *_spread([t * 1e3 for t in taken]))
        changes: dict[str, Any] = {"load_ms": load, "peak_mb": peak}
        if against is not None:
            changes["ratio"], changes["ratio_quartiles"] = _spread(
                [a / b for a, b in zip(taken, times[0], strict=True)]
            )
            if load and peak and probes[0][0] and probes[0][1]:
                changes |= {"load_ratio": load / probes[0][0], "memory_ratio": peak / probes[0][1]}
        rows.append(BenchRow(**{**asdict(row), **changes}))
    return rows


def findings(rows: Sequence[BenchRow], names: Mapping[str, str] | None = None) -> list[str]:
    """Returns what the ratios of a measurement say in words: which model is slower, and which ratio is noise.

    A model counts as slower where three of four paired runs say so and the median does by more than :data:`SLOWER`; a
    ratio is noise where its quartiles are further apart than :data:`NOISE` of it.

    Args:
        rows: of :func:`bench`; the first one is what ratios are taken to.
        names: what to call the models; their file names by default.
    """
    known = names or {}
    found = []
    for row in rows[1:]:
        if row.ratio is None or row.ratio_quartiles is None:
            continue
        (low, high), base = row.ratio_quartiles, rows[0]
        this, other = (known.get(each.model, Path(each.model).name) for each in (row, base))
        figures = f"{row.median_ms:.4g} ms against {base.median_ms:.4g} ms, ratio {row.ratio:.3f}"
        if high - low > NOISE * row.ratio:
            found.append(
                f"{this} over {other}: {figures}, is noise: half of the paired runs lie outside {low:.3f} to "
                f"{high:.3f}. Measure on a quiet machine, with more runs, or in processor time of one thread."
            )
        elif low > 1 and row.ratio > SLOWER:
            found.append(f"{this} is slower than {other}: {figures} (quartiles {low:.3f} to {high:.3f}).")
    return found


def _feeds(
    runner: Runner, data: str | Path | None, batch: int, seed: int, sizes: Mapping[str, int] | None
) -> dict[str, NDArray[Any]]:
    """Returns inputs on which a model was seen to run."""
    if data is None:
        return dict(runnable(onnx_file.read(runner.path), runner.run, batch=batch, seed=seed, sizes=sizes))
    feeds = dict(read_samples(data)[0])
    runner.run(feeds)
    return feeds


def _by_place(other: Runner, first: Runner, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the inputs of *other* under its own names, where they are called otherwise than those of *first*.

    Raises:
        ModelError: it takes another number of inputs.
    """
    if set(other.inputs) <= set(feeds):
        return {}
    if len(other.inputs) != len(first.inputs):
        raise ModelError(
            f"{other.path} takes the inputs {', '.join(other.inputs)}, but {first.path} takes "
            f"{', '.join(first.inputs)}: expected models with the same inputs, by name or else by place."
        )
    return {name: feeds[known] for name, known in zip(other.inputs, first.inputs, strict=True) if name not in feeds}


def latencies(
    paths: Sequence[Path],
    feeds: Mapping[str, NDArray[Any]],
    *,
    threads: int = 2,
    runs: int = 40,
    warm: int = 3,
    cpu_time: bool = False,
    kernels: Sequence[bool] | None = None,
) -> list[list[float]]:
    """Returns the seconds of *runs* runs for each model, the models taking turns in random order.

    *kernels* says for each model whether the fused kernels may run; without them function bodies do.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    sessions = [
        _session(path, threads, fused) for path, fused in zip(paths, kernels or [True] * len(paths), strict=True)
    ]
    wanted = [{value.name: feeds[value.name] for value in session.get_inputs()} for session in sessions]
    outputs = [[value.name for value in session.get_outputs()] for session in sessions]
    for session, names, feed in zip(sessions, outputs, wanted, strict=True):
        for _ in range(warm):
            session.run(names, feed)
    taken: list[list[float]] = [[] for _ in paths]
    order = np.random.default_rng(0)
    for run in range(runs):
        tell("runs", run, runs)
        for i in order.permutation(len(paths)):  # whoever runs twice in a row finds warm caches: chance is fair
            before = clock()
            sessions[i].run(outputs[i], wanted[i])
            taken[i].append(clock() - before)
    return taken


def _session(path: Path, threads: int, kernels: bool = True) -> Any:
    import onnxruntime

    options = runtime.session_options(threads, operators=runtime.used_operators(path) if kernels else ())
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def executed_nodes(path: Path, feeds: Mapping[str, NDArray[Any]]) -> Counter[str]:
    """Returns how many nodes of each type run after ONNX Runtime's own optimisation, from its profile of one run."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = runtime.session_options(1, operators=runtime.used_operators(path))
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return Counter(event["args"]["op_name"] for event in nodes)


def _spread(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Returns the median and the quartiles."""
    low, high = np.percentile(values, (25, 75))
    return statistics.median(values), (float(low), float(high))


def fresh_processes(
    paths: Sequence[Path], feeds: Mapping[str, NDArray[Any]], threads: int, count: int
) -> list[tuple[float | None, float | None]]:
    """Returns median load time in ms and peak memory in MiB of each file in *count* fresh processes, taken in turns."""
    if count < 1:
        return [(None, None)] * len(paths)
    taken: list[list[tuple[float, float]]] = [[] for _ in paths]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        names = np.frombuffer(json.dumps(list(feeds)).encode(), np.uint8)  # no names of members: any text is a name
        np.savez(inputs, *feeds.values(), names=names)
        for turn in range(count):
            tell("fresh processes", turn, count)
            for path, found in zip(paths, taken, strict=True):
                command = [sys.executable, "-c", _PROBE, str(path), str(threads), str(inputs)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    error = done.stderr.strip().splitlines()[-1]
                    raise ModelError(f"{path} does not load in a fresh process: {error}")
                load, peak = json.loads(done.stdout.splitlines()[-1])
                found.append((load * 1e3, peak))
    return [(statistics.median(a for a, _ in found), statistics.median(b for _, b in found)) for found in taken]
