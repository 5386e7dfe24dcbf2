"""What may be relied on before a pass and after it: named, reusable, checked when asked (``laurel run --check``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laurel_graph.errors import LaurelError, ModelError, RewriteError

from .base import ONNX, Pass, kind_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

NOTHING = "unique-names", "order"
"""What every graph has to be."""

KEPT = (*NOTHING, "outputs", "dims", "metadata")
"""What every pass that rewrites a graph keeps."""


@dataclass(frozen=True)
class Invariant:
    """One thing that holds.

    Attributes:
        name: what passes and messages call it.
        text: what holds, in a sentence.
        fault: takes the graph and what was noted before the pass; returns what is wrong, or "".
        note: takes the graph before a pass; returns what has to be remembered.
    """

    name: str
    text: str
    fault: Callable[[Any, Any], str]
    note: Callable[[Any], Any] = lambda graph: None


def note(each: Pass, graph: Any) -> dict[str, Any]:
    """Checks what *each* requires of *graph* and returns what its ``ensures`` have to remember.

    Raises:
        RewriteError: something that the pass requires does not hold.
    """
    for name in each.requires:
        if fault := _fault(name, graph, INVARIANTS[name].note(graph) if kind_of(graph) == ONNX else None):
            raise RewriteError(f"pass {each.name!r} requires {name!r} ({INVARIANTS[name].text}): {fault}")
    return {name: INVARIANTS[name].note(graph) for name in each.ensures} if kind_of(graph) == ONNX else {}


def hold(each: Pass, graph: Any, noted: dict[str, Any]) -> None:
    """Checks what *each* ensures.

    Raises:
        RewriteError: something does not hold.
    """
    for name in each.ensures:
        if (name in noted or kind_of(graph) != ONNX) and (fault := _fault(name, graph, noted.get(name))):
            raise RewriteError(f"pass {each.name!r} breaks {name!r} ({INVARIANTS[name].text}): {fault}")


def _fault(name: str, graph: Any, noted: Any) -> str:
    if kind_of(graph) == ONNX:
        return INVARIANTS[name].fault(graph, noted)
    if name not in NOTHING:
        return ""
    try:
        graph.graph.lint()  # torch's own check of names and order
    except Exception as error:
        return str(error)
    return ""


def _repeated_name(model: ModelProto, _: object) -> str:
    from laurel_graph.onnx_model.walk import graphs_of

    for graph in graphs_of(model.graph):
        made = Counter(name for node in graph.node for name in node.output if name)
        made.update({value.name for value in graph.input} | {tensor.name for tensor in graph.initializer})
        for name, count in made.items():
            if count > 1:
                return f"the value {name!r} is made {count} times"
    return ""


def _out_of_order(model: ModelProto, _: object) -> str:
    from laurel_graph.onnx_model.walk import graphs_of

    return next((fault for graph in graphs_of(model.graph) if (fault := _misplaced(graph))), "")


def _misplaced(graph: GraphProto) -> str:
    from laurel_graph.onnx_model.walk import captured_names

    made_here = {name for node in graph.node for name in node.output}
    made: set[str] = {""}
    for node in graph.node:
        for name in (*node.input, *captured_names(node)):
            if name in made_here and name not in made and not _is_inner(node, name):
                return f"node {node.name or node.output[0]!r} reads {name!r} before it is made"
        made.update(node.output)
    return ""


def _is_inner(node: Any, name: str) -> bool:
    """Whether the subgraphs of a node make *name* themselves."""
    from laurel_graph.onnx_model.walk import graphs_of, subgraphs

    inner = (graph for body in subgraphs(node) for graph in graphs_of(body))
    return name not in node.input and any(
        name in (value.name for value in graph.input) or any(name in n.output for n in graph.node) for graph in inner
    )


def _outputs(model: ModelProto) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in model.graph.output]


def _lost_output(model: ModelProto, before: list[tuple[str, int]]) -> str:
    after = _outputs(model)
    if after[: len(before)] == before:
        return ""
    lost = next((old for old, new in zip(before, [*after, *[("", 0)] * len(before)], strict=False) if old != new))
    return f"output {lost[0]!r} is not in its place, or of another type; outputs are {[name for name, _ in after]}"


def _dims(model: ModelProto) -> dict[str, list[str | int]]:
    return {value.name: list(_dims_of(value)) for value in (*model.graph.input, *model.graph.output)}


def _dims_of(value: ValueInfoProto) -> Iterator[str | int]:
    for dim in value.type.tensor_type.shape.dim:
        yield dim.dim_param or dim.dim_value


def _lost_dim(model: ModelProto, before: dict[str, list[str | int]]) -> str:
    after = _dims(model)
    for name, dims in before.items():
        if name in after and after[name] != dims:
            return f"the dims of {name!r} were {dims} and are {after[name]}"
    return ""


def _metadata(model: ModelProto) -> dict[str, str]:
    from laurel_graph.opset.schema import PREFIX

    kept = {prop.key: prop.value for prop in model.metadata_props if not prop.key.startswith(f"{PREFIX}.")}
    head = {key: getattr(model, key) for key in ("producer_name", "producer_version", "doc_string", "domain")}
    return {**{f"{key} of the model": value for key, value in head.items()}, **kept}


def _lost_metadata(model: ModelProto, before: dict[str, str]) -> str:
    after = _metadata(model)
    return next((f"{key!r} is gone or changed" for key, text in before.items() if after.get(key) != text), "")


def _broken_record(model: ModelProto, _: object) -> str:
    """Holds our metadata against the graph: sites that stand there, nodes and tensors that an undo needs."""
    from laurel_graph.onnx_model.walk import graphs_of
    from laurel_graph.opset.plain import records_of
    from laurel_graph.opset.schema import DOMAIN, PREFIX, read_specs
    from laurel_graph.opset.undo import read_undo

    try:
        specs, undo, written = read_specs(model), read_undo(model) or {}, records_of(model)
    except ModelError as error:
        return str(error)
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    made = {name for node in nodes for name in node.output}
    ours = [*(node for node in nodes if node.domain == DOMAIN), *(node for node, _ in written)]
    read = [name for node in ours for name in node.input]
    for site in specs:
        if not any(name.startswith(f"{PREFIX}.{site}.") for name in read):
            return f"the site {site!r} is in the metadata and not in the graph"
    held = {tensor.name for tensor in model.graph.initializer}
    if lost := [name for name in undo.get("tensors", ()) if name not in held]:
        return f"the tensor {lost[0]!r} that removal takes out is gone"
    keys = [key for record in undo.get("nodes", ()) for key in record["new"]]
    return next((f"the value {key!r} that removal looks for is gone" for key in keys if key not in made), "")


INVARIANTS: dict[str, Invariant] = {
    each.name: each
    for each in (
        Invariant("unique-names", "every value is made once", _repeated_name),
        Invariant("order", "every value is made before it is read", _out_of_order),
        Invariant("outputs", "outputs keep their names, places and types; more may follow", _lost_output, _outputs),
        Invariant("dims", "inputs and outputs keep their sizes and the names of open ones", _lost_dim, _dims),
        Invariant("metadata", "metadata that is not ours stays", _lost_metadata, _metadata),
        Invariant("records", "our metadata fits the graph", _broken_record),
    )
}
"""Name to invariant. A user's own goes in by :func:`register_invariant`."""


def register_invariant(invariant: Invariant) -> Invariant:
    """Makes an invariant known by its name and returns it.

    Raises:
        LaurelError: the name is taken by another one.
    """
    if INVARIANTS.setdefault(invariant.name, invariant) is not invariant:
        raise LaurelError(f"an invariant {invariant.name!r} is there already; choose another name.")
    return invariant
