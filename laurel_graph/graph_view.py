"""The neutral view of a traced graph: what detection looks at, whatever the graph was written in.

A vertex is one value together with what made it. Both front ends translate their operators into the few
:class:`Role` words below; nothing after them knows an ATen overload or an ONNX type name. The view is for analysis
only: it is built, read and thrown away, and graphs are edited where they live (:mod:`torch.fx`, :mod:`onnx`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from .own_code import is_ours

if TYPE_CHECKING:
    import networkx as nx

Dim = int | str | None
Shape = tuple[Dim, ...]
"""An int, the name of a symbol, or ``None`` (unknown) per axis."""


class Role(StrEnum):
    """What an operator means to a residual connection."""

    __hash__ = str.__hash__  # Enum's own is Python code, and roles are looked up for every vertex

    INPUT = "input"
    """A graph input: where data comes from."""
    CONSTANT = "constant"
    """A parameter, buffer, initializer or literal tensor."""
    META = "meta"
    """Depends on the shape or on a comparison of its input, not on its values: data dependence ends here."""
    PASS = "pass"
    """Hands its first input on: dropout, cast, clone, identity, quantise and dequantise."""
    RESHAPE = "reshape"
    """The same elements in another arrangement: reshape, transpose, expand, roll."""
    SLICE = "slice"
    """Some of the elements, or the elements and padding."""
    CONCAT = "concat"
    """Its inputs side by side along one axis."""
    SELECT = "select"
    """Each element from one of its operands: where, masked_fill."""
    SCATTER = "scatter"
    """Its first input with a part of it replaced by its second."""
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    """A product (or quotient); with one data operand it is a scale."""
    REDUCE = "reduce"
    """Mean, sum, variance, norm over axes."""
    MATH = "math"
    """Element-wise arithmetic of one input that is no activation: pow, sqrt, reciprocal, neg, abs."""
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    NORM = "norm"
    POOL = "pool"
    CONV = "conv"
    LINEAR = "linear"
    """A matrix product; weighted when one factor is a parameter, mixing when both are data."""
    UPSAMPLE = "upsample"
    MIX = "mix"
    """Mixes positions without weights of its own: FFT, fused attention on ready q, k, v."""
    WEIGHTED = "weighted"
    """Any other operator that owns a weight matrix: LSTM, fused attention with projections, opaque modules."""
    LAUREL = "laurel"
    """A LAuReL residual that is already there; inputs x, f, then earlier activations."""
    OTHER = "other"


@dataclass(slots=True, eq=False)
class Vertex:
    """One value of the graph and the operator that makes it.

    Attributes:
        key: key of the node it belongs to (see :mod:`laurel_graph.detection`); several vertices may share one.
        value: name of the value in the graph; of the node's first output where the value has none of its own.
        op: the operator as the graph calls it, for messages.
        role: what it means.
        inputs: vertices it reads, in operand order.
        shape: its shape, ``None`` if not even the rank is known.
        dtype: ``float32``, ``int64`` ...; ``None`` if unknown.
        name: name of the node in a viewer, or "".
        scope: dotted path of the module it was written in, "" for the model itself, ``None`` if unknown.
        source: ``file.py:line``, or "".
        weighted: owns a weight matrix; set by front ends for modules, by :meth:`GraphView.finish` from the operands.
        weight: name of that weight, or "".
        width: output channels of the weighted operator, ``None`` if unknown.
        axis: the axis of SLICE and CONCAT, or the channel axis of CONV (1 or -1).
        window: ``(start, stop)`` of SLICE along *axis*, ``None`` if unknown.
        permutation: the axes of a transpose, ``None`` for every other RESHAPE.
        mixes: a pool with a window of more than one element and a stride of one.
        strided: a convolution or a pool with a stride: what it makes has a lower resolution.
        quantised: works on integers that stand for reals, or makes them (QLinearAdd, QuantizeLinear).
        blocked: why an add here cannot be rewritten, or "".
        rank: of LAUREL.
        site: of LAUREL.
        data: depends on the values of a graph input (set by :meth:`GraphView.add`).
        live: a graph output depends on it (set by :meth:`GraphView.finish`).
        folded: stands inside a norm that was written out (set by :meth:`GraphView.finish`).
        fused: an add inside an operator that does more, whose *name* and *scope* are those of what it does besides.
        body: the path of the body of If, Loop or Scan that it stands in, "" for the graph itself.
        scale: of MUL: elements of the constant it multiplies with, 0 if it has none, -1 if unknown.
    """

    key: str
    value: str
    op: str
    role: Role
    inputs: tuple[int, ...] = ()
    shape: Shape | None = None
    dtype: str | None = None
    name: str = ""
    scope: str | None = None
    source: str = ""
    weighted: bool = False
    weight: str = ""
    width: int | None = None
    axis: int = 0
    window: tuple[int, int] | None = None
    permutation: tuple[int, ...] | None = None
    mixes: bool = False
    strided: bool = False
    quantised: bool = False
    blocked: str = ""
    rank: int = 0
    site: str = ""
    data: bool = False
    live: bool = False
    folded: bool = False
    fused: bool = False
    body: str = ""
    scale: int = 0


@dataclass(slots=True, eq=False)
class GraphView:
    """A directed acyclic graph of :class:`Vertex`; each is added after what it reads.

    Attributes:
        model: the file or class that was looked at.
        vertices: all vertices; an input of a vertex is an index into this list.
        outputs: vertices that leave the graph.
        names: value name to vertex.
        nodes: number of nodes of the graph itself.
        notes: sentences for the user.
        choices: path of a body of an If to the node, which has one such body for each answer, and the body's place.
        consumers: for each vertex the distinct live vertices that read it (set by :meth:`finish`).
    """

    model: str = ""
    vertices: list[Vertex] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    notes: list[str] = field(default_factory=list)
    choices: dict[str, tuple[str, int]] = field(default_factory=dict)
    consumers: list[list[int]] = field(default_factory=list)

    def add(self, vertex: Vertex) -> int:
        """Appends *vertex*, registers its value name (the latest wins) and returns its index."""
        vertices = self.vertices
        vertex.data = vertex.role is Role.INPUT
        if vertex.role is not Role.META:
            for u in vertex.inputs:
                if vertices[u].data:
                    vertex.data = True
                    break
        vertices.append(vertex)
        index = len(vertices) - 1
        if vertex.value:
            self.names[vertex.value] = index
        return index

    def finish(self) -> GraphView:
        """Works out what is live, what is a scale, what owns weights and what is a norm.

        Linear in vertices and edges. Returns the view itself.
        """
        self._spread_data()
        self._mark_live()
        used = [vertex.live for vertex in self.vertices]
        if self._fold_norms() | self._forward_slices():
            self._mark_live()
            for vertex, before in zip(self.vertices, used, strict=True):
                vertex.folded = before and not vertex.live
        return self

    def to_networkx(self) -> nx.DiGraph[int]:
        """Returns the live vertices as a networkx graph, made anew each time; changing it changes nothing here.

        A node is the vertex's index, which grows from inputs to outputs. Node attributes: ``value``, ``node`` (the
        node's name), ``op``, ``role`` (all text), ``shape`` (a tuple or ``None``), ``dtype``, ``scope``, ``source``
        (text, "" if unknown), ``weighted`` (bool), ``weight`` (text), ``output`` (bool). The graph is named after the
        model.
        """
        import networkx as nx

        graph: nx.DiGraph[int] = nx.DiGraph(name=self.model)
        leaving = set(self.outputs)
        for index, vertex in enumerate(self.vertices):
            if vertex.live:
                graph.add_node(
                    index,
                    value=vertex.value,
                    node=vertex.name,
                    op=vertex.op,
                    role=str(vertex.role),
                    shape=vertex.shape,
                    dtype=vertex.dtype or "",
                    scope=vertex.scope or "",
                    source=vertex.source,
                    weighted=vertex.weighted,
                    weight=vertex.weight,
                    output=index in leaving,
                )
                graph.add_edges_from((u, index) for u in vertex.inputs)
        return graph

    def up(self, index: int, roles: Iterable[Role] = (Role.PASS,)) -> int:
        """Follows first inputs upwards while the role is one of *roles*; returns where that ends."""
        vertices = self.vertices
        while vertices[index].role in roles and vertices[index].inputs:
            index = vertices[index].inputs[0]
        return index

    def _spread_data(self) -> None:
        """Data dependence, scales, weights and the shapes that follow from the operands."""
        vertices = self.vertices
        for vertex in vertices:
            role, inputs = vertex.role, vertex.inputs
            operands = [vertices[u] for u in inputs]
            if role in (Role.CONV, Role.LINEAR) and not vertex.weighted:
                self._read_weight(vertex)
            elif role is Role.MUL and not (len(inputs) > 1 and all(operand.data for operand in operands)):
                vertex.scale = _scale_of(operands)
                vertex.inputs = tuple(u for u in inputs if vertices[u].data) or inputs
            if vertex.shape is None and role in _SAME_SHAPE:
                vertex.shape = _broadcast([operand.shape for operand in operands], role)
            if vertex.dtype is None and operands and role not in _OTHER_TYPE:
                vertex.dtype = operands[0].dtype

    def _read_weight(self, vertex: Vertex) -> None:
        """A constant matrix among the operands is the weight; its name is the one before casts and transposes."""
        vertices = self.vertices
        for u in vertex.inputs:
            shape = vertices[u].shape
            if not vertices[u].data and (shape is None or sum(1 for dim in shape if dim != 1) >= 2):
                vertex.weighted = True
                vertex.weight = vertices[self.up(u, _SAME_WEIGHT)].value
                return

    def _fold_norms(self) -> bool:
        """Gives a norm that is written out (x, or x minus its mean, over a root of its moments) the role NORM."""
        changed = False
        for vertex in self.vertices:
            if vertex.role is Role.MUL and len(vertex.inputs) == 2 and not vertex.scale:
                origin = self._normed(*vertex.inputs)
                if origin is not None:
                    vertex.role, vertex.inputs, changed = Role.NORM, (origin,), True
        return changed

    def _normed(self, left: int, right: int) -> int | None:
        for whole, root in ((left, right), (right, left)):
            origin = self._centred(whole)
            if self._is_moment_of(root, {origin, self.up(whole)}):
                return origin
        return None

    def _centred(self, index: int) -> int:
        """Returns x for ``x - mean(x)``, else the value itself (both without casts)."""
        vertices = self.vertices
        index = self.up(index)
        vertex = vertices[index]
        if vertex.role is Role.SUB and len(vertex.inputs) == 2:
            whole, mean = (self.up(u) for u in vertex.inputs)
            if (
                vertices[mean].role is Role.REDUCE
                and vertices[mean].inputs
                and self.up(vertices[mean].inputs[0]) == whole
            ):
                return whole
        return index

    def _is_moment_of(self, index: int, targets: set[int]) -> bool:
        """Tells whether *index* is made of one of *targets* by a reduction and element-wise arithmetic alone."""
        vertices, reduced = self.vertices, False
        for _ in range(12):
            vertex = vertices[index]
            data = [u for u in vertex.inputs if vertices[u].data]
            square = vertex.role is Role.MUL and len(data) == 2 and data[0] == data[1]
            if not data or (len(data) > 1 and not square) or vertex.role not in _MOMENT:
                return False
            reduced |= vertex.role is Role.REDUCE
            index = data[0]
            if reduced and (index in targets or self.up(index) in targets):
                return True
        return False

    def _forward_slices(self) -> bool:
        """A slice that takes exactly one part of a concat is that part, without its axis where that vanishes."""
        vertices, changed = self.vertices, False
        for vertex in vertices:
            if vertex.role is not Role.SLICE or vertex.window is None or vertex.shape is None:
                continue
            whole = vertices[self.up(vertex.inputs[0])]
            if whole.role is not Role.CONCAT or whole.shape is None:
                continue
            rank = len(whole.shape)
            if vertex.axis % rank != whole.axis % rank:
                continue
            start = 0
            for part in whole.inputs:
                shape = vertices[part].shape
                size = shape[whole.axis] if shape is not None and len(shape) == rank else None
                if not isinstance(size, int):
                    break
                if (start, start + size) == vertex.window:
                    vertex.role = Role.PASS if len(vertex.shape) == rank else Role.RESHAPE
                    vertex.inputs, changed = (part,), True
                    break
                start += size
        return changed

    def _mark_live(self) -> None:
        vertices = self.vertices
        read = {u for vertex in vertices for u in vertex.inputs}
        for vertex in vertices:
            vertex.live = False
        for index in self.outputs or [i for i in range(len(vertices)) if i not in read]:
            vertices[index].live = True
        self.consumers = [[] for _ in vertices]
        for index in range(len(vertices) - 1, -1, -1):
            vertex = vertices[index]
            if vertex.live:
                for u in dict.fromkeys(vertex.inputs):
                    vertices[u].live = True
                    self.consumers[u].append(index)


_SAME_WEIGHT = (Role.PASS, Role.RESHAPE)
_SAME_SHAPE = frozenset(
    {Role.PASS, Role.ADD, Role.SUB, Role.MUL, Role.MATH, Role.ACTIVATION, Role.SOFTMAX, Role.NORM, Role.LAUREL}
)
_OTHER_TYPE = frozenset({Role.META, Role.OTHER, Role.PASS, Role.MIX, Role.CONV, Role.LINEAR})
_MOMENT = frozenset({Role.PASS, Role.MATH, Role.REDUCE, Role.ADD, Role.MUL, Role.ACTIVATION, Role.RESHAPE})


def size(shape: Shape | None) -> int:
    """Returns the number of elements, -1 if unknown."""
    total = 1
    for dim in shape if shape is not None else (None,):
        if not isinstance(dim, int):
            return -1
        total *= dim
    return total


def _scale_of(operands: Sequence[Vertex]) -> int:
    """Elements of the largest constant factor; a literal factor counts as one."""
    sizes = [size(operand.shape) for operand in operands if not operand.data]
    if not sizes:
        return 1
    return -1 if -1 in sizes else max(1, *sizes)


def _broadcast(shapes: Sequence[Shape | None], role: Role) -> Shape | None:
    if role not in (Role.ADD, Role.SUB, Role.MUL):
        return shapes[0] if shapes else None
    if not shapes or any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known))
    result: list[Dim] = []
    for axis in range(rank):
        dims = {shape[axis - rank] for shape in known if len(shape) >= rank - axis} - {1}
        result.append(1 if not dims else next(iter(dims)) if len(dims) == 1 else None)
    return tuple(result)


def source_line(trace: str) -> str:
    """Returns ``file.py:line`` of the innermost line of the user's own in a stack trace, else of a layer of torch's."""
    frames = [frame for frame in re.findall(r'File "([^"]+)", line (\d+)', trace) if not is_ours(frame[0])]
    frames = [frame for frame in frames if "/torch/" not in frame[0]] or [f for f in frames if "/torch/nn/" in f[0]]
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
