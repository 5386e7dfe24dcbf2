"""Translates an ONNX model into the neutral :class:`~laurel_graph.graph_view.GraphView`.

Covers opsets 9 and up, both PyTorch exporters, ONNX Runtime's fused and quantised operators, subgraphs of If, Loop and
Scan, and model-local functions. Adds hidden in fused operators (Sum, SkipLayerNormalization, FusedConv, Gemm with a
full-size C) come apart here and nowhere else.

One file, because it is one walk: every step of it reads and writes the same tables of names.
"""

from __future__ import annotations

import ast
from collections import ChainMap, defaultdict
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import onnx
from onnx import numpy_helper

from laurel_graph.errors import ModelError
from laurel_graph.graph_view import GraphView, Role, Shape, Vertex, source_line
from laurel_graph.onnx_model import shape_rules
from laurel_graph.onnx_model.bodies import CONTROL, Body, bodies_of, inside
from laurel_graph.onnx_model.hidden_adds import HIDDEN_ADDS, at
from laurel_graph.onnx_model.order import in_order
from laurel_graph.onnx_model.shapes import Types, body_types, constant_tensor, dtype_name, tensor_types
from laurel_graph.onnx_model.walk import attribute_of, subgraphs
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.schema import DOMAIN, PREFIX

from .roles import is_added, operands_of, role_of

NCHWC_DOMAIN = "com.microsoft.nchwc"
SUPPORTED_OPSET = 9

_QUANTISED_ADVICE = (
    "it adds quantised integers (QLinearAdd); rewrite the float model, or its QDQ form, and quantise the result"
)
_FUSED_ADVICE = "the add is fused into {op}; rewrite the file as it was before ONNX Runtime optimised it"


def view_of(
    model: onnx.ModelProto,
    name: str = "",
    known: tuple[Types, str] | None = None,
    seen: shape_rules.Types | None = None,
) -> GraphView:
    """Returns the finished view of *model*; *name* is what messages call it, *known* what ``tensor_types`` said.

    Shapes and types that are *known*, value name to both, go before what is inferred. A missing producer becomes an
    input and a note. Shapes are inferred where possible and unknown otherwise.

    Raises:
        ModelError: a cycle of names, an opset below 9, or a file in ONNX Runtime's own NCHWc layout.
    """
    opset = next((imported.version for imported in model.opset_import if imported.domain in ("", "ai.onnx")), None)
    if opset is not None and 0 < opset < SUPPORTED_OPSET:
        raise ModelError(
            f"{name or 'the model'} has opset {opset}; expected {SUPPORTED_OPSET} or newer. "
            f"Convert it first: onnx.version_converter.convert_version(model, {SUPPORTED_OPSET})."
        )
    types, note = tensor_types(model) if known is None else known
    builder = _Builder(GraphView(model=name or model.graph.name or "ONNX model"), types, model, opset or 0, seen or {})
    builder.notes([note] if note else [])
    return builder.build()


class _Builder:
    def __init__(
        self, view: GraphView, types: Types, model: onnx.ModelProto, opset: int, seen: shape_rules.Types
    ) -> None:
        self.view, self.model, self.opset, self.seen = view, model, opset, seen
        self.types: Types = {**types, **seen}
        self.functions = {(f.domain, f.name): f for f in model.functions if f.domain != DOMAIN}
        self.constants: MutableMapping[str, onnx.TensorProto] = {}
        self.held: dict[tuple[str, str], list[Body]] = defaultdict(list)
        for body in bodies_of(model).values():
            self.held[_path(body.around), next(filter(None, body.node.output), "")].append(body)
        self.stored: dict[str, set[str]] = {}
        self.blocked = ""
        self.body: Body | None = None
        self.prefix = ""
        self.depth = 0

    def notes(self, notes: Sequence[str]) -> None:
        self.view.notes.extend(note for note in notes if note not in self.view.notes)

    def build(self) -> GraphView:
        names: MutableMapping[str, int] = {}
        graph = self.model.graph
        self.inputs(graph, names)
        self.graph(graph.node, names)
        for output in graph.output:
            if output.name in names or output.name in self.constants:
                self.view.outputs.append(self.lookup(output.name, names))
            else:
                self.notes([f"output {output.name!r} has no producer."])
        return self.view.finish()

    def inputs(self, graph: onnx.GraphProto, names: MutableMapping[str, int]) -> None:
        self.constants.update((tensor.name, tensor) for tensor in graph.initializer)
        self.constants.update((tensor.values.name, tensor.values) for tensor in graph.sparse_initializer)
        held = {tensor.name for tensor in graph.initializer}
        self.asked = {value.name for value in graph.input}
        for value in graph.input:
            if value.name not in held:
                names[value.name] = self.put(Role.INPUT, "input", value.name, ())

    def put(self, role: Role, op: str, value: str, inputs: Sequence[int], **more: Any) -> int:
        shape, dtype = self.types.get(value, (None, None)) if not self.depth else (None, None)
        more.setdefault("shape", shape)
        more.setdefault("dtype", dtype)
        more.setdefault("body", _path(self.body))
        return self.view.add(
            Vertex(more.pop("key", self.prefix + value), self.prefix + value, op, role, tuple(inputs), **more)
        )

    def lookup(self, name: str, names: MutableMapping[str, int]) -> int:
        if (index := names.get(name)) is not None:
            return index
        if (tensor := self.constants.get(name)) is not None:
            return self.constant(name, tensor, names)
        self.notes([f"value {name!r} has no producer; taken as an input."])
        index = names[name] = self.put(Role.INPUT, "missing", name, ())
        return index

    def constant(self, name: str, tensor: onnx.TensorProto, names: MutableMapping[str, int]) -> int:
        """Puts an initializer into the graph that holds it, which may lie around the one that reads it."""
        inner, owner = (self.body, self.prefix), names
        if not self.depth:
            while isinstance(owner, ChainMap) and self.body is not None and name not in self.stored[self.body.path]:
                owner, here = owner.maps[1], self.body
                self.prefix = self.prefix.removesuffix(here.path.removeprefix(_path(here.around)))
                self.body = here.around
        shape, dtype = tuple(tensor.dims), dtype_name(tensor.data_type)
        owner[name] = self.put(Role.CONSTANT, "initializer", name, (), shape=shape, dtype=dtype)
        self.body, self.prefix = inner
        return owner[name]

    def ints(self, name: str) -> list[int] | None:
        """Returns the integers of a constant, ``None`` if it is computed or far away."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.dims) > 1:
            return None
        try:
            return [int(v) for v in numpy_helper.to_array(tensor).reshape(-1)]
        except (TypeError, ValueError):
            return None

    def graph(self, nodes: Sequence[onnx.NodeProto], names: MutableMapping[str, int]) -> None:
        for node in in_order(nodes, self.view.model):
            self.view.nodes += 1
            self.node(node, names)

    def node(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        op = node.op_type
        if node.domain == NCHWC_DOMAIN:
            raise ModelError(
                f"node {node.name!r} is {op} of ONNX Runtime's own NCHWc layout, which holds for one machine alone. "
                "Use the file as it was before ONNX Runtime optimised it (at most ORT_ENABLE_EXTENDED)."
            )
        outputs = [name for name in node.output if name]
        if op == "Constant" and not node.domain:
            tensor = constant_tensor(node)
            shape, dtype = (tuple(tensor.dims), dtype_name(tensor.data_type)) if tensor is not None else (None, None)
            for name in outputs:
                if tensor is not None:
                    self.constants[name] = tensor
                names[name] = self.put(Role.CONSTANT, op, name, (), shape=shape, dtype=dtype)
            return
        if not outputs:
            return
        self.more = {"key": self.prefix + outputs[0], "name": node.name, "blocked": self.blocked, **_origin(node)}
        if node.domain == DOMAIN:
            self.laurel(node, names)
        elif is_added(node.domain, op):
            self.plain(node, names)
        elif (function := self.functions.get((node.domain, op))) is not None and self.depth < 8:
            self.call(node, function, names)
        elif subgraphs(node):
            self.subgraphs(node, names)
        else:
            special, least = _SPECIAL.get(op, (_Builder.plain, 0))
            (special if len(node.input) >= least else _Builder.plain)(self, node, names)

    def operands(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> list[int]:
        chosen = operands_of(node.domain, node.op_type)
        given = node.input if chosen is None else [node.input[i] for i in chosen if i < len(node.input)]
        return [self.lookup(name, names) for name in given if name]

    def plain(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        op = node.op_type
        role = role_of(node.domain, op)
        if op == "Attention" and not node.domain:
            role = Role.MIX
        inputs = self.operands(node, names)
        more = dict(self.more)
        if role is Role.WEIGHTED or op == "ConvTranspose":
            more["weighted"] = True
        if role in (Role.CONV, Role.LINEAR, Role.WEIGHTED):
            more["width"] = self.width(node)
        if op == "ConvTranspose":
            more["axis"] = 1
        if role in (Role.CONV, Role.POOL):
            more["strided"] = _is_strided(node)
        if role is Role.CONV:
            more["quantised"] = op == "QLinearConv"
            more["axis"] = -1 if op.startswith("Nhwc") else 1
        elif role is Role.CONCAT:
            more["axis"] = attribute_of(node, "axis", 0)
        elif op == "Transpose":
            more["permutation"] = tuple(attribute_of(node, "perm", ())) or None
        elif op == "QLinearAdd":
            more.update(quantised=True, blocked=more["blocked"] or _QUANTISED_ADVICE)
        elif op == "QuantizeLinear":
            more["quantised"] = True
        elif op == "DFT":
            more["shape"] = None
        elif role is Role.POOL:
            strides = attribute_of(node, "strides", ())
            kernel = attribute_of(node, "kernel_shape", ())
            more["mixes"] = any(k > 1 for k in kernel) and all(s == 1 for s in strides)
        for place, name in enumerate(node.output):
            if name:
                meta = op in ("DynamicQuantizeLinear", "Dropout", "MaxPool", "TopK") and place
                names[name] = self.put(Role.META if meta else role, op, name, inputs, **more)

    def width(self, node: onnx.NodeProto) -> int | None:
        """Output channels of a convolution or matrix product with a constant weight."""
        op = node.op_type
        place = 3 if op in ("QLinearConv", "QLinearMatMul", "QGemm") else 1
        if op == "MatMulNBits":
            return int(attribute_of(node, "N", 0)) or None
        if len(node.input) <= place:
            return None
        shape = self.types.get(node.input[place], (None, None))[0]
        if (tensor := self.constants.get(node.input[place])) is not None:
            shape = tuple(tensor.dims)
        if not shape:
            return None
        if role_of(node.domain, op) is Role.CONV:
            width = shape[-1] if op.startswith("Nhwc") else shape[0]
        else:
            width = shape[-2 if len(shape) > 1 and attribute_of(node, "transB", 0) else -1]
        if op == "Attention" and isinstance(width, int):
            width //= 3
        return width if isinstance(width, int) else None

    def fused_conv(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """Conv, then + Z, then activation."""
        more, value, form = self.more, node.output[0], HIDDEN_ADDS[node.op_type]
        last = self.put(
            Role.CONV,
            node.op_type,
            value,
            self.operands(node, names),
            **more,
            width=self.width(node),
            axis=1,
            strided=_is_strided(node),
        )
        if addend := at(node.input, form.addends[0]):
            if not form.comes_apart:
                more = {**more, "blocked": self.blocked or _FUSED_ADVICE.format(op=node.op_type)}
            inputs = [last, self.lookup(addend, names)]
            last = self.put(Role.ADD, node.op_type, value, inputs, **more, fused=True)
        if attribute_of(node, "activation", b""):
            last = self.put(Role.ACTIVATION, node.op_type, value, [last], **more)
        names[value] = last

    def gemm(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """A·B, then + C where C is no constant, then activation."""
        more, value = self.more, node.output[0]
        last = self.put(Role.LINEAR, node.op_type, value, self.operands(node, names), **more, width=self.width(node))
        if name := at(node.input, HIDDEN_ADDS[node.op_type].addends[0]):
            addend = self.lookup(name, names)
            if self.view.vertices[addend].data:
                more = {**more, "blocked": self.blocked or self.gemm_blocked(node)}
                last = self.put(Role.ADD, node.op_type, value, [last, addend], **more, fused=True)
        if attribute_of(node, "activation", b""):
            last = self.put(Role.ACTIVATION, node.op_type, value, [last], **more)
        names[value] = last

    def gemm_blocked(self, node: onnx.NodeProto) -> str:
        """Why the add in a Gemm cannot be taken apart, or ""."""
        if not HIDDEN_ADDS[node.op_type].comes_apart:
            return _FUSED_ADVICE.format(op=node.op_type)
        beta = attribute_of(node, "beta", 1.0)
        if beta != 1:
            return f"Gemm scales what it adds by beta = {beta:g}; only beta = 1 comes apart"
        if self.opset < 11:
            return f"Gemm needs its third input at opset {self.opset}; convert the model to opset 11 or newer"
        return ""

    def skip_norm(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """x + skip (+ bias), then the norm, which the first output is; a further output may be the sum."""
        more, values, form = dict(self.more), list(node.output), HIDDEN_ADDS[node.op_type]
        statistics = [name for place in form.statistics if (name := at(values, place))]
        if not form.comes_apart:
            more["blocked"] = self.blocked or _FUSED_ADVICE.format(op=node.op_type)
        elif statistics:
            more["blocked"] = (
                self.blocked or f"{node.op_type} gives out its mean or deviation, which only training needs"
            )
        total = at(values, form.total)
        named = next(name for name in (total, *values) if name)
        addends = [self.lookup(name, names) for place in form.addends if (name := at(node.input, place))]
        last = self.put(Role.ADD, node.op_type, named, addends, **more, fused=True)
        if bias := at(node.input, form.bias):
            last = self.put(Role.ADD, "bias", named, [last, self.lookup(bias, names)], **more)
        if total:
            names[total] = last
        if values[0]:
            names[values[0]] = self.put(Role.NORM, node.op_type, values[0], [last], **more)
        for name in statistics:
            names[name] = self.put(Role.META, node.op_type, name, [last], **more)

    def slice(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """One vertex per output, with the window it takes where that is constant."""
        source = self.operands(node, names)
        rows = self.windows(node)
        for name, (axis, window) in zip(node.output, rows, strict=False):
            if name:
                names[name] = self.put(Role.SLICE, node.op_type, name, source, **self.more, axis=axis, window=window)

    def windows(self, node: onnx.NodeProto) -> list[tuple[int, tuple[int, int] | None]]:
        shape = self.types.get(node.input[0], (None, None))[0]
        if node.op_type == "Slice":
            args = [self.ints(name) if name else None for name in node.input[1:5]] + [None] * 4
            starts = attribute_of(node, "starts", None) or args[0]
            ends = attribute_of(node, "ends", None) or args[1]
            axes = attribute_of(node, "axes", None) or args[2] or (list(range(len(starts))) if starts else None)
            if not (starts and ends and axes) or len(axes) != 1 or (args[3] or [1]) != [1]:
                return [(0, None)]
            return [(axes[0], _window(starts[0], ends[0], _dim(shape, axes[0])))]
        axis = attribute_of(node, "axis", 0)
        sizes = attribute_of(node, "split", None) or (self.ints(node.input[1]) if len(node.input) > 1 else None)
        whole = _dim(shape, axis)
        if sizes is None and isinstance(whole, int):
            part = -(-whole // len(node.output))
            sizes = [min(part, whole - i * part) for i in range(len(node.output))]
        if sizes is None:
            return [(axis, None)] * len(node.output)
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        return [(axis, (starts[i], starts[i + 1])) for i in range(len(sizes))]

    def gather(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """A lookup in data is a slice; in a table it is an embedding."""
        source = self.lookup(node.input[0], names)
        table = not self.view.vertices[source].data
        inputs = [source, *(self.lookup(name, names) for name in node.input[1:])]
        role = Role.OTHER if table else Role.SLICE
        axis = attribute_of(node, "axis", 0)
        places = self.ints(node.input[1]) or []
        window = None
        if len(places) == 1:
            size = _dim(self.types.get(node.input[0], (None, None))[0], axis)
            window = _window(places[0], places[0] + 1 or 2**62, size)
        names[node.output[0]] = self.put(
            role,
            node.op_type,
            node.output[0],
            inputs if table else inputs[:1],
            **self.more,
            axis=axis,
            window=window,
        )

    def laurel(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        known = LaurelNode.of(node)
        operator, named = (known.operator, known.inputs) if known is not None else (None, {})
        inputs = list(node.input)
        ours = next((name for name in inputs if name.startswith(f"{PREFIX}.") and name in self.constants), "")
        values = [
            name
            for place, name in enumerate(inputs)
            if name and (place < 2 or (name in names and name not in self.constants))
        ]
        factor = self.constants.get(named.get("A", "")) or self.constants.get(named.get("previous_A", ""))
        last = self.put(
            Role.LAUREL,
            node.op_type,
            node.output[0],
            [self.lookup(name, names) for name in values],
            **self.more,
            rank=factor.dims[-1] if factor is not None else 0,
            site=ours.removeprefix(f"{PREFIX}.").rpartition(".")[0],
            axis=operator.axis if operator is not None else -1,
        )
        if operator is not None and operator.epilogue:
            role = Role.ACTIVATION if operator.epilogue == "Relu" else Role.NORM
            names[node.output[0]] = self.put(role, operator.epilogue, node.output[0], [last], **self.more)
        else:
            names[node.output[0]] = last
        for name in node.output[1:]:
            if name:
                names[name] = last

    def call(self, node: onnx.NodeProto, function: onnx.FunctionProto, names: MutableMapping[str, int]) -> None:
        """Writes the body of a model-local function out in place."""
        inner: MutableMapping[str, int] = {
            formal: self.lookup(name, names) for formal, name in zip(function.input, node.input, strict=False) if name
        }
        more, blocked, prefix = self.more, self.blocked, self.prefix
        self.blocked = blocked or f"it stands inside the model-local function {function.name!r}; inline functions first"
        self.prefix = f"{prefix}{node.output[0]}/"
        self.depth += 1
        self.graph(function.node, inner)
        ends = [inner.get(formal) for formal in function.output]
        self.blocked, self.prefix, self.depth, self.more = blocked, prefix, self.depth - 1, more
        for end, name in zip(ends, node.output, strict=False):
            if name:
                names[name] = self.put(Role.PASS, node.op_type, name, [end] if end is not None else [], **more)

    def subgraphs(self, node: onnx.NodeProto, names: MutableMapping[str, int]) -> None:
        """If: either body's output. Loop, Scan: bodies read the carried values and slices of the scanned ones."""
        more, outer = self.more, (self.blocked, self.body, self.prefix, self.types, self.constants)
        given = [self.lookup(name, names) if name else None for name in node.input]
        ends: list[list[int]] = [[] for _ in node.output]
        carried = {"Loop": given[2:], "If": []}.get(node.op_type, given)
        for place, body in enumerate(self.bodies_of(node)):
            inner: MutableMapping[str, int] = ChainMap({}, names)  # type: ignore[arg-type]
            self.body, self.prefix = body, outer[2] + body.path.removeprefix(_path(outer[1]))
            self.blocked = outer[0] or self.never_rewritten(node, place)
            self.constants = ChainMap({}, outer[4])  # type: ignore[arg-type]
            self.constants.update((tensor.name, tensor) for tensor in body.graph.initializer)
            self.stored[body.path] = {tensor.name for tensor in body.graph.initializer}
            self.types = self.body_types(body, outer[3], node)
            if node.op_type == "If":
                self.view.choices[self.prefix] = f"{outer[2]}{node.output[0]}", place
            self.formals(node, body.graph, carried, inner)
            self.graph(body.graph.node, inner)
            results = [value.name for value in body.graph.output][1 if node.op_type == "Loop" else 0 :]
            for end, name in zip(ends, results, strict=False):
                if name in inner or name in self.constants:
                    end.append(self.lookup(name, inner))
        self.blocked, self.body, self.prefix, self.types, self.constants = outer
        self.more = more
        for place, name in enumerate(node.output):
            if name:
                start = carried[place] if place < len(carried) else None
                inputs = [*ends[place], *([start] if start is not None else [])]
                names[name] = self.put(Role.OTHER, node.op_type, name, inputs, **more)

    def bodies_of(self, node: onnx.NodeProto) -> list[Body]:
        """The bodies of a node of the graph that is walked, or of a function."""
        if self.depth:
            return list(inside(onnx.GraphProto(node=[node]), self.body))
        return self.held[_path(self.body), next(filter(None, node.output))]

    def formals(
        self,
        node: onnx.NodeProto,
        graph: onnx.GraphProto,
        carried: Sequence[int | None],
        inner: MutableMapping[str, int],
    ) -> None:
        """The inputs of a body: other values at every step, not those that the first starts from."""
        lead = len(graph.input) - len(carried)
        for place, value in enumerate(graph.input):
            start = carried[place - lead] if place >= lead else None
            role, inputs = (Role.META, []) if start is None else (Role.OTHER, [start])
            inner[value.name] = self.put(role, f"{node.op_type} input", value.name, inputs)

    def never_rewritten(self, node: onnx.NodeProto, place: int) -> str:
        """Why nothing in a body is rewritten, or ""."""
        where = f"{node.op_type} node {node.name or node.output[0]!r}"
        if node.op_type not in CONTROL:
            return f"it stands inside the body of {where}, and only those of {', '.join(CONTROL)} are rewritten"
        if node.op_type != "If":
            return ""
        condition = self.constants.get(node.input[0])
        if condition is None or condition.data_location == onnx.TensorProto.EXTERNAL or node.input[0] in self.asked:
            return ""
        taken = 0 if numpy_helper.to_array(condition).any() else 1
        kept = [item.name for item in node.attribute if item.type == onnx.AttributeProto.GRAPH][place]
        never = kept != ("then_branch", "else_branch")[taken]
        return f"it stands in the {kept} of {where}, which never runs: the condition is constant" if never else ""

    def body_types(self, body: Body, around: Types, node: onnx.NodeProto) -> Types:
        """What is known of the values that a body sees; a trial run knows better."""
        if self.depth:
            return around
        found = body_types(self.model, body, around, node)
        shown = {name[len(body.path) :]: known for name, known in self.seen.items() if name.startswith(body.path)}
        return {**around, **found, **shown}


_SPECIAL: dict[str, tuple[Callable[[_Builder, onnx.NodeProto, MutableMapping[str, int]], None], int]] = {
    "FusedConv": (_Builder.fused_conv, 2),
    "NhwcFusedConv": (_Builder.fused_conv, 2),
    "Gemm": (_Builder.gemm, 2),
    "FusedGemm": (_Builder.gemm, 2),
    "Slice": (_Builder.slice, 1),
    "Split": (_Builder.slice, 1),
    "Gather": (_Builder.gather, 1),
    **{op: (_Builder.skip_norm, form.addends[-1] + 1) for op, form in HIDDEN_ADDS.items() if form.norm},
}
"""Operators with a translation of their own, and how many inputs it needs."""


def _path(body: Body | None) -> str:
    return body.path if body is not None else ""


def _dim(shape: Shape | None, axis: int) -> int | None:
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def _window(start: int, end: int, size: int | None) -> tuple[int, int] | None:
    if size is None:
        return (start, end) if start >= 0 and end >= 0 else None
    start, end = (v + size if v < 0 else v for v in (start, end))
    return max(0, min(start, size)), max(0, min(end, size))


def _origin(node: onnx.NodeProto) -> dict[str, Any]:
    """Module path and source line of a node, where an exporter wrote them down."""
    scope: str | None = None
    source = ""
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            with suppress(ValueError, SyntaxError, IndexError):
                scope = str(ast.literal_eval(prop.value)[-2])
        elif prop.key == "pkg.torch.onnx.stack_trace":
            source = source_line(prop.value)
    if scope is None and "/" in node.name:
        scope = ""
        for part in filter(None, node.name.split("/")[:-1]):
            scope = part if part.startswith(f"{scope}.") or not scope else f"{scope}.{part}"
    return {"scope": scope, "source": source}


def _is_strided(node: onnx.NodeProto) -> bool:
    """Tells whether a convolution's or pool's stride is more than one along some axis."""
    return any(stride > 1 for stride in attribute_of(node, "strides", ()))
