"""Two models side by side on ONNX Runtime: the largest difference of every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph import onnx_file, runtime
from laurel_graph.errors import ModelError
from laurel_graph.onnx_graph import RANDOM, graphs_of
from laurel_graph.samples import sample_inputs

TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""What counts as equal, by the type of an output: largest difference over the output's scale."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of two models is apart.

    Attributes:
        output: its name in the first model.
        dtype: its element type.
        shape: its shape on the last sample.
        max_abs: largest absolute difference over all samples; NaN where only one of the two is NaN.
        max_rel: ``max_abs`` over the largest magnitude of the first model's output.
        same_bits: every element has the same bits.
        tolerance: what ``max_rel`` is held against.
    """

    output: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    same_bits: bool
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        models: the two files.
        samples: how many samples were run.
        outputs: one difference per output.
    """

    models: tuple[str, str]
    samples: int
    outputs: tuple[OutputDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.equal for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel verify --json``."""
        outputs = [{**asdict(output), "equal": output.equal} for output in self.outputs]
        return {"models": list(self.models), "samples": self.samples, "equal": self.equal, "outputs": outputs}


def difference(
    name: str, expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]], tolerance: float | None = None
) -> OutputDifference:
    """Compares one output over several samples; shapes that differ count as an infinite difference."""
    dtype = expected[0].dtype
    if tolerance is None:
        tolerance = TOLERANCE.get(dtype.name, 0.0)
    worst, scale, same = 0.0, 0.0, True
    for one, other in zip(expected, actual, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            worst, same = float("inf"), False
            continue
        same = same and one.tobytes() == other.tobytes()
        if one.size == 0:
            continue
        if not (np.issubdtype(one.dtype, np.number) or one.dtype.name == "bfloat16"):
            worst = max(worst, 0.0 if np.array_equal(one, other) else float("inf"))
            continue
        a, b = one.astype(np.float64), other.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        worst = max(worst, float(np.nan_to_num(gap.max(), nan=np.inf)))
        scale = max(scale, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
    relative = worst / scale if scale > 0 else (0.0 if worst == 0 else float("inf"))
    return OutputDifference(name, dtype.name, tuple(expected[0].shape), worst, relative, same, tolerance)


def read_samples(path: str | Path) -> list[dict[str, NDArray[Any]]]:
    """Reads one sample from an ``.npz`` file whose arrays are named after the model's inputs.

    Raises:
        ModelError: missing, or not an ``.npz`` file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [{name: arrays[name] for name in arrays.files}]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such data file; expected an .npz with one array per model input.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not an .npz file of arrays named after the model's inputs ({error}).") from error


def verify(
    model_a: str | Path,
    model_b: str | Path,
    data: str | Path | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    *,
    tolerance: float | None = None,
    batches: Sequence[int] = (1, 7),
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    optimize: bool | tuple[bool, bool] = True,
) -> VerifyReport:
    """Runs two ONNX files on the same inputs and compares every output.

    Nodes that draw random numbers (of a variational or diffusion model) draw the same ones in both models, if their
    outputs have the same names.

    Args:
        model_a: the reference.
        model_b: the other one; it must have the inputs and outputs of the first.
        data: an ``.npz`` file with one array per input, or samples in memory; ``None`` draws seeded ones.
        tolerance: largest difference over the output's scale that counts as equal; by default 1e-5 in float32 and
            float64, 5e-3 in float16, 4e-2 in bfloat16, and 0 for anything else.
        batches: the batch sizes of drawn samples (one only, where the model fixes it).
        seed: seed of drawn samples.
        sizes: sizes of symbolic dims of drawn samples.
        optimize: run with ORT's graph optimisations; a pair says it for each of the two.

    Raises:
        ModelError: a file cannot be read, inputs or outputs differ, or a sample does not fit.
    """
    path_a, path_b = Path(model_a), Path(model_b)
    proto, other = onnx_file.read(path_a), onnx_file.read(path_b)
    if isinstance(data, (str, Path)):
        samples: list[Mapping[str, NDArray[Any]]] = list(read_samples(data))
    elif data is not None:
        samples = list(data)
    else:
        drawn = [sample_inputs(proto, batch=batch, seed=seed, sizes=sizes) for batch in batches]
        shapes = [tuple(array.shape for array in sample.values()) for sample in drawn]
        samples = [sample for i, sample in enumerate(drawn) if shapes[i] not in shapes[:i]]
    if not samples:
        raise ModelError("no samples to compare on: data is empty.")
    of_a, of_b = optimize if isinstance(optimize, tuple) else (optimize, optimize)
    first, second = _session(path_a, proto, of_a), _session(path_b, other, of_b)
    names = [output.name for output in first.get_outputs()]
    others = [output.name for output in second.get_outputs()]
    if len(names) != len(others):
        raise ModelError(f"{path_a} has the outputs {names} and {path_b} has {others}: expected the same number.")
    order = names if set(names) == set(others) else others
    expected = [_run(first, path_a, names, sample) for sample in samples]
    actual = [_run(second, path_b, order, sample) for sample in samples]
    outputs = tuple(
        difference(name, [run[i] for run in expected], [run[i] for run in actual], tolerance)
        for i, name in enumerate(names)
    )
    return VerifyReport((str(path_a), str(path_b)), len(samples), outputs)


def _session(path: Path, model: onnx.ModelProto, optimize: bool) -> Any:
    """Returns a session of the model of a file, in which every draw of random numbers has a seed of its own."""
    draws = [
        node
        for graph in graphs_of(model.graph)
        for node in graph.node
        if node.op_type in RANDOM and not node.domain and all(item.name != "seed" for item in node.attribute)
    ]
    if not draws:
        return runtime.session(path, optimize=optimize)
    for node in draws:
        node.attribute.append(onnx.helper.make_attribute("seed", float(crc32(node.output[0].encode()) % (1 << 20))))
    return runtime.session(path, optimize=optimize, model=model)


def _run(session: Any, path: Path, outputs: Sequence[str], sample: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    wanted = {value.name for value in session.get_inputs()}
    if missing := sorted(wanted - set(sample)):
        raise ModelError(f"{path}: the sample lacks the input {missing[0]!r}; it has {sorted(sample)}.")
    return runtime.run(session, {name: array for name, array in sample.items() if name in wanted}, outputs, path)
