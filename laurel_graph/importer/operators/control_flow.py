"""If, Loop and Scan: subgraphs become modules that Python's own control flow calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..builder import Value
from ..node import Node
from ..registry import Registry


def as_tuple(result: Any) -> tuple[Any, ...]:
    """Returns what a subgraph's module returned as a tuple."""
    return result if isinstance(result, tuple) else (result,)


class Conditional(nn.Module):
    """Runs the branch that the condition takes."""

    def __init__(self, then_branch: fx.GraphModule, else_branch: fx.GraphModule, then_count: int) -> None:
        super().__init__()
        self.then_branch = then_branch
        self.else_branch = else_branch
        self.then_count = then_count

    def forward(self, condition: Tensor, *captured: Any) -> tuple[Any, ...]:
        """Takes the condition, then what the first and what the second branch take from around them."""
        if bool(condition):
            return as_tuple(self.then_branch(*captured[: self.then_count]))
        return as_tuple(self.else_branch(*captured[self.then_count :]))


def _if(node: Node) -> Sequence[Value]:
    then_graph, else_graph = node.attr("then_branch"), node.attr("else_branch")
    condition = node.const(0)
    if condition is not None:
        taken = then_graph if bool(condition) else else_graph
        return node.converter.inline(taken, node.builder, node.scope)
    then_module, then_values = node.converter.subgraph(then_graph, node.scope, f"{node.name}_then")
    else_module, else_values = node.converter.subgraph(else_graph, node.scope, f"{node.name}_else")
    module = Conditional(then_module, else_module, len(then_values))
    return _call(node, module, node[0], *then_values, *else_values)


def _call(node: Node, module: nn.Module, *args: Any) -> list[Value]:
    path = f"control_flow.{node.op.lower()}_{len(node.builder.graph.nodes)}"
    value = node.builder.call(path, module, *args, name=node.name)
    return node.unpack(value)


class Loop(nn.Module):
    """Runs the body until the trip count is reached or its condition fails."""

    def __init__(self, body: fx.GraphModule, carried: int) -> None:
        super().__init__()
        self.body = body
        self.carried = carried

    def forward(self, trips: Tensor | None, condition: Tensor | None, *values: Any) -> tuple[Any, ...]:
        """Takes the loop-carried values, then what the body takes from around it.

        Returns:
            The final carried values, then the scan outputs stacked along a new first axis.
        """
        state, captured = list(values[: self.carried]), values[self.carried :]
        limit = None if trips is None else int(trips)
        going = condition is None or bool(condition)
        scanned: list[list[Tensor]] = []
        step = 0
        while going and (limit is None or step < limit):
            result = as_tuple(self.body(torch.tensor(step), torch.tensor(going), *state, *captured))
            going, state = bool(result[0]), list(result[1 : self.carried + 1])
            scanned.append(list(result[self.carried + 1 :]))
            step += 1
        if not scanned:
            return (*state, *(torch.zeros(0) for _ in range(self.outputs_scanned)))
        return (*state, *(torch.stack(column) for column in zip(*scanned, strict=True)))

    @property
    def outputs_scanned(self) -> int:
        """Number of scan outputs."""
        output = next(node for node in reversed(self.body.graph.nodes) if node.op == "output")
        results = output.args[0]
        return (len(results) if isinstance(results, tuple) else 1) - 1 - self.carried


def _loop(node: Node) -> list[Value]:
    carried = len(node.proto.input) - 2
    module, captured = node.converter.subgraph(node.attr("body"), node.scope, f"{node.name}_body")
    state = [node[i + 2] for i in range(carried)]
    return _call(node, Loop(module, carried), node.get(0), node.get(1), *state, *captured)


class Scan(nn.Module):
    """Runs the body over the slices of its scan inputs."""

    def __init__(self, body: fx.GraphModule, states: int, inputs: Sequence[tuple[int, bool]],
                 outputs: Sequence[tuple[int, bool]]) -> None:  # fmt: skip
        super().__init__()
        self.body = body
        self.states = states
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """Takes the initial states, the scan inputs, then what the body takes from around it."""
        state = list(values[: self.states])
        scanned = values[self.states : self.states + len(self.inputs)]
        captured = values[self.states + len(self.inputs) :]
        steps = [
            list(reversed(x.unbind(axis)) if backward else x.unbind(axis))
            for x, (axis, backward) in zip(scanned, self.inputs, strict=True)
        ]
        rows: list[list[Tensor]] = []
        for slices in zip(*steps, strict=True):
            result = as_tuple(self.body(*state, *slices, *captured))
            state = list(result[: self.states])
            rows.append(list(result[self.states :]))
        columns = [list(column) for column in zip(*rows, strict=True)]
        stacked = [
            torch.stack(column[::-1] if backward else column, axis)
            for column, (axis, backward) in zip(columns, self.outputs, strict=True)
        ]
        return (*state, *stacked)


def _scan(node: Node) -> list[Value]:
    body, count = node.attr("body"), node.attr("num_scan_inputs")
    states = len(node.inputs) - count
    scan_outputs = len(body.output) - states
    node.require(node.version >= 9, "Scan of operator set 8, with a batch axis of its own")
    axes = node.attr("scan_input_axes") or [0] * count
    backward = node.attr("scan_input_directions") or [0] * count
    out_axes = node.attr("scan_output_axes") or [0] * scan_outputs
    out_backward = node.attr("scan_output_directions") or [0] * scan_outputs
    module, captured = node.converter.subgraph(body, node.scope, f"{node.name}_body")
    scan = Scan(
        module, states,
        [(axis, bool(b)) for axis, b in zip(axes, backward, strict=True)],
        [(axis, bool(b)) for axis, b in zip(out_axes, out_backward, strict=True)],
    )  # fmt: skip
    return _call(node, scan, *node.inputs, *captured)


class SequenceMap(nn.Module):
    """Runs the body on each element of a sequence."""

    def __init__(self, body: fx.GraphModule, count: int) -> None:
        super().__init__()
        self.body = body
        self.count = count

    def forward(self, sequence: Sequence[Any], *values: Any) -> tuple[list[Any], ...]:
        """Takes the sequence, the other inputs (sequences or tensors), then what the body takes from around it."""
        others, captured = values[: self.count], values[self.count :]
        rows = [
            as_tuple(self.body(item, *(o[i] if isinstance(o, list) else o for o in others), *captured))
            for i, item in enumerate(sequence)
        ]
        return tuple(list(column) for column in zip(*rows, strict=True))


def _sequence_map(node: Node) -> list[Value]:
    module, captured = node.converter.subgraph(node.attr("body"), node.scope, f"{node.name}_body")
    return _call(node, SequenceMap(module, len(node) - 1), *node.inputs, *captured)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("If", _if)
    registry.add("Loop", _loop)
    registry.add("Scan", _scan, 8)
    registry.add("SequenceMap", _sequence_map, 17)
