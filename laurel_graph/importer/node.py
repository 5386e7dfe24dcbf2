"""One ONNX node as its handler sees it: inputs as values, attributes, and ways to emit torch calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from onnx import NodeProto

from ..errors import UnsupportedOperatorError
from .builder import Builder, Host, Origin, Value

if TYPE_CHECKING:
    from .convert import Converter, Scope


class Node:
    """The node that is being translated.

    Attributes:
        proto: the node itself.
        inputs: its inputs; ``None`` where an optional one is absent.
        builder: the graph that grows.
        converter: the translation as a whole (for subgraphs and functions).
        scope: the names that are visible at the node.
        version: the operator's since_version.
    """

    def __init__(self, proto: NodeProto, inputs: list[Value | None], attributes: dict[str, Any], builder: Builder,
                 converter: Converter, scope: Scope, version: int, origin: Origin) -> None:  # fmt: skip
        self.proto = proto
        self.inputs = inputs
        self.attributes = attributes
        self.builder = builder
        self.converter = converter
        self.scope = scope
        self.version = version
        self.origin = origin
        self.base_dir: Path = converter.base_dir

    @property
    def op(self) -> str:
        """The operator's type name."""
        return str(self.proto.op_type)

    @property
    def name(self) -> str:
        """A name for what the node computes: its first output's."""
        return next((name for name in self.proto.output if name), self.proto.op_type)

    @property
    def output_count(self) -> int:
        """Number of outputs up to the last one that is used."""
        return max((i + 1 for i, name in enumerate(self.proto.output) if name), default=0)

    def __len__(self) -> int:
        return len(self.inputs)

    def has(self, index: int) -> bool:
        """Whether the optional input *index* is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def __getitem__(self, index: int) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.refuse(f"input {index} is required but absent")
        return value

    def get(self, index: int) -> Value | None:
        """Returns input *index*, or ``None`` if it is absent."""
        return self.inputs[index] if self.has(index) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """Returns an attribute, or *default* if it is absent."""
        return self.attributes.get(name, default)

    def const(self, index: int) -> Any:
        """Returns the tensor of input *index* if it is known now, else ``None`` (also if the input is absent)."""
        value = self.get(index)
        return value.const if value is not None and value.is_const else None

    def ints(self, index: int) -> list[int] | None:
        """Returns input *index* as a list of integers if it is known now, else ``None``."""
        tensor = self.const(index)
        return None if tensor is None else tensor.reshape(-1).tolist()

    def emit(self, fn: Callable[..., Any], *args: Any, fold: bool = True, **kwargs: Any) -> Value:
        """Adds ``fn(*args, **kwargs)`` under the node's name; folds it if everything in it is constant."""
        return self.builder.emit(fn, *args, fold=fold, name=self.name, **kwargs)

    def unpack(self, value: Value, count: int | None = None) -> list[Value]:
        """Returns the parts of a tuple value; as many as the node has outputs by default."""
        return self.builder.unpack(value, self.output_count if count is None else count)

    def constant(self, tensor: Any) -> Value:
        """Returns *tensor* as a constant value."""
        return Value(self.name, const=tensor)

    def shape_argument(self, index: int, attribute: str = "") -> Any:
        """Returns input *index* for use as integers: a list if known now, else a host-marked value.

        Falls back to the attribute of that name (older operator sets), then to ``None``.
        """
        if self.has(index):
            known = self.ints(index)
            return Host(self[index]) if known is None else known
        return self.attr(attribute) if attribute else None

    def require(self, condition: bool, reason: str) -> None:
        """Refuses the node for *reason* unless *condition* holds."""
        if not condition:
            self.refuse(reason)

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error that names this node, its operator and opset."""
        raise UnsupportedOperatorError(f"{self.origin}: {reason}")


def integers(value: Any) -> list[int]:
    """Returns integers as a Python list at run time: from a tensor, a list or one number."""
    if isinstance(value, torch.Tensor):
        return value.reshape(-1).tolist()
    return [int(value)] if isinstance(value, (int, float)) else list(value)


def direct(fn: Callable[..., Any], count: int | None = None) -> Callable[[Node], Value]:
    """Returns the handler of an operator that is one torch function of its inputs (at most *count*)."""

    def handler(node: Node) -> Value:
        inputs: Sequence[Value | None] = node.inputs if count is None else node.inputs[:count]
        return node.emit(fn, *inputs)

    return handler
