"""Is the imported module what ONNX Runtime runs? To be asked before training, on the user's own sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from torch import fx

from .. import runtime
from ..errors import ModelError, VerificationError
from ..onnx_file import read
from ..torch_residual.import_record import META, ImportRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference relative to the output's scale that :func:`check` takes, by the element type of the file."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of the module is from ONNX Runtime's.

    Attributes:
        output: the ONNX output's name.
        absolute: the largest absolute difference.
        relative: the same, over the largest expected value.
    """

    output: str
    absolute: float
    relative: float


def check(
    module: fx.GraphModule,
    inputs: Mapping[str, Any] | Sequence[Any],
    model: str | Path | ModelProto | None = None,
    tolerance: float | None = None,
) -> tuple[OutputDifference, ...]:
    """Runs the module and ONNX Runtime on the same inputs and returns the difference of each output.

    Args:
        module: what :func:`import_onnx` returned, not trained yet.
        inputs: arrays or tensors in the order of the graph's inputs, or by their ONNX names.
        model: the ONNX model; by default the file the module was imported from.
        tolerance: largest difference relative to each output's scale; by default after the file's element types.

    Raises:
        VerificationError: an output differs by more; the message names the first node that does.
        ModelError: the model is not known any more, or an input is missing.
    """
    record: ImportRecord = module.meta[META]
    given = model if model is not None else record.source
    if given is None:
        raise ModelError("the module was imported from memory: give check() the model it came from.")
    feeds = _feeds(record, inputs)
    limit = _tolerance(given) if tolerance is None else tolerance
    expected = _run_onnx(given, feeds, None)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            found = module(*(_to_torch(feeds[name]) for name in record.inputs))
        found = found if isinstance(found, tuple) else (found,)
        report = tuple(
            _difference(name, one, other) for name, one, other in zip(record.outputs, found, expected, strict=True)
        )
        worst = max(report, key=lambda d: d.relative)
        if not worst.relative <= limit:
            first = _first_difference(module, record, given, feeds, limit)
            raise VerificationError(
                f"Output {worst.output!r} differs from ONNX Runtime's by {worst.relative:.3g} of its scale, allowed is "
                f"{limit:.3g}. {first} Please report this model; do not train on it."
            )
    finally:
        module.train(was_training)
    return report


def _feeds(record: ImportRecord, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        inputs = dict(zip(record.inputs, inputs, strict=False))
    missing = [name for name in record.inputs if name not in inputs]
    if missing:
        raise ModelError(f"the inputs {', '.join(missing)} are missing; expected {', '.join(record.inputs)}.")
    return {name: _to_numpy(inputs[name]) for name in record.inputs}


def _to_numpy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_numpy(item) for item in value]
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _to_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_torch(item) for item in value]
    return torch.from_numpy(np.ascontiguousarray(value)).reshape(np.shape(value))


def _tolerance(given: str | Path | ModelProto) -> float:
    model = given if isinstance(given, ModelProto) else read(given)
    kinds = {t.data_type for t in model.graph.initializer}
    kinds |= {i.type.tensor_type.elem_type for i in [*model.graph.input, *model.graph.output]}
    names = {
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.FLOAT16: "float16",
        TensorProto.FLOAT: "float32",
        TensorProto.DOUBLE: "float64",
    }
    return next((TOLERANCE[name] for kind, name in names.items() if kind in kinds), TOLERANCE["float32"])


def _run_onnx(
    given: str | Path | ModelProto, feeds: dict[str, Any], outputs: list[str] | None, folder: str = ""
) -> list[Any]:
    """Runs the model as it is written, without optimisation; returns the outputs asked for.

    *folder* is where a model in memory has its external weights: they are read from there, never copied into it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if folder:
        options.add_session_config_entry(runtime.WEIGHTS_FOLDER, folder)
    content = given.SerializeToString() if isinstance(given, ModelProto) else str(given)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return list(session.run(outputs, feeds))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise runtime.refused("ONNX Runtime cannot load or run the model", error) from error


def _difference(name: str, found: Any, expected: Any) -> OutputDifference:
    if isinstance(expected, list):
        parts = [_difference(name, f, e) for f, e in zip(found, expected, strict=True)]
        return max(parts, key=lambda d: d.relative, default=OutputDifference(name, 0.0, 0.0))
    wanted: NDArray[Any] = np.asarray(expected, np.float64)
    actual = np.asarray(found.detach().cpu().numpy(), np.float64)
    if actual.shape != wanted.shape:
        return OutputDifference(name, np.inf, np.inf)
    same = (actual == wanted) | (np.isnan(actual) & np.isnan(wanted))
    gap = np.where(same, 0.0, np.abs(actual - wanted))
    absolute = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
    scale = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))) or 1.0
    return OutputDifference(name, absolute, absolute / scale)


class _Recorder(fx.Interpreter):
    """Runs a module node by node and keeps the values that have a name in the ONNX graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = n.meta.get("onnx_value")
        if name is not None and isinstance(result, torch.Tensor):
            self.values[name.text] = result
        return result


def _first_difference(
    module: fx.GraphModule, record: ImportRecord, given: str | Path | ModelProto, feeds: dict[str, Any], limit: float
) -> str:
    """Returns a sentence about the first node whose output differs."""
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(*(_to_torch(feeds[name]) for name in record.inputs))
    if isinstance(given, ModelProto):
        model, folder = deepcopy(given), ""
    else:
        model, folder = read(given), str(Path(given).absolute().parent)
    nodes = {name: node for node in model.graph.node for name in node.output}
    names = [name for node in model.graph.node for name in node.output if name in recorder.values]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    expected = _run_onnx(model, feeds, names, folder)
    for name, wanted in zip(names, expected, strict=True):
        difference = _difference(name, recorder.values[name], wanted)
        if not difference.relative <= limit:
            node = nodes[name]
            label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            return (
                f"The first node that differs is {node.name or name!r} ({label}), output {name!r}: "
                f"{difference.relative:.3g} of its scale."
            )
    return "No single node differs by that much."
