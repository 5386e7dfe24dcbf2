"""An ONNX file as a training task: which inputs it takes, which value is trained on, what is written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from laurel_graph import runtime
from laurel_graph.errors import DataError, ModelError
from laurel_graph.onnx_model.tensors import inlined, tensor_array
from laurel_graph.onnx_model.walk import copy_of, tensors_of
from laurel_graph.passes.rewrite.head import AddHead, default_value, producers, with_output

from .data import InputSpec

LAST_AXIS_SOFTMAX = -1
LARGEST_INSIDE = 64
"""A constant first axis above this is no batch size, but heads times a batch, tokens or the like."""
LOGIT_LAYERS = {"cross_entropy": "Softmax", "bce": "Sigmoid"}
"""Losses that take logits, and the layer that turns logits into what a graph often ends with."""


def input_specs(model: ModelProto) -> tuple[InputSpec, ...]:
    """Returns the required inputs of *model* (initializers that are inputs as well have a default and do not count).

    Raises:
        ModelError: an input is no tensor of numbers.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for info in model.graph.input:
        if info.name in stored:
            continue
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type") or tensor.elem_type in (TensorProto.STRING, TensorProto.UNDEFINED):
            raise ModelError(f"input {info.name!r} is no tensor of numbers, so there is nothing to train on.")
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
            )
        specs.append(InputSpec(info.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape))
    return tuple(specs)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """Returns the batch size that the model is built for, or ``None`` if it is free.

    Raises:
        DataError: inputs with different fixed first axes, or without axes at all.
    """
    sizes = set()
    for spec in inputs:
        if spec.shape == ():
            raise DataError(f"input {spec.name!r} is a single number; its samples cannot be batched.")
        if spec.shape and isinstance(spec.shape[0], int):
            sizes.add(spec.shape[0])
    if len(sizes) > 1:
        raise DataError(f"the model's inputs have different fixed first axes: {sorted(sizes)}.")
    return sizes.pop() if sizes else None


def batch_inside(model: ModelProto, run: Callable[[int], list[NDArray[Any]]]) -> int | None:
    """Returns the one batch size that constants inside *model* hold, though its inputs are open; ``None`` if none do.

    Args:
        model: the model, with open first axes of its inputs.
        run: gives the outputs on so many samples, or raises ModelError.
    """

    def fits(size: int) -> bool:
        try:
            return all(array.ndim > 0 and len(array) == size for array in map(np.asarray, run(size)))
        except ModelError:
            return False

    sizes = _sizes_inside(model)
    if not sizes or fits(max(sizes) + 1):
        return None
    return next((size for size in sizes if fits(size)), None)


def _sizes_inside(model: ModelProto) -> list[int]:
    """Returns the sizes that first axes of outputs, and of what a constant reshapes, are fixed at."""
    graph = model.graph
    shapes = [info.type.tensor_type.shape.dim for info in graph.output]
    found = {dims[0].dim_value for dims in shapes if dims and dims[0].HasField("dim_value")}
    constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    constants |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT64}
    for node in graph.node:
        if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 and node.input[1] in constants:
            value = tensor_array(model, node.input[1])
            found |= {int(size) for size in value[:1]}
    return sorted(size for size in found if 0 < size <= LARGEST_INSIDE)


@dataclass(frozen=True)
class Trained:
    """The value that is trained on.

    Attributes:
        value: its name, an output of :attr:`model`.
        model: the model with everything added that is to be kept (a head).
        imported: the same with the value as an output as well, for the importer and for measuring.
        notes: sentences for the user.
    """

    value: str
    model: ModelProto
    imported: ModelProto
    notes: tuple[str, ...]


def choose_value(
    model: ModelProto, loss: str, output: str | None, head: int | None, sample: dict[str, NDArray[Any]], base_dir: Path
) -> Trained:
    """Decides which value of the graph is trained on, and adds a head if one is asked for.

    Args:
        model: what was read; not changed.
        loss: name of the loss: one that takes logits is put in front of a final Softmax or Sigmoid.
        output: name of an output or of any value of the main graph, or ``None`` for the only output.
        head: number of classes of a new head, or ``None``.
        sample: one batch of the data, to measure the width of the value that a head is put on.
        base_dir: folder of the model's file, for external data.

    Raises:
        ModelError: no such value; several outputs and none chosen; the value for a head is not ``(N, D)``.
    """
    kept = copy_of(model)
    notes: list[str] = []
    if head is not None:
        value = output or default_value(model)
        shape = value_shape(model, value, sample, base_dir)
        if len(shape) != 2:
            raise ModelError(f"a head goes on a value of shape (N, D); {value!r} has {shape}. Choose another --value.")
        chosen = AddHead(head, value)(kept, shape[1])
        notes.append(f"a head of {head} classes was put on {value!r}; its output is {chosen!r}.")
    else:
        outputs = [info.name for info in model.graph.output]
        if output is None and len(outputs) > 1:
            raise ModelError(f"the model has {len(outputs)} outputs: {', '.join(outputs)}; choose one with --value.")
        chosen = output or outputs[0]
        node = producers(model.graph.node).get(chosen)
        if node is not None and LOGIT_LAYERS.get(loss) == node.op_type and _is_last_axis(node):
            notes.append(f"{chosen!r} is a {node.op_type}; {loss} is applied to what enters it, {node.input[0]!r}.")
            chosen = node.input[0]
    imported = copy_of(kept)
    with_output(imported, chosen)
    return Trained(chosen, kept, imported, tuple(notes))


def _is_last_axis(node: onnx.NodeProto) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), LAST_AXIS_SOFTMAX)
    return axis in (LAST_AXIS_SOFTMAX, 1)


def value_shape(model: ModelProto, value: str, sample: dict[str, NDArray[Any]], base_dir: Path) -> tuple[int, ...]:
    """Returns the shape of *value* when the model runs on *sample*."""
    probe = copy_of(model)
    with_output(probe, value)
    return tuple(run(probe, [value], sample, base_dir)[0].shape)


def run(
    model: ModelProto | Path, outputs: list[str], feeds: dict[str, NDArray[Any]], base_dir: Path
) -> list[NDArray[Any]]:
    """Runs a model on ONNX Runtime's CPU provider; bfloat16 outputs are not supported by it."""
    return runtime.run(make_session(model, base_dir), feeds, outputs, "the model")


def make_session(model: ModelProto | Path, base_dir: Path) -> Any:
    """Returns a session for a file, or for a model in memory whose external data lie in *base_dir*."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors become ours
    runtime.register_added(options)
    if not isinstance(model, Path):
        options.add_session_config_entry(runtime.WEIGHTS_FOLDER, str(base_dir.resolve()))
    try:
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise runtime.refused("ONNX Runtime cannot load the model", error) from error


def loaded(model: ModelProto, base_dir: Path) -> ModelProto:
    """Returns *model* with its external data inside: itself if it has none."""
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors_of(model)):
        return model
    whole = copy_of(model)
    for tensor in tensors_of(whole):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(inlined(tensor, base_dir))
    return whole


def changed_tensors(before: ModelProto, after: ModelProto) -> tuple[str, ...]:
    """Returns the names of initializers and nodes that differ in their bits, in either direction."""

    def parts(model: ModelProto) -> dict[str, bytes]:
        held = {f"node {i}": node.SerializeToString() for i, node in enumerate(model.graph.node)}
        return held | {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}

    one, other = parts(before), parts(after)
    return tuple(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def float_sizes(model: ModelProto) -> dict[str, int]:
    """Returns initializer name to number of elements, for floating-point initializers of the main graph."""
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    return {t.name: int(np.prod(t.dims, dtype=np.int64)) for t in model.graph.initializer if t.data_type in floats}
