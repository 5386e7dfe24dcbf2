"""What other people's tools do to the names of ours, undone; and which sites they left nothing of.

Tools that join models put a prefix before every name, those of operators too; tools that look for equal constants let
sites share tensors, which at the start are equal. Both are undone when a file is read. Tools that inline, fuse or
quantise leave the records of a site and no node of it: that is said, for nobody can tell any more what stands there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto

from ..config import SiteSpec
from ..onnx_model.bodies import scopes_of
from ..onnx_model.walk import graphs_of, value_names
from .laurel_node import LaurelNode
from .recover import DEPLOYED_HINT, before, is_deployed
from .schema import DOMAIN, METADATA_CONFIG, PREFIX, Operator, laurel_nodes, read_metadata, read_specs, tensor_name
from .undo import read_undo, write_records


def mend(model: ModelProto) -> list[str]:
    """Gives nodes and tensors of ours their names back, in place, and every site tensors of its own.

    Returns:
        Sentences: what cannot be told any more.
    """
    lost = _without_prefix(model)
    _with_own_tensors(model)
    return lost


def sites_gone(model: ModelProto) -> list[str]:
    """Returns the sites that the records speak of and no node of the model belongs to."""
    specs = {} if is_deployed(model) else read_specs(model)
    held = {node.site for node in _ours(model)} if specs else set()
    return [site for site in specs if site not in held]


def why_not_trained(model: ModelProto) -> str:
    """Returns a sentence on why a model cannot be trained: it is deployed, or :func:`why_gone`; "" if it can."""
    return f"it is deployed: {DEPLOYED_HINT}." if is_deployed(model) else why_gone(model)


def why_gone(model: ModelProto) -> str:
    """Returns a sentence on the sites that the records speak of and the graph has no more; "" if it has all."""
    gone = sites_gone(model)
    if not gone:
        return ""
    named = ", ".join(map(repr, gone[:3])) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
    return (
        f"its records speak of {len(read_specs(model))} LAuReL residuals, and {len(gone)} of them ({named}) are no "
        f"nodes of {DOMAIN} any more: a tool inlined, fused or quantised them. The file computes what it did; train, "
        "deploy and remove in the file from before that tool, and use the tool on what laurel deploy writes."
    )


def _ours(model: ModelProto) -> Iterator[LaurelNode]:
    for graph in graphs_of(model.graph):
        for node in laurel_nodes(graph):
            if (ours := LaurelNode.of(node)) is not None:
                yield ours


def _without_prefix(model: ModelProto) -> list[str]:
    nodes = [node for graph in graphs_of(model.graph) for node in laurel_nodes(graph)]
    _name_operators(model, nodes)
    prefixes = {prefix for node in nodes for prefix in _prefixes(node)}
    if not prefixes - {""}:
        return []
    if len(prefixes) > 1:
        told = ", ".join(map(repr, sorted(prefixes)))
        return [f"its LAuReL tensors carry several prefixes ({told}): part the models with onnx.utils.extract_model"]
    prefix = prefixes.pop()
    start = f"{prefix}{PREFIX}."
    taken = set(value_names(model))
    renamed = {name: name.removeprefix(prefix) for name in taken if name.startswith(start)}
    if taken & set(renamed.values()):
        return [f"its LAuReL tensors carry the prefix {prefix!r} and stand beside others of the names without it"]
    _rename(model, renamed)
    undo, specs = read_undo(model), read_specs(model)
    if undo is None or not specs:
        return []
    undo["nodes"] = [before(node, path) for path, graph in scopes_of(model).items() for node in laurel_nodes(graph)]
    undo.pop("digests", None)
    write_records(model, read_metadata(model, METADATA_CONFIG) or "{}", specs.values(), undo)
    return [
        f"a tool put {prefix!r} before its names: it is read without; which operand of an addition came first cannot "
        "be told any more, and sums of several operands come back as additions of two each"
    ]


def _name_operators(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Takes prefixes off the names of operators and of their function bodies."""
    named: dict[str, str] = {}
    for kind in {node.op_type for node in nodes if Operator.parse(node.op_type) is None}:
        place = kind.find("Laurel", 1)
        while place > 0 and Operator.parse(kind[place:]) is None:
            place = kind.find("Laurel", place + 1)
        if place > 0:
            named[kind] = kind[place:]
    if not named:
        return
    for node in nodes:
        node.op_type = named.get(node.op_type, node.op_type)
    kept = {body.name for body in model.functions if body.domain == DOMAIN}
    for index, body in reversed(list(enumerate(model.functions))):
        if body.domain == DOMAIN and body.name in named:
            if named[body.name] in kept:
                del model.functions[index]
            else:
                kept.add(named[body.name])
                body.name = named[body.name]


def _prefixes(node: NodeProto) -> Iterator[str]:
    """What stands before the names of the tensors of a node, "" for names as ours are."""
    ours = LaurelNode.of(node)
    for role, name in ours.tensors.items() if ours is not None else ():
        if name.endswith((f".{role}", ".one")):
            place = name.find(f"{PREFIX}.")
            if place >= 0:
                yield name[:place]


def _rename(model: ModelProto, renamed: dict[str, str]) -> None:
    for graph in graphs_of(model.graph):
        for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.name = renamed.get(item.name, item.name)
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]


def _with_own_tensors(model: ModelProto) -> None:
    """Copies tensors that several sites share, so that each has its own under its own name.

    Which node is which site is told by their order, which the records keep, and by their operators; where either does
    not fit, or a tensor of another site's name is no shared one, the model stays as it is.
    """
    nodes = [] if is_deployed(model) else list(_ours(model))
    specs = read_specs(model) if nodes else {}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    if all(tensor_name(site, role) in held for site, spec in specs.items() for role in spec.tensor_shapes()):
        return
    if len(nodes) != len(specs) or read_undo(model) is None:
        return
    wanted: list[tuple[LaurelNode, SiteSpec]] = list(zip(nodes, specs.values(), strict=True))
    shared = Counter(name for node in nodes for name in node.tensors.values())
    if not all(_may_be(node, spec, held, shared) for node, spec in wanted):
        return
    undo = read_undo(model) or {}
    ours = set(undo["tensors"])
    for node, spec in wanted:
        for role, name in node.tensors.items():
            own = tensor_name(spec.site, role)
            if name == own:
                continue
            if own not in held:
                held[own] = TensorProto()
                held[own].CopyFrom(held[name])
                held[own].name = own
                model.graph.initializer.append(held[own])
            if own in ours:
                node.node.input[list(node.operator.inputs).index(role)] = own


def _may_be(node: LaurelNode, spec: SiteSpec, held: dict[str, TensorProto], shared: Counter[str]) -> bool:
    """Whether a node can be the one of a site: its tensors fit, and those of another name are shared or not ours."""
    if not node.is_whole or node.operator.name != Operator.of(spec).name:
        return False
    shapes = spec.tensor_shapes()
    for role, name in node.tensors.items():
        if name not in held or tuple(held[name].dims) != tuple(shapes[role]):
            return False
        own = tensor_name(spec.site, role)
        if name != own and (own in held or (name.startswith(f"{PREFIX}.") and shared[name] == 1)):
            return False
    return True
