"""What weights, operators and their schemas say of shapes and types where ONNX's inference says nothing.

That inference stops at operators that it does not know (ONNX Runtime's own, people's own) and at sizes that are
computed. A convolution's kernel still tells the rank of what it reads and makes, a matrix how wide both are, a norm's
scale how many channels there are, and a schema which values have one element type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from ..graph_view import Dim, Shape
from .walk import attribute_of

Types = dict[str, tuple[Shape | None, str | None]]

_LAUREL = "ai.laurel"
"""The domain of our own operators, which make values of the shape of their first input."""

_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", _LAUREL)
"""The domains whose operators are known here; another one may have an operator of the same name that does otherwise."""

_SWEEPS = 4
"""How often the nodes are looked at, there and back, while something new is learned."""

_SAME_SHAPE = (
    "Identity Cast CastLike Dropout QuantizeLinear DequantizeLinear DynamicQuantizeLinear Relu LeakyRelu PRelu Elu "
    "Selu Celu Sigmoid Tanh Softplus Softsign HardSigmoid HardSwish Mish Gelu QuickGelu FastGelu BiasGelu Clip Erf "
    "ThresholdedRelu Shrink Softmax LogSoftmax Hardmax Neg Abs Sqrt Reciprocal Exp Log Sin Cos Floor Ceil Round "
    "Sign LRN LpNormalization MeanVarianceNormalization BatchNormalization InstanceNormalization "
    "GroupNormalization LayerNormalization RMSNormalization SimplifiedLayerNormalization Swish BiasAdd "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization"
)
"""Operators whose first output has the shape of their first input."""

_SAME = frozenset(_SAME_SHAPE.split())

_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Max", "Min", "Mean"))
_CONVS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_MATRICES = {
    "MatMul": 1,
    "Gemm": 1,
    "FusedGemm": 1,
    "FusedMatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
}
"""Operators that multiply by a weight, and the place of the weight."""

_PACKED = ("MatMulNBits", "MatMulBnb4")
"""Operators that state the sizes of their packed weight as attributes K and N."""

_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_CHANNEL_NORMS = ("BatchNormalization", "InstanceNormalization")
_LAST_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")

_ONE_TYPE: dict[str, tuple[int, ...]] = {
    "MatMulNBits": (0, 2),
    "MatMulBnb4": (0, 2),
    "DynamicQuantizeMatMul": (0, 2),
    "MatMulIntegerToFloat": (2, 3),
    **dict.fromkeys(("FusedMatMul", "FusedConv", "FusedGemm", "BiasGelu", "BiasAdd"), (0, 1)),
    **dict.fromkeys(("FastGelu", "QuickGelu", "GroupNorm", "Attention"), (0,)),
    "EmbedLayerNormalization": (2, 3, 5),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), (0, 1, 2)),
}
"""ONNX Runtime's operators: the inputs that have the element type of the first output."""


def complete(graph: onnx.GraphProto, types: Types, opset: int) -> set[str]:
    """Fills in, in place, what the nodes of *graph* tell of values that *types* does not know; returns their names.

    Args:
        graph: the nodes, in topological order; its subgraphs are not looked at.
        types: value name to shape and element type, constants included. What is known stays.
        opset: version of the default domain.
    """
    rules = _Rules(types, opset)
    known = [node for node in graph.node if node.domain in _DOMAINS]
    nodes = [node for node in known if not _is_settled(node, types)]
    for _ in range(_SWEEPS):
        before = rules.changes
        for node in nodes:
            rules.forward(node)
        for node in reversed(nodes):
            rules.backward(node)
        if rules.changes == before:
            break
        nodes = known  # what was learned may tell more at any of them
    return rules.learned


def _is_settled(node: onnx.NodeProto, types: Types) -> bool:
    """Whether a node between values of one known shape and type has nothing to tell: most of a graph are such."""
    if not node.output or (node.op_type not in _SAME and node.op_type not in _BROADCAST) or node.domain:
        return False
    first = types.get(node.output[0])
    if first is None or first[0] is None or first[1] is None or None in first[0]:
        return False
    return len(node.output) == 1 and all(types.get(name) == first for name in node.input)


class _Rules:
    def __init__(self, types: Types, opset: int) -> None:
        self.types, self.opset = types, opset
        self.learned: set[str] = set()
        self.changes = 0

    # ---- what is known ------------------------------------------------------------------------------------------

    def shape(self, node: onnx.NodeProto, index: int) -> Shape | None:
        name = node.input[index] if index < len(node.input) else ""
        return self.types.get(name, (None, None))[0] if name else None

    def learn(self, name: str, shape: Shape | None = None, dtype: str | None = None) -> None:
        """Adds what is new; a size that is known already is never replaced by another."""
        if not name:
            return
        old, kind = self.types.get(name, (None, None))
        new = merged(old, shape)
        if new != old or (kind is None and dtype is not None):
            self.types[name] = new, kind or dtype
            self.learned.add(name)
            self.changes += 1

    # ---- down ---------------------------------------------------------------------------------------------------

    def forward(self, node: onnx.NodeProto) -> None:
        if not node.output:
            return
        self._one_type(node)
        op, out = node.op_type, node.output[0]
        if op in _SAME:
            self.learn(out, self.shape(node, 0))
        elif op in _BROADCAST:
            self.learn(out, _broadcast([self.shape(node, i) for i in range(len(node.input))]))
        elif op in _CONVS:
            self._convolved(node, self.shape(node, _CONVS[op]))
        elif op in _MATRICES or op in _PACKED:
            self._multiplied(node)
        elif op == "Attention" and node.domain == "com.microsoft":
            self._attended(node)
        elif op == "MultiHeadAttention" and (x := self.shape(node, 0)) is not None and len(x) == 3:
            values = self.shape(node, 2)
            self.learn(out, (*x[:2], values[2] if values is not None and len(values) == 3 else None))
        elif self._is_like_first(node):
            self.learn(out, self.shape(node, 0))
        elif op == "EmbedLayerNormalization" and (table := self.shape(node, 2)) is not None and len(table) == 2:
            ids = self.shape(node, 0)
            self.learn(out, (*(ids if ids is not None and len(ids) == 2 else (None, None)), table[1]))
        elif op in _POOLS and (x := self.shape(node, 0)) is not None and len(x) > 2:
            self.learn(out, (x[0], x[1], *[None] * (len(x) - 2)))
        elif op == "Transpose" and (x := self.shape(node, 0)) is not None:
            order = attribute_of(node, "perm", None) or range(len(x) - 1, -1, -1)
            if sorted(order) == list(range(len(x))):
                self.learn(out, tuple(x[i] for i in order))
        elif op in ("Slice", "Pad") and (x := self.shape(node, 0)) is not None:
            self.learn(out, (None,) * len(x))
        elif op == "Concat":
            ranks = {len(s) for i in range(len(node.input)) if (s := self.shape(node, i)) is not None}
            if len(ranks) == 1:
                self.learn(out, (None,) * ranks.pop())
        elif op == "Reshape" and (target := self.shape(node, 1)) and isinstance(target[0], int):
            self.learn(out, (None,) * target[0])

    @staticmethod
    def _is_like_first(node: onnx.NodeProto) -> bool:
        """Whether an operator of no standard makes what has the shape of its first input."""
        apart = node.op_type == "GroupQueryAttention" and len(node.input) > 1 and bool(node.input[1])
        return apart or (node.domain == _LAUREL and node.op_type.startswith("Laurel"))

    def _convolved(self, node: onnx.NodeProto, kernel: Shape | None) -> None:
        if kernel is not None and len(kernel) > 2:
            x = self.shape(node, 0)
            batch = x[0] if x is not None and len(x) == len(kernel) else None
            self.learn(node.output[0], (batch, kernel[0], *[None] * (len(kernel) - 2)))

    def _attended(self, node: onnx.NodeProto) -> None:
        """Values of one width with queries and keys: a third of the projection, if the node does not say otherwise."""
        weight, x = self.shape(node, 1), self.shape(node, 0)
        wide = weight[-1] if weight else None
        sizes = attribute_of(node, "qkv_hidden_sizes", ())
        width = sizes[2] if len(sizes) == 3 else wide // 3 if isinstance(wide, int) else None
        rows = x[:2] if x is not None and len(x) == 3 else (None, None)
        self.learn(node.output[0], (*rows, width))

    def _multiplied(self, node: onnx.NodeProto) -> None:
        sizes = self._sizes(node)
        if sizes is None:
            return
        if node.op_type in ("Gemm", "FusedGemm"):
            self.learn(node.output[0], (None, sizes[1]))
        elif (x := self.shape(node, 0)) is not None and len(x) > 1:
            self.learn(node.output[0], (*x[:-1], sizes[1]))

    def _sizes(self, node: onnx.NodeProto) -> tuple[Dim, Dim] | None:
        """Rows and columns of the matrix that an operator multiplies by from the right."""
        if node.op_type in _PACKED:
            return attribute_of(node, "K", None), attribute_of(node, "N", None)
        weight = self.shape(node, _MATRICES[node.op_type])
        if (
            weight is None
            or len(weight) != 2
            or attribute_of(node, "transA", 0)
            or attribute_of(node, "transBatchA", 0)
        ):
            return None
        return (weight[1], weight[0]) if attribute_of(node, "transB", 0) else (weight[0], weight[1])

    def _one_type(self, node: onnx.NodeProto) -> None:
        """Values that a schema gives one type have one element type."""
        for names in self._groups(node):
            kinds = {kind for name in names if (kind := self.types.get(name, (None, None))[1]) is not None}
            if len(kinds) == 1:
                kind = next(iter(kinds))
                for name in names:
                    self.learn(name, dtype=kind)

    def _groups(self, node: onnx.NodeProto) -> Iterable[list[str]]:
        if (places := _ONE_TYPE.get(node.op_type)) is not None and node.domain == "com.microsoft":
            return [[node.output[0], *(node.input[i] for i in places if i < len(node.input) and node.input[i])]]
        letters = _letters(node.op_type, node.domain, self.opset)
        if letters is None:
            return []
        groups: dict[str, list[str]] = {}
        for names, formal in ((node.input, letters[0]), (node.output, letters[1])):
            for place, name in enumerate(names):
                if name and formal:
                    groups.setdefault(formal[min(place, len(formal) - 1)], []).append(name)
        return [names for letter, names in groups.items() if letter and len(names) > 1]

    # ---- up -----------------------------------------------------------------------------------------------------

    def backward(self, node: onnx.NodeProto) -> None:
        if not node.output or not node.input:
            return
        op, x = node.op_type, node.input[0]
        made = self.types.get(node.output[0], (None, None))[0]
        if op in _CONVS and (kernel := self.shape(node, _CONVS[op])) is not None and len(kernel) > 2:
            group = attribute_of(node, "group", 1)
            channels = kernel[1] * group if isinstance(kernel[1], int) else None
            self.learn(x, (None, channels, *[None] * (len(kernel) - 2)))
        elif op in _MATRICES or op in _PACKED:
            if (sizes := self._sizes(node)) is not None:
                rank = 2 if op in ("Gemm", "FusedGemm") else len(made) if made is not None else 0
                if rank > 1:
                    self.learn(x, (*[None] * (rank - 1), sizes[0]))
        elif op in _SAME and op != "PRelu":
            if made is not None:  # symbols stay: an output's own name for a size is not that of what it is made of
                self.learn(x, tuple(size if isinstance(size, int) else None for size in made))
            self._normed(node, made)

    def _normed(self, node: onnx.NodeProto, made: Shape | None) -> None:
        scale = self.shape(node, 1)
        if made is None or scale is None or len(scale) != 1 or len(made) < 2:
            return
        if node.op_type in _CHANNEL_NORMS:
            self.learn(node.input[0], (None, scale[0], *[None] * (len(made) - 2)))
        elif node.op_type in _LAST_NORMS or (
            node.op_type == "LayerNormalization" and attribute_of(node, "axis", -1) in (-1, len(made) - 1)
        ):
            self.learn(node.input[0], (*[None] * (len(made) - 1), scale[0]))


def merged(known: Shape | None, said: Shape | None) -> Shape | None:
    """Returns *known* with the sizes that it leaves open taken from *said*; what it states stays."""
    if known is None or said is None or len(known) != len(said):
        return said if known is None else known
    return tuple(
        new if old is None or (isinstance(old, str) and isinstance(new, int)) else old
        for old, new in zip(known, said, strict=True)
    )


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if not known or len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    dims: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in known if len(shape) >= -axis]
        large = [size for size in sizes if isinstance(size, int) and size != 1]
        if large:
            dims.append(large[0])
        elif len(set(sizes)) == 1:
            dims.append(sizes[0])
        else:
            others = {size for size in sizes if size != 1}
            dims.append(others.pop() if len(others) == 1 and None not in others else None)
    return tuple(dims)


_LETTERS: dict[tuple[str, str, int], tuple[list[str], list[str]] | None] = {}


def _letters(op: str, domain: str, opset: int) -> tuple[list[str], list[str]] | None:
    """The type variables of an operator's inputs and outputs, "" where a type stands there; ``None`` if unknown."""
    key = op, domain, opset
    if key not in _LETTERS:
        _LETTERS[key] = _read_letters(op, "" if domain == "ai.onnx" else domain, opset)
    return _LETTERS[key]


def _read_letters(op: str, domain: str, opset: int) -> tuple[list[str], list[str]] | None:
    if op in ("If", "Loop", "Scan", "SequenceMap"):
        return None
    try:
        schema = onnx.defs.get_schema(op, opset if not domain else 1 << 20, domain)
    except onnx.defs.SchemaError:
        return None
    inputs, outputs = (
        ["" if "(" in item.type_str else str(item.type_str) for item in items]
        for items in (schema.inputs, schema.outputs)
    )
    return inputs, outputs
