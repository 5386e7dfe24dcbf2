"""Copies of a model that show what lies inside it: values brought out, graphs cut at their sites, weights nudged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from laurel_graph import runtime
from laurel_graph.errors import ModelError
from laurel_graph.formula import residual
from laurel_graph.onnx_model.tensors import array_of
from laurel_graph.onnx_model.walk import RANDOM, graphs_of
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.plain import shown_nodes
from laurel_graph.opset.schema import DOMAIN, Operator, read_specs

from .compare import EPSILON, as_array

Array = NDArray[Any]
Sample = Mapping[str, Array]

COMPUTED = "__computed"
"""Behind the name of a value at which a graph is cut: what the graph computes there, while readers get what is fed."""

_VECTOR_BYTES = 1 << 16
"""Vectors of more bytes than this are not nudged."""

_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization")
_FUSED_NORMS = ("SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_VECTOR_READERS = frozenset(("Add", "Sub", "Mul", "Div", "Conv", "Gemm", *_NORMS, *_FUSED_NORMS))
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def random_nodes(model: ModelProto) -> list[NodeProto]:
    """Returns the nodes that draw random numbers, those of subgraphs and functions too; a Dropout may, in training."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return [node for node in nodes if not node.domain and (node.op_type in RANDOM or _trains(node))]


def constant_sums(model: ModelProto, folder: str | Path) -> frozenset[str]:
    """Returns the sums of residuals that are the same whatever they are fed: α and β, for one, are both zero.

    Args:
        model: the model.
        folder: of its weight files.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    widths = {site: spec.width for site, spec in read_specs(model).items()}
    found = set()
    for node in shown_nodes(model):
        ours = LaurelNode.of(node)
        if ours is None or ours.site not in widths or not set(ours.tensors.values()) <= held.keys():
            continue
        tensors = {part: array_of(held[name], folder).astype(np.float64) for part, name in ours.tensors.items()}
        if all(array.any() for array in tensors.values()):
            continue  # nothing is switched off
        x, f, *previous = np.random.default_rng(0).standard_normal((2 + ours.operator.links, 3, widths[ours.site]))
        made = residual(x, f, tensors, previous, terms=ours.operator.terms, options=dict(ours.operator.options))
        if not np.ptp(made, axis=0).any():
            found.add(ours.output)
    return frozenset(found)


def _trains(node: NodeProto) -> bool:
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def seed_draws(model: ModelProto) -> bool:
    """Gives every draw of random numbers a seed of its own, made from the name of its output, in place.

    Returns:
        Whether there is any.
    """
    draws = random_nodes(model)
    for node in draws:
        if all(item.name != "seed" for item in node.attribute):
            seed = crc32(node.output[0].encode()) % (1 << 20)
            node.attribute.append(helper.make_attribute("seed", seed if _trains(node) else float(seed)))
    return bool(draws)


def made_in(model: ModelProto) -> dict[str, NodeProto]:
    """Returns value name to the node of the main graph that makes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def laurel_values(model: ModelProto) -> dict[str, Operator]:
    """Returns what the ``ai.laurel`` nodes of the main graph make, with their operators."""
    found: dict[str, Operator] = {}
    for node in model.graph.node:
        if (ours := LaurelNode.of(node)) is not None:
            found.update((name, ours.operator) for name in node.output if name)
    return found


def bring_out(model: ModelProto, names: Sequence[str]) -> None:
    """Makes *names* graph outputs, in place; those that are outputs already stay."""
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)


def cut(model: ModelProto, fed: Mapping[str, Array]) -> None:
    """Lets everything that reads a value of *fed* read a graph input of that name, in place.

    What the graph computes itself comes out under the name with :data:`COMPUTED` behind it.
    """
    made = made_in(model)
    for name, array in fed.items():
        node = made[name]
        node.output[list(node.output).index(name)] = name + COMPUTED
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
    outputs = [value for value in model.graph.output if value.name not in fed]
    infos = [value for value in model.graph.value_info if value.name not in fed]
    for field, kept in ((model.graph.output, outputs), (model.graph.value_info, infos)):
        del field[:]
        field.extend(kept)
    bring_out(model, [name + COMPUTED for name in fed])


def open_vectors(model: ModelProto, folder: Path) -> dict[str, Array]:
    """Turns biases and norm scales into graph inputs, in place; returns their values.

    Args:
        model: the model.
        folder: where its external weights lie.
    """
    readers = {
        name
        for node in model.graph.node
        if node.op_type in _VECTOR_READERS or node.domain == DOMAIN
        for name in node.input[1:]
    }
    inputs = {value.name for value in model.graph.input}
    opened = {}
    for tensor in model.graph.initializer:
        if (
            tensor.name in readers
            and tensor.name not in inputs
            and tensor.data_type in _FLOATS
            and len(tensor.dims) == 1
            and 1 < tensor.dims[0] <= _VECTOR_BYTES // 4
        ):
            opened[tensor.name] = numpy_helper.to_array(tensor, str(folder))
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in opened]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return opened


def nudged(feeds: Sample, ulps: float, rng: np.random.Generator, precision: float = 0.0) -> dict[str, Array]:
    """Returns the floating-point arrays of *feeds* with each number moved by up to *ulps* units in its last place.

    Args:
        feeds: arrays by name.
        ulps: how far numbers are moved.
        rng: the source of the draw.
        precision: a unit in the last place is at least this share of a number: the machine epsilon of what the model
            computes in, where that is coarser than its inputs.
    """
    return {name: _nudge(array, ulps, rng, precision) for name, array in feeds.items()}


def _nudge(array: Array, ulps: float, rng: np.random.Generator, precision: float) -> Array:
    epsilon = EPSILON.get(array.dtype.name)
    if epsilon is None:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        moved = array.astype(np.float64) * (1 + max(epsilon, precision) * ulps * rng.uniform(-1, 1, array.shape))
        return np.asarray(moved, array.dtype)  # of a single number NumPy makes no array


class Runner:
    """A session of a model of a file, or of a copy that was made of it.

    Args:
        path: the file, beside which its weights lie.
        model: run this in place of what the file holds.
        optimize: whether ONNX Runtime optimises the graph.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, model: ModelProto | None, optimize: bool) -> None:
        self.path = path
        self._open = partial(runtime.session, path, optimize=optimize, model=model)
        self.session = self._open()
        self._draws, self._used = model is not None and bool(random_nodes(model)), False
        self.inputs = [value.name for value in self.session.get_inputs()]
        initializers = {value.name for value in self.session.get_overridable_initializers()}
        self.accepted = set(self.inputs) | initializers
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, feeds: Sample, outputs: Collection[str] | None = None) -> dict[str, Array]:
        """Returns output name to array; a sequence comes as one row of all its numbers.

        Raises:
            ModelError: an input is missing, or the model does not run on the sample.
        """
        if missing := sorted(set(self.inputs) - set(feeds)):
            raise ModelError(
                f"{self.path}: the sample lacks the input {missing[0]!r}; it has {', '.join(sorted(feeds))}."
            )
        if self._draws and self._used:  # a session goes on in its row of random numbers; a new one starts it again
            self.session = self._open()
        self._used = True
        names = [name for name in self.outputs if outputs is None or name in outputs]
        given = {name: array for name, array in feeds.items() if name in self.accepted}
        results = runtime.run(self.session, given, names, self.path)
        return {name: as_array(value) for name, value in zip(names, results, strict=True)}
