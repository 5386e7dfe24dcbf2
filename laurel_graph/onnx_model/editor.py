"""Reading and editing one ONNX graph in place: who makes a value, who reads it, which values are constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .element_range import UnfitError, fits
from .shapes import Types, tensor_types
from .tensors import inlined
from .walk import attribute_of, captured_names, inner_names

Array = NDArray[Any]

FLOAT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
_ELEMENT_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float64": onnx.TensorProto.DOUBLE,
}
_NO_ARRAYS = ("value_string", "value_strings", "sparse_value")
_OVERRIDABLE = 4
"""The first ONNX IR version in which a run may be given another value for an initializer that is an input too."""
_EVALUATED = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "ConstantOfShape")


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    """Returns a copy of a node that may be edited; a Constant, which may be large and is not, stays itself."""
    if node.op_type == "Constant" and not node.domain:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Sets an attribute of *node*, replacing the one of that name."""
    for i, item in enumerate(node.attribute):
        if item.name == name:
            del node.attribute[i]
            break
    node.attribute.append(onnx.helper.make_attribute(name, value))


class GraphEditor:
    """An index over the main graph of a model that stays right while nodes and constants are added or taken away.

    The model changes in :meth:`finish` alone: until then its nodes are copies. Node order is not kept up to date while
    editing; :meth:`finish` sorts the nodes, drops what nobody reads and gives scaled copies the name of the tensor they
    stand for once that is unused.

    Attributes:
        model: the model that is edited in place.
        graph: its main graph.
        base: the folder against which locations of external weights are read.
        overridable: initializers that are inputs too, so that a run may be given others: no constants.

    Args:
        types: what is known of the model's values already; by default shape inference finds it out.
    """

    def __init__(self, model: onnx.ModelProto, base: Path | None = None, types: Types | None = None) -> None:
        self.model, self.graph, self.base = model, model.graph, base
        self.nodes: list[onnx.NodeProto] = [_copy(node) for node in model.graph.node]
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.sparse = {tensor.values.name for tensor in model.graph.sparse_initializer}
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.producer: dict[str, onnx.NodeProto] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.captured: set[str] = set()
        listed = self.inputs & self.initializers.keys()
        self.overridable = listed if model.ir_version >= _OVERRIDABLE else set()
        self._names = self.inputs | set(self.initializers) | self.sparse | self.outputs
        self._copies: dict[tuple[Any, ...], str] = {}
        self._copy_of: dict[str, str] = {}
        self._evaluated: dict[str, Array | None] = {}
        self._removed: set[int] = set()
        for node in self.nodes:
            self._index(node)
        self._types = dict(tensor_types(model)[0] if types is None else types)

    @property
    def types(self) -> Types:
        """What is known of every value, those added while editing included."""
        return self._types

    def _index(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            if name:
                self.producer[name] = node
                self._names.add(name)
        for name in set(node.input):
            if name:
                self._consumers[name].append(node)
                self._names.add(name)
        captured = captured_names(node)
        self.captured |= captured
        self._names |= captured | inner_names(node)

    @property
    def opset(self) -> int:
        """The model's version of the default operator set."""
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def __iter__(self) -> Iterator[onnx.NodeProto]:
        return (node for node in list(self.nodes) if id(node) not in self._removed)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Returns the nodes of the main graph that read *name*, each once."""
        return [n for n in self._consumers.get(name, []) if id(n) not in self._removed and name in n.input]

    def is_visible(self, name: str) -> bool:
        """Whether *name* is seen from outside the main graph's nodes: an output, or read in a subgraph."""
        return name in self.outputs or name in self.captured

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """Returns the one node that reads *name*, if there is just one and nothing outside sees it."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and not self.is_visible(name) else None

    def elem_type(self, name: str) -> int:
        """Returns the element type of a value, 0 if unknown."""
        if name in self.initializers:
            return int(self.initializers[name].data_type)
        dtype = self._types[name][1] if name in self._types else None
        return _ELEMENT_TYPES.get(dtype or "", 0)

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Returns the shape of a value as far as it is known: an int, a symbol's name or ``None`` per axis."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        return self._types[name][0] if name in self._types else None

    def rank(self, name: str) -> int | None:
        """Returns the number of axes of a value, or ``None`` if unknown."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def is_constant(self, name: str) -> bool:
        """Whether a value is the same in every run, and :meth:`constant` knows it."""
        while name not in self.initializers:
            node = self.producer.get(name)
            if node is None:
                return False
            if node.op_type == "Constant" and node.domain == "":
                return node.attribute[0].name not in _NO_ARRAYS
            if node.op_type not in _EVALUATED or node.domain or not all(map(self.is_constant, node.input[1:])):
                return False
            name = node.input[0]
        return name not in self.overridable

    def is_inference_norm(self, node: onnx.NodeProto) -> bool:
        """Whether a BatchNormalization is the same diagonal linear map in every run."""
        constants = all(map(self.is_constant, node.input[1:5]))
        return constants and not attribute_of(node, "training_mode", 0) and len(node.output) == 1

    def constant(self, name: str) -> Array | None:
        """Returns a constant's value: an initializer, a Constant node, or a cast, transpose or reshape of one."""
        if name not in self._evaluated:
            self._evaluated[name] = self._evaluate(name) if name and self.is_constant(name) else None
        return self._evaluated[name]

    def _evaluate(self, name: str) -> Array | None:
        if name in self.initializers:
            return self._array(self.initializers[name])
        node = self.producer[name]
        if node.op_type == "Constant":
            item = node.attribute[0]
            value = onnx.helper.get_attribute_value(item)
            if isinstance(value, onnx.TensorProto):
                return self._array(value)
            return np.asarray(value, np.float32 if item.name.startswith("value_float") else np.int64)
        data = self.constant(node.input[0])
        if data is None or node.op_type == "Identity":
            return data
        if node.op_type == "ConstantOfShape":
            fill = attribute_of(node, "value")
            return np.full([int(d) for d in data], self._array(fill)[0] if fill is not None else np.float32(0))
        if node.op_type == "Cast":
            return data.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute_of(node, "to")))
        if node.op_type == "Transpose":
            return data.transpose(attribute_of(node, "perm"))
        extra = self.constant(node.input[1]) if len(node.input) > 1 else np.asarray(attribute_of(node, "axes", ()))
        if extra is None:
            return None
        values = [int(v) for v in extra]
        if node.op_type == "Reshape":
            if not attribute_of(node, "allowzero", 0):
                values = [data.shape[i] if v == 0 else v for i, v in enumerate(values)]
            return data.reshape(values)
        if node.op_type == "Squeeze":
            return np.squeeze(data, tuple(values) if values else None)
        return np.expand_dims(data, tuple(values))

    def _array(self, tensor: onnx.TensorProto) -> Array:
        return numpy_helper.to_array(inlined(tensor, self.base or ""))

    def unique(self, name: str) -> str:
        """Returns *name*, or *name* with a number behind it, so that no value of the graph has it yet."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def add_constant(self, name: str, value: Array, dtype: np.dtype[Any] | None = None) -> str:
        """Adds an initializer and returns its name, which is *name* if that is free.

        Raises:
            UnfitError: *value* overflows *dtype*, or loses its digits in it.
        """
        if dtype is not None:
            if not fits(value, dtype):
                raise UnfitError(name)
            value = value.astype(dtype)
        name = self.unique(name)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        self.initializers[name] = tensor
        self._evaluated[name] = value
        return name

    def derived(self, name: str, key: tuple[Any, ...], make: Callable[[Array], Array]) -> str:
        """Returns the name of a constant made from constant *name*; the same *key* gives the same tensor again.

        Args:
            name: the constant to start from.
            key: what, besides the name, the new value depends on.
            make: computes it in float64; the result is cast to the type of *name*.

        Raises:
            UnfitError: the result overflows that type, or loses its digits in it.
        """
        full = (name, *key)
        if full not in self._copies:
            value = self.constant(name)
            if value is None:
                raise ValueError(f"{name!r} is no constant")
            self._copies[full] = self.add_constant(f"{name}_deployed", make(value.astype(np.float64)), value.dtype)
            self._copy_of[self._copies[full]] = name
        return self._copies[full]

    def add_node(
        self, op_type: str, inputs: list[str], output: str = "", *, like: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """Adds a node and returns the name of its first output.

        Args:
            op_type: the operator.
            inputs: names of its inputs.
            output: name of its output; made from *like* if empty.
            like: the value after which output and node are named.
            domain: the operator's domain.
            attributes: its attributes.
        """
        output = output or self.unique(f"{like}_{op_type.lower()}")
        node = onnx.helper.make_node(op_type, inputs, [output], name=f"{output}_node", domain=domain, **attributes)
        self.nodes.append(node)
        self._index(node)
        return output

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes a node out of the graph."""
        self._removed.add(id(node))
        for name in node.output:
            if self.producer.get(name) is node:
                del self.producer[name]

    def replace(self, node: onnx.NodeProto, op_type: str, inputs: list[str], domain: str = "") -> None:
        """Turns *node* into another operator with other inputs and no attributes; outputs and name stay."""
        node.op_type, node.domain = op_type, domain
        del node.input[:]
        del node.attribute[:]
        node.input.extend(inputs)
        for name in inputs:
            if not any(reader is node for reader in self._consumers[name]):
                self._consumers[name].append(node)

    def set_input(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Makes input *index* of *node* read *name*."""
        node.input[index] = name
        if not any(reader is node for reader in self._consumers[name]):
            self._consumers[name].append(node)

    def set_outputs(self, node: onnx.NodeProto, names: list[str]) -> None:
        """Gives *node* other outputs; readers of the old ones stay where they are."""
        for name in node.output:
            if self.producer.get(name) is node:
                del self.producer[name]
        del node.output[:]
        node.output.extend(names)
        self.producer |= {name: node for name in names if name}

    def rename_output(self, node: onnx.NodeProto, name: str, new: str) -> None:
        """Renames an output of *node* and lets every reader in the main graph follow."""
        node.output[list(node.output).index(name)] = new
        self.producer[new] = self.producer.pop(name)
        self.take_type(new, name)
        for reader in self.consumers(name):
            for i, value in enumerate(reader.input):
                if value == name:
                    self.set_input(reader, i, new)

    def multiplied(self, name: str, factor: Array, dtype: int) -> str:
        """Returns the name of ``name · factor``: a new Mul node, one for all who ask for the same.

        Raises:
            UnfitError: the factor has no place in *dtype*, or *dtype* is bfloat16, which CPUs do not multiply.
        """
        if dtype == onnx.TensorProto.BFLOAT16:
            raise UnfitError(name)
        key = (name, "mul", factor.shape, factor.tobytes())
        if key not in self._copies:
            kind = onnx.helper.tensor_dtype_to_np_dtype(dtype or onnx.TensorProto.FLOAT)
            constant = self.add_constant(f"{name}_scale", factor, kind)
            product = self._copies[key] = self.add_node("Mul", [name, constant], like=f"{name}_unscaled")
            self.take_type(product, name)
        return self._copies[key]

    def take_type(self, name: str, of: str) -> None:
        """Notes that a new value has the shape and the element type of another one."""
        if of in self._types:
            self._types[name] = self._types[of]

    def finish(self) -> None:
        """Writes the nodes and initializers back: sorted, without dead ones."""
        alive = self._alive()
        read = {name for node in alive for name in node.input} | self.outputs | self.captured
        self._restore_names(alive, read)
        read = {name for node in alive for name in node.input} | self.outputs | self.captured
        dropped = {name for name in self.initializers if name not in read and name not in self.overridable}
        del self.graph.node[:]
        self.graph.node.extend(alive)
        tensors = [tensor for name, tensor in self.initializers.items() if name not in dropped]
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensors)
        keep = [value for value in self.graph.input if value.name not in dropped]
        if len(keep) != len(self.graph.input):
            del self.graph.input[:]
            self.graph.input.extend(keep)
        made = {name for node in alive for name in node.output}
        infos = [info for info in self.graph.value_info if info.name in made]
        del self.graph.value_info[:]
        self.graph.value_info.extend(infos)

    def _restore_names(self, alive: list[onnx.NodeProto], read: set[str]) -> None:
        back: dict[str, str] = {}
        for copy, name in self._copy_of.items():
            if copy in read and name not in read and name in self.initializers and name not in back.values():
                back[copy] = name
        for node in alive:
            for i, name in enumerate(node.input):
                if name in back:
                    node.input[i] = back[name]
        for copy, name in back.items():
            tensor = self.initializers.pop(copy)
            tensor.name = name
            self.initializers[name] = tensor

    def _alive(self) -> list[onnx.NodeProto]:
        """Returns the nodes that some output needs, in topological order, near the order they had."""
        made = {name: node for node in self for name in node.output if name}
        done: dict[int, onnx.NodeProto] = {}
        wanted = [made[name] for name in self.outputs if name in made]
        keep: set[int] = set()
        while wanted:
            node = wanted.pop()
            if id(node) in keep:
                continue
            keep.add(id(node))
            wanted += [made[name] for name in {*node.input, *captured_names(node)} if name in made]
        for first in self:
            if id(first) not in keep:
                continue
            stack = [first]
            while stack:
                node = stack[-1]
                needs = [made[name] for name in sorted({*node.input, *captured_names(node)}) if name in made]
                pending = [need for need in needs if id(need) not in done and need is not node]
                if pending:
                    stack += pending
                    continue
                done.setdefault(id(stack.pop()), node)
        return list(done.values())
