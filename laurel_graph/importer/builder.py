"""The values of an ONNX graph while it is translated, and the fx graph that grows from them.

A :class:`Value` whose tensor is known at translation time stays a constant until something that is not constant uses
it: chains of constants (weights written as ``ConstantOfShape``, folded masks, shape arithmetic) leave no trace. What
is derived from shapes alone is *host* data: integers that stay on the CPU wherever the module is moved.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import UnsupportedOperatorError
from ..foreign_names import LONGEST, VARIABLES, Namespace, identifier, path_parts, printable
from ..torch_residual.module import ATTRIBUTES
from .bounded import Bounded, TooLarge

FOLD_LIMIT = 1 << 22
"""A constant result of more elements than this is folded only if it is not larger than what it is made of."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
"""The constant of a value that is not known before the module runs."""


@dataclass(eq=False)
class Value:
    """One value of the ONNX graph.

    Attributes:
        name: its name in the file; a buffer or node that holds it has a name made of it.
        const: the tensor (or list, or ``None`` for an empty optional) if known now, else :data:`MISSING`.
        node: the fx node that computes it; for a constant, made when first needed.
        host: integers derived from shapes: they stay on the CPU.
        elem_type: the ONNX element type, or ``None`` if unknown.
        shape: the static shape where the file tells it (ints, symbols, ``None``), or ``None``.
        host_node: the fx node of a constant's copy that stays on the CPU.
        steps: for a quantised value, the same integers as floats that carry the gradient.
    """

    name: str
    const: Any = MISSING
    node: fx.Node | None = None
    host: bool = False
    elem_type: int | None = None
    shape: tuple[int | str | None, ...] | None = None
    host_node: fx.Node | None = None
    steps: Value | None = None

    @property
    def is_const(self) -> bool:
        """Whether the value is known at translation time."""
        return self.const is not MISSING


@dataclass(frozen=True)
class Host:
    """Marks an argument that is read as integers on the CPU (a shape, axes, a size), not as data."""

    value: Value


@dataclass(frozen=True)
class Origin:
    """Where an fx node comes from: stored as ``node.meta["onnx"]``."""

    name: str
    op: str
    domain: str
    opset: int
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        op = _quoteless(f"{self.domain}::{self.op}" if self.domain else self.op)
        name = _quoteless(self.name or next(iter(self.outputs), ""))
        return f"node '{name}' ({op}, opset {self.opset})"


@dataclass(frozen=True)
class ValueName:
    """The name in the file of the value that an fx node computes: stored as ``node.meta["onnx_value"]``."""

    text: str

    def __str__(self) -> str:
        return _quoteless(self.text)


def _quoteless(text: str) -> str:
    """Returns *text* as it may stand in a docstring: with FX_GRAPH_SHOW_META=1 torch.fx writes meta into its code."""
    return printable(text, LONGEST).replace('"', "'")


class HostTensors(nn.Module):
    """Buffers that stay where and what they are when the module around them is moved or converted."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HostTensors:
        return self


def to_device_of(host: Any, data: Any) -> Any:
    """Returns host integers on the device of the data that they meet (a sequence as it is)."""
    tensors = isinstance(host, torch.Tensor) and isinstance(data, torch.Tensor)
    return host.to(data.device) if tensors else host


_SPELLABLE = {bool, int, float, complex, str, torch.dtype, torch.device, fx.Node}


def _is_float_constant(value: Value) -> bool:
    """Whether the value is a known tensor of floats: it follows the module's device and float type."""
    return isinstance(value.const, torch.Tensor) and value.const.dtype.is_floating_point


def _constant_size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(_constant_size(v) for v in value) if isinstance(value, (list, tuple)) else 0


class Builder:
    """Grows one fx graph and the module that holds its buffers, parameters and submodules.

    Attributes:
        root: the module that the graph's ``get_attr`` and ``call_module`` nodes refer to.
        graph: the fx graph.
        onnx_names: attribute path of each parameter and buffer to its name in the file.
    """

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.onnx_names: dict[str, str] = {}
        self.origin: Origin | None = None
        self._anchor: fx.Node | None = None
        self._arguments = Namespace(VARIABLES)
        self._owners: dict[str, Namespace] = {}
        self._paths: dict[nn.Module, str] = {}
        self._put_module("host", HostTensors())

    # ---- nodes ------------------------------------------------------------------------------------------------

    def create(self, kind: str, target: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
               name: str | None = None) -> fx.Node:  # fmt: skip
        """Creates one fx node that remembers which ONNX node it comes from.

        Raises:
            UnsupportedOperatorError: an argument is nothing that generated code can spell (an attribute of a type that
                its operator does not know).
        """
        kwargs = kwargs or {}
        if (strange := _unspellable((*args, *kwargs.values()))) is not None:
            raise UnsupportedOperatorError(
                f"{self.origin}: an argument of type {type(strange).__name__} where numbers, text or tensors belong"
            )
        if name is not None:
            name = identifier(name)
            name = f"{name}_" if name in VARIABLES else name
        node: fx.Node = self.graph.create_node(kind, target, args, kwargs, name=name)
        if self.origin is not None:
            node.meta["onnx"] = self.origin
        return node

    def input(self, name: str, elem_type: int | None = None, shape: Any = None, host: bool = False) -> Value:
        """Adds a placeholder."""
        target = self._arguments.claim(name)
        node = self.create("placeholder", target, name=target)
        return Value(name, node=node, elem_type=elem_type, shape=shape, host=host)

    def emit(self, fn: Callable[..., Any], *args: Any, fold: bool = True, name: str = "", **kwargs: Any) -> Value:
        """Adds ``fn(*args, **kwargs)``; evaluates it now if every :class:`Value` in it is constant and *fold* is set.

        Arguments may be values, :class:`Host`-marked values, fx nodes, plain Python data and (nested) sequences.
        """
        values = list(_values_in((args, tuple(kwargs.values()))))
        if fold and all(v.is_const for v, _ in values):
            with suppress(TooLarge), torch.no_grad():
                with Bounded():  # type: ignore[no-untyped-call]
                    known = fn(*_map(args, _constant), **{k: _map(v, _constant) for k, v in kwargs.items()})
                size = _constant_size(known)
                if size <= FOLD_LIMIT or size <= 2 * sum(_constant_size(v.const) for v, _ in values):
                    return Value(name, const=known)
        data = [v for v, marked in values if not v.is_const and not marked]
        open_values = data or [v for v, _ in values if not v.is_const]
        weight = next((v for v, marked in values if not marked and _is_float_constant(v)), None)
        host = weight is None and bool(open_values) and all(v.host for v in open_values)
        mover = None if host else next((v.node for v in data if not v.host), None)
        if mover is None and weight is not None:
            mover = self.node_of(weight)

        def argument(v: Value | Host) -> Any:
            if isinstance(v, Host) or (host and isinstance(v, Value)):
                return self.node_of(v.value if isinstance(v, Host) else v, host=True)
            if v.host and mover is not None:
                return self.create("call_function", to_device_of, (self.node_of(v), mover))
            return self.node_of(v)

        node = self.create(
            "call_function",
            fn,
            tuple(_map(a, argument) for a in args),
            {k: _map(v, argument) for k, v in kwargs.items()},
            name=name or None,
        )
        return Value(name, node=node, host=host)

    def call(self, path: str, module: nn.Module, *args: Any, name: str = "") -> Value:
        """Adds a call of *module*, which becomes the submodule at *path*, or near it, unless it is there already."""
        path = self._put_module(path, module)
        values = tuple(_map(a, lambda v: self.node_of(v.value if isinstance(v, Host) else v)) for a in args)
        return Value(name, node=self.create("call_module", path, values, name=name or None))

    def unpack(self, value: Value, count: int) -> list[Value]:
        """Returns the *count* parts of a value that is a tuple."""
        if value.is_const:
            return [Value(value.name, const=part) for part in value.const[:count]]
        return [
            Value(value.name, node=self.create("call_function", operator.getitem, (value.node, i)), host=value.host)
            for i in range(count)
        ]

    @property
    def anchor(self) -> fx.Node:
        """A buffer of no elements whose type is the module's float type: ``.double()`` converts it along."""
        anchor = self._anchor
        if anchor is None:
            _, path = self._free_path(["float_type"])
            self.root.register_buffer(path, torch.empty(0))
            self._anchor = anchor = self.create("get_attr", path)
        return anchor

    # ---- constants and parameters -----------------------------------------------------------------------------

    def node_of(self, value: Value, host: bool = False) -> Any:
        """Returns the fx node of *value*; a constant becomes a buffer (or a CPU-bound one for *host* use)."""
        if not value.is_const:
            return value.node
        if not isinstance(value.const, torch.Tensor):
            return _map(value.const, lambda v: v) if value.const is None else self._constant_list(value)
        attribute = "host_node" if host else "node"
        if getattr(value, attribute) is None:
            setattr(value, attribute, self._buffer(value, host))
        return getattr(value, attribute)

    def _constant_list(self, value: Value) -> list[Any]:
        return [self.node_of(Value(f"{value.name}_{i}", const=part)) for i, part in enumerate(value.const)]

    def _buffer(self, value: Value, host: bool) -> fx.Node:
        tensor, prefix = value.const, "host." if host else ""
        path = self._put_tensor(
            value.name or "constant", lambda owner, leaf: owner.register_buffer(leaf, tensor), prefix
        )
        return self.create("get_attr", path, name=path)

    def parameter(self, name: str, tensor: torch.Tensor) -> Value:
        """Adds *tensor* as a trainable parameter under its ONNX name."""
        parameter = nn.Parameter(tensor.clone())
        path = self._put_tensor(name, lambda owner, leaf: owner.register_parameter(leaf, parameter))
        return Value(name, node=self.create("get_attr", path, name=path))

    def _put_tensor(self, name: str, register: Callable[[nn.Module, str], None], prefix: str = "") -> str:
        """Registers a tensor at the path that *name* stands for, or the nearest free one, and returns the path."""
        parts = path_parts(name)
        owner, path = self._free_path(["_".join(parts)] if prefix else parts, prefix)
        register(owner, path.rpartition(".")[2])
        self.onnx_names[path] = name
        return path

    def _put_module(self, name: str, module: nn.Module) -> str:
        """Adds *module* at the path that *name* stands for unless it is there already, and returns its path."""
        if module not in self._paths:
            owner, path = self._free_path(path_parts(name))
            owner.add_module(path.rpartition(".")[2], module)
            self._paths[module] = path
        return self._paths[module]

    def _free_path(self, parts: Sequence[str], prefix: str = "") -> tuple[nn.Module, str]:
        """Returns a free attribute path of safe parts near the one given, and the module that is to hold its end."""
        owner, path = self.root.get_submodule(prefix.rstrip(".")), prefix
        for i, part in enumerate(parts[:-1]):
            known = owner._modules.get(part)
            if known is None and not self._owner(path).holds(part):
                owner.add_module(self._owner(path).claim_part(part), known := nn.Module())
            if type(known) is not nn.Module:  # a tensor, a layer or an attribute of all modules has the name
                parts = ["_".join(parts[i:])]
                break
            owner, path = known, f"{path}{part}."
        return owner, path + self._owner(path).claim_part(parts[-1])

    def _owner(self, path: str) -> Namespace:
        """The names in the module at *path* (which ends with a dot, or is empty)."""
        return self._owners.setdefault(path, Namespace(ATTRIBUTES))

    def close(self, outputs: Sequence[Value]) -> None:
        """Adds the output node and removes what nothing uses."""
        nodes = [self.node_of(v) for v in outputs]
        self.origin = None
        self.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
        _eliminate_dead(self.graph)

    def module(self, name: str) -> fx.GraphModule:
        """Returns the closed graph as a module."""
        module = fx.GraphModule(self.root, self.graph, class_name=name)
        if "host" in module._modules:  # GraphModule copies attributes into plain modules
            module._modules["host"] = self.root.get_submodule("host")
        return module


def _eliminate_dead(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _unspellable(values: Any) -> Any:
    """Returns an argument, however deep, whose ``repr`` is no Python expression of its value, or ``None``."""
    if type(values) in (tuple, list, torch.Size) or (isinstance(values, tuple) and hasattr(values, "_fields")):
        return next((found for value in values if (found := _unspellable(value)) is not None), None)
    return None if values is None or type(values) in _SPELLABLE else values


def _values_in(tree: Any) -> Any:
    if isinstance(tree, Value):
        yield tree, False
    elif isinstance(tree, Host):
        yield tree.value, True
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _values_in(item)


def _constant(value: Value | Host) -> Any:
    return value.value.const if isinstance(value, Host) else value.const


def _map(tree: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(tree, (Value, Host)):
        return fn(tree)
    if isinstance(tree, (list, tuple)) and not hasattr(tree, "_fields"):
        return type(tree)(_map(item, fn) for item in tree)
    return tree
