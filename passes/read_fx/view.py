"""Translates a torch.fx graph into the neutral :class:`~laurel_graph.graph_view.GraphView`.

Reads ATen graphs (torch.export, with or without decompositions) and graphs of modules and functions (symbolic_trace).
In-place operators take their functional form: after ``y = relu_(x)`` every later use of x reads y.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from laurel_graph.graph_view import GraphView, Role, Vertex, source_line

from .roles import ATTRIBUTES, INDEXED, LAYER_ROLES, PARTS, ROLE_OF, is_in_place, operator_name
from .values import (
    argument,
    dims_of,
    dtype_of,
    element_of,
    indexed,
    is_enlarged,
    is_strided,
    is_tensor,
    is_transposed,
    mixes,
    part_sizes,
    permutation_of,
    scope_of,
    shape_of,
    type_of,
    window_of,
)

_FUSED_ADVICE = "the add is part of {op}; export the model with run_decompositions() first"
_NESTED_ADVICE = "it stands inside a graph that {node} runs; only joins of the outer graph are rewritten"


def fx_view(module: fx.GraphModule, model: str = "") -> GraphView:
    """Returns the finished view of a traced module; shapes come from ``meta["val"]`` where it is set."""
    builder = _Builder(module, GraphView(model=model or type(module).__name__))
    builder.view.outputs.extend(builder.graph())
    return builder.view.finish()


class _Builder:
    """Reads one graph into *view*; one inside another gets a *prefix* for its names and is *blocked* for a reason."""

    def __init__(self, module: fx.GraphModule, view: GraphView, prefix: str = "", blocked: str = "") -> None:
        self.module, self.view, self.prefix, self.blocked = module, view, prefix, blocked
        self.modules = dict(module.named_modules())
        self.current: dict[fx.Node, int] = {}
        self.viewed: dict[fx.Node, fx.Node] = {}
        self.graphs: dict[fx.Node, fx.GraphModule] = {}
        self.parts: dict[fx.Node, list[int]] = {}

    def graph(self, given: Sequence[int | None] | None = None) -> list[int]:
        """Reads all nodes and returns the outputs; *given* are the values that a graph inside another reads."""
        outputs: list[int] = []
        place = 0
        for node in self.module.graph.nodes:
            self.view.nodes += 1
            if node.op == "output":
                outputs += [self.current[n] for n in _leaves(node.args) if isinstance(n, fx.Node)]
            elif node.op != "placeholder":
                self.node(node)
            elif given is None:
                self.current[node] = self.put(node, Role.INPUT if is_tensor(node) else Role.META, "input", [])
            else:
                self.current[node] = self.argument(node, given[place] if place < len(given) else None)
                place += 1
        return outputs

    def argument(self, node: fx.Node, value: int | None) -> int:
        """A value of the outer graph as the inner one sees it: whole, or a part of it for each step of a loop."""
        if value is None or not is_tensor(node):
            return self.put(node, Role.META, "input", [])
        outer = self.view.vertices[value].shape
        whole = outer is None or shape_of(node) is None or len(outer) == len(shape_of(node) or ())
        return self.put(node, Role.PASS if whole else Role.SLICE, "input", [value])

    def node(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.constant(node)
        elif node.op == "call_module":
            self.call_module(node)
        else:
            self.call(node, operator_name(node.target))
        if is_in_place(node) and node.all_input_nodes:
            self.mutate(node.all_input_nodes[0], self.current[node])

    def put(self, node: fx.Node, role: Role, op: str, inputs: Sequence[int], **more: Any) -> int:
        more.setdefault("shape", shape_of(node))
        more.setdefault("dtype", dtype_of(node))
        if self.blocked:
            more["blocked"] = self.blocked
        name = self.prefix + node.name
        return self.view.add(
            Vertex(
                name,
                name,
                op,
                role,
                tuple(inputs),
                name=name,
                scope=scope_of(node),
                source=source_line(node.stack_trace or ""),
                **more,
            )
        )

    def reads(self, nodes: Any) -> list[int]:
        found: list[int] = []
        fx.node.map_arg(nodes, lambda n: found.append(self.current[n]))
        return found

    def mutate(self, node: fx.Node, vertex: int) -> None:
        """Makes every later use of *node*, and of what it is a view of, read the new value."""
        while True:
            before = self.current[node]
            self.current[node] = vertex
            base = self.viewed.get(node)
            if base is None:
                return
            sliced = self.view.vertices[before].role is Role.SLICE
            role, inputs = (Role.SCATTER, [self.current[base], vertex]) if sliced else (Role.RESHAPE, [vertex])
            vertex = self.put(base, role, "write to a view", inputs)
            node = base

    def constant(self, node: fx.Node) -> None:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        if isinstance(value, fx.GraphModule):
            self.graphs[node] = value
        shape, dtype = (dims_of(value), type_of(value)) if isinstance(value, torch.Tensor) else (None, None)
        self.current[node] = self.put(node, Role.CONSTANT, "attribute", [], shape=shape, dtype=dtype)

    def nested(self, node: fx.Node, graphs: Sequence[fx.GraphModule], given: Sequence[Any]) -> None:
        """Reads the graphs that *node* runs (torch.cond, while_loop, checkpoint, a region without gradients ...).

        Each result is what any of them may give, and in a loop what it starts from.
        """
        values = [self.current[value] if isinstance(value, fx.Node) else None for value in given]
        blocked = self.blocked or _NESTED_ADVICE.format(node=node.name)
        ends = [
            _Builder(graph, self.view, f"{self.prefix}{node.name}.{place}.", blocked).graph(values)
            for place, graph in enumerate(graphs)
        ]
        if operator_name(node.target) == "while_loop":
            ends = [ends[-1], [value for value in values if value is not None]]
        several = isinstance(node.meta.get("val"), (tuple, list)) or max(map(len, ends), default=0) > 1
        outputs = [list(dict.fromkeys(end)) for end in zip(*ends, strict=False)] or [[]]
        self.parts[node] = [
            self.put(node, Role.PASS if len(end) == 1 else Role.OTHER, "nested graph", end) for end in outputs
        ]
        self.current[node] = self.parts[node][0]
        if not several:
            del self.parts[node]

    def call_module(self, node: fx.Node) -> None:
        layer = self.modules[str(node.target)]
        if isinstance(layer, fx.GraphModule):
            self.nested(node, [layer], _leaves((node.args, node.kwargs)))
            return
        kind, inputs = type(layer).__name__, self.reads((node.args, node.kwargs))
        if type(layer).__module__ == "laurel_graph.torch_residual.module":
            spec = layer.spec
            self.current[node] = self.put(
                node, Role.LAUREL, kind, inputs, rank=spec.rank, site=spec.site, axis=spec.axis, width=spec.width
            )
            return
        role = next((role for role, pattern in LAYER_ROLES if re.search(pattern, kind)), None)
        if role is None and type(layer).__module__ == "torch.nn.modules.activation":
            role = Role.ACTIVATION
        matrices = [p for p in layer.parameters() if sum(1 for dim in p.shape if dim != 1) >= 2]
        if role is None or (role is Role.PASS and matrices):
            role = Role.WEIGHTED if matrices else Role.OTHER if len(inputs) != 1 else Role.ACTIVATION
        more: dict[str, Any] = {"scope": None}
        weight = getattr(layer, "weight", None)
        if role in (Role.CONV, Role.LINEAR, Role.WEIGHTED, Role.UPSAMPLE) and (matrices or callable(weight)):
            more = {"weighted": True, "weight": f"{node.target}.weight"}
            width = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
            more["width"] = width if isinstance(width, int) else None
            more["axis"] = 1 if role in (Role.CONV, Role.UPSAMPLE) else -1
        elif role is Role.POOL:
            more["mixes"] = mixes(getattr(layer, "kernel_size", 1), getattr(layer, "stride", 1))
        if role in (Role.CONV, Role.POOL):
            more["strided"] = is_strided(getattr(layer, "stride", 1))
        more.pop("scope", None)
        if role in (Role.CONV, Role.LINEAR, Role.NORM, Role.PASS, Role.POOL):
            inputs = inputs[:1]
        self.current[node] = self.put(node, role, kind, inputs, **more)

    def call(self, node: fx.Node, op: str) -> None:
        args = node.args
        if self.graphs and (graphs := [value for value in node.all_input_nodes if value in self.graphs]):
            given = _leaves((args, node.kwargs))
            self.nested(node, [self.graphs[value] for value in graphs], given[given.index(graphs[-1]) + 1 :])
            return
        role = ROLE_OF.get(op, Role.OTHER)
        if op == "getattr":
            role = ATTRIBUTES.get(str(args[1]), Role.META)
            if args[1] == "indices":
                self.current[node] = self.put(node, role, op, self.view.vertices[self.reads(args)[0]].inputs[:1])
                return
        elif op == "getitem":
            self.getitem(node)
            return
        elif op in ("max", "min") and isinstance(argument(node, 1, ("dim",), None), int):
            role = Role.POOL
        elif not is_tensor(node) and "val" in node.meta:
            role = Role.META if not isinstance(node.meta["val"], (tuple, list)) else role
        namespace = getattr(node.target, "namespace", "")
        if namespace == "laurel":
            role = Role.LAUREL
        handler = getattr(self, f"call_{op}", None)
        if handler is not None and role is not Role.META:
            handler(node)
            return
        more: dict[str, Any] = {}
        inputs = self.reads((args, node.kwargs))
        if role in (Role.CONV, Role.LINEAR):
            inputs = inputs[:2] if op != "einsum" else inputs
            more["width"] = self.width(op, inputs)
            more["axis"] = 1 if role is Role.CONV else -1
            if role is Role.CONV and is_transposed(node):
                role, more["weighted"], more["width"] = Role.UPSAMPLE, True, None
            elif role is Role.CONV:
                more["strided"] = is_strided(argument(node, 3, ("stride",), 1))
        elif role is Role.UPSAMPLE:
            more["weighted"] = op.startswith("conv_transpose")
            more["axis"] = 1
            inputs = inputs[:1]
        elif role is Role.WEIGHTED:
            more["weighted"] = True
        elif role is Role.CONCAT:
            more["axis"] = argument(node, 1, ("dim", "axis"), 0)
            if op == "stack":
                role = Role.OTHER
        elif role is Role.POOL and "pool" in op:
            kernel = argument(node, 1, ("kernel_size", "output_size"), 1)
            stride = argument(node, 2, ("stride",), None) or kernel
            more["mixes"] = "adaptive" not in op and mixes(kernel, stride)
            more["strided"] = "adaptive" not in op and is_strided(stride)
        elif role is Role.SLICE:
            self.slice(node, op, inputs)
            return
        elif role is Role.SELECT:
            condition = argument(
                node, int(op == "masked_fill" or node.op == "call_method"), ("condition", "mask"), None
            )
            inputs = self.reads([value for value in (*args, *node.kwargs.values()) if value is not condition])
            role = role if inputs else Role.META  # where(condition) alone gives places
        elif role is Role.SCATTER:
            inputs = [*inputs[:1], *inputs[-1:]] if op != "slice_scatter" else inputs[:2]
        elif op in ("permute", "transpose", "swapaxes", "t"):
            more["permutation"] = permutation_of(node, op)
        elif role is Role.LAUREL:
            more["axis"] = -1
        if role in (Role.RESHAPE, Role.PASS, Role.NORM, Role.POOL, Role.REDUCE, Role.SOFTMAX):
            inputs = inputs[:1]
        self.current[node] = self.put(node, role, op, inputs, **more)
        if role is Role.RESHAPE and node.all_input_nodes:
            self.viewed[node] = node.all_input_nodes[0]

    def width(self, op: str, inputs: Sequence[int]) -> int | None:
        shape = self.view.vertices[inputs[1]].shape if len(inputs) > 1 else None
        if not shape:
            return None
        width = shape[-1] if op in ("matmul", "mm", "bmm", "einsum", "_grouped_mm", "grouped_mm") else shape[0]
        return width if isinstance(width, int) else None

    def getitem(self, node: fx.Node) -> None:
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)  # fx never writes getitem on anything else
        if source in self.parts:
            assert isinstance(index, int)  # of a tuple
            self.current[node] = self.put(node, Role.PASS, "getitem", [self.parts[source][index]])
            return
        vertex = self.view.vertices[self.current[source]]
        op = operator_name(source.target) if source.op in ("call_function", "call_method") else ""
        several = isinstance(source.meta.get("val"), (tuple, list)) or op in PARTS
        if not several:
            self.slice(node, "getitem", self.reads(source))
        elif op in PARTS and isinstance(index, int):
            axis, sizes = part_sizes(source, op)
            window = None
            if sizes is not None and -len(sizes) <= index < len(sizes) and op != "unbind":
                window = (sum(sizes[: index % len(sizes)]), sum(sizes[: index % len(sizes) + 1]))
            inputs = vertex.inputs[:1]
            self.current[node] = self.put(node, Role.SLICE, op, inputs, axis=axis, window=window)
            self.viewed[node] = source.all_input_nodes[0]
        elif op in INDEXED and index == 1:
            self.current[node] = self.put(node, Role.META, "getitem", vertex.inputs[:1])
        else:
            role = vertex.role if vertex.role is Role.META else Role.PASS
            self.current[node] = self.put(node, role, "getitem", [self.current[source]])

    def slice(self, node: fx.Node, op: str, inputs: Sequence[int]) -> None:
        axis, window = 0, None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        role = Role.SLICE
        table = bool(inputs) and not self.view.vertices[inputs[0]].data
        if op in ("index", "_unsafe_index", "index_select", "gather", "getitem") and table and len(inputs) > 1:
            role = Role.OTHER
        elif op in ("index", "_unsafe_index") and is_enlarged(node):
            role = Role.UPSAMPLE
        elif op == "slice":
            axis = argument(node, 1, ("dim",), 0)
            window = window_of(node, axis, argument(node, 2, ("start",), None), argument(node, 3, ("end",), None))
            window = window if argument(node, 4, ("step",), 1) == 1 else None
        elif op == "select":
            axis = argument(node, 1, ("dim",), 0)
            window = element_of(node, axis, argument(node, 2, ("index",), None))
        elif op == "getitem":
            axis, window = indexed(node)
        elif op == "narrow":
            axis, start, length = (argument(node, i, (), 0) for i in (1, 2, 3))
            if isinstance(start, int) and isinstance(length, int):
                window = (start, start + length)
        inputs = inputs if role is Role.OTHER else inputs[:1]
        self.current[node] = self.put(node, role, op, inputs, axis=axis, window=window)
        if source is not None and role is Role.SLICE and op not in ("index", "pad", "constant_pad_nd", "index_select"):
            self.viewed[node] = source

    def fused(self, node: fx.Node, op: str, addend: Any, role: Role, factors: Sequence[Any]) -> None:
        """addend + product of factors, in one operator of torch."""
        inputs = self.reads(factors)
        product = self.put(node, role, op, inputs, width=self.width("mm", inputs) if role is Role.LINEAR else None)
        added = self.reads(addend)
        if added and not self.view.vertices[added[0]].data and role is Role.LINEAR:
            self.current[node] = product
            return
        self.current[node] = self.put(node, Role.ADD, op, [*added, product], blocked=_FUSED_ADVICE.format(op=op))

    def call_addmm(self, node: fx.Node) -> None:
        self.fused(node, "addmm", node.args[0], Role.LINEAR, node.args[1:3])

    def call_baddbmm(self, node: fx.Node) -> None:
        self.fused(node, "baddbmm", node.args[0], Role.LINEAR, node.args[1:3])

    def call_addcmul(self, node: fx.Node) -> None:
        self.fused(node, "addcmul", node.args[0], Role.MUL, node.args[1:3])

    def call_addcdiv(self, node: fx.Node) -> None:
        self.fused(node, "addcdiv", node.args[0], Role.MUL, node.args[1:3])

    def call_sum(self, node: fx.Node) -> None:
        """``sum(stack(values))`` along the stacked axis is an add of the values."""
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.op == "call_function" and operator_name(source.target) == "stack":
            axis = argument(node, 1, ("dim", "axis"), None)
            axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
            if axis == argument(source, 1, ("dim",), 0):
                blocked = _FUSED_ADVICE.format(op="sum(stack(...))").replace(
                    "export the model with run_decompositions() first", "write it as x + f(x)"
                )
                self.current[node] = self.put(node, Role.ADD, "sum", self.reads(source.args[0]), blocked=blocked)
                return
        self.current[node] = self.put(node, Role.REDUCE, "sum", self.reads(node.args)[:1])


def _leaves(values: Any) -> list[Any]:
    """Returns what nested tuples, lists and dicts hold, in order."""
    if isinstance(values, (tuple, list)):
        return [leaf for value in values for leaf in _leaves(value)]
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in _leaves(value)]
    return [values]
