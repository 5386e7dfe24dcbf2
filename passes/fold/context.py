"""What a rule about scales is: see :mod:`~laurel_graph.passes.fold.rules`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.onnx_model.editor import GraphEditor

from .system import ScaleSystem, same

Array = NDArray[Any]
ONE = np.asarray(1.0)


@dataclass
class Context:
    """What the rules work on.

    Attributes:
        editor: the graph.
        system: the scales while they are looked for.
        axes: the axis along which a value may have one scale per channel; other values take scalars alone.
        scales: the scales once they are known; values that are missing here are stored as they are.
        sites: values that a LAuReL residual reads or makes.
        changed: keys of the nodes whose constants took a scale in.
        multiplied: keys of the nodes whose input needed a Mul.
        dynamic: whether values that are quantised as they come may be stored at another scale: their integers are the
            same, but for one that lay on the edge between two.
        blocked: values that keep their scale because some constant around them could not take another.
    """

    editor: GraphEditor
    system: ScaleSystem
    axes: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    changed: list[str] = field(default_factory=list)
    multiplied: list[str] = field(default_factory=list)
    blocked: set[str] = field(default_factory=set)
    dynamic: bool = True

    def scale(self, name: str) -> Array:
        """Returns the scale of a value."""
        return self.scales.get(name, ONE)

    def link(self, out: str, value: str, *, power: float = 1.0, axis: int | None = None) -> None:
        """Links ``s(out) = s(value) ** power``; one scale per channel passes only when it ends up on *axis* of out.

        Powers of 16-bit values stay as they are: they leave the range of the type too easily.
        """
        if power != 1 and (self.is_narrow(out) or self.is_narrow(value)):
            self.system.fix(out)
            self.system.fix(value)
            return
        if power != 1 or axis is None or self.axes.get(out) != axis:
            self.system.demand_uniform(value)
        if power != 1:
            self.system.demand_positive(value)
        self.system.link(out, value, power=power)

    def part(self, a: str, b: str, out: str, sign: int) -> None:
        """Fixes what must be fixed so that the scale of *out* can be ``s(a) · s(b) ** sign``: one of two values that do
        not hang together, both where a 16-bit *out* would hang on a power."""
        system = self.system
        if not system.together(a, b) and not system.is_fixed(a) and not system.is_fixed(b):
            keep_b = bool(system.members(b) & self.sites) and not system.members(a) & self.sites
            system.fix(a if keep_b else b)
        if any(map(self.is_narrow, (a, b, out))) and not system.is_plain(a, b, sign):
            system.fix(a)
            system.fix(b)

    def quantise_as_it_comes(self, value: str) -> None:
        """Asks of a value what one that is quantised as it comes needs: one positive scale for all channels."""
        if not self.dynamic:
            self.system.fix(value)
        self.system.demand_uniform(value)
        self.system.demand_positive(value)

    def is_narrow(self, name: str) -> bool:
        """Whether a value is of a 16-bit type."""
        return self.system.limit(name) is not None

    def along(self, factor: Array, name: str, rank: int | None = None) -> Array:
        """Returns a per-channel factor shaped to multiply value *name* (or a constant aligned to its last axes)."""
        if factor.ndim == 0:
            return factor
        rank = rank if rank is not None else self.editor.rank(name)
        if rank is None or name not in self.axes:
            raise ValueError(f"no channel axis is known for {name!r}")
        return factor.reshape(-1, *(1,) * (rank - 1 - self.axes[name]))

    def multiply_input(self, node: onnx.NodeProto, index: int, factor: Array) -> None:
        """Puts ``· factor`` on input *index* of *node* unless it is 1."""
        if same(factor, 1.0):
            return
        name = node.input[index]
        new = self.editor.multiplied(name, self.along(factor, name), self.editor.elem_type(name))
        self.editor.set_input(node, index, new)
        self.multiplied.append(node.output[0])

    def scale_constant(self, node: onnx.NodeProto, index: int, factor: Array) -> None:
        """Multiplies constant input *index* of *node* by *factor* (of a shape that broadcasts against it) on a copy."""
        if same(factor, 1.0):
            return
        name = node.input[index]
        new = self.editor.derived(name, ("·", factor.shape, factor.tobytes()), lambda value: value * factor)
        self.editor.set_input(node, index, new)
        self.changed.append(node.output[0])


class Rule:
    """The default: the operator reads and writes true values."""

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """States what the operator demands of the scales of its inputs and outputs."""
        for name in (*node.input, *node.output):
            if name:
                context.system.fix(name)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """Takes the scales that were found into the operator's constants."""
        for i, name in enumerate(node.input):
            if name:
                context.multiply_input(node, i, context.scale(name))


RIGID = Rule()
_ADDED: dict[tuple[str, str], Rule] = {}
"""Domain and operator type to rule, for what a person added."""


def add_rule(operator: str, rule: Rule, domain: str = "") -> None:
    """See :func:`laurel_graph.passes.extend.add_fold_rule`."""
    _ADDED[domain, operator] = rule


def added_rule(domain: str, operator: str) -> Rule | None:
    """Returns the rule that a person added for an operator (in ``ai.laurel`` for a variant), or ``None``."""
    return _ADDED.get((domain, operator))
