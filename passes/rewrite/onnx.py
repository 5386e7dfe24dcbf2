"""Puts LAuReL residuals into an ONNX model in place of its joins.

Every site becomes one node of domain ``ai.laurel`` where the join stood, under the join's name, with its tensors as
initializers ``laurel.<site>.*``. The nodes that were there before are kept in the model's metadata, so that
:mod:`.restore` gives every proto back as it was. All edits are worked out before the first one is made: an error leaves
the model untouched.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from laurel_graph.config import LaurelConfig
from laurel_graph.detection import Residual, SitePlan
from laurel_graph.errors import RewriteError
from laurel_graph.foreign_names import bare
from laurel_graph.formula import initial_parameters, resolve
from laurel_graph.onnx_model.bodies import scopes_of
from laurel_graph.onnx_model.tensors import make_tensor
from laurel_graph.onnx_model.walk import default_opset
from laurel_graph.onnx_model.weight_file import weight_locations
from laurel_graph.opset.functions import attach
from laurel_graph.opset.nodes import ELEMENT_TYPES
from laurel_graph.opset.schema import DOMAIN, Operator, read_specs, tensor_name
from laurel_graph.opset.undo import digests_of, new_undo, read_undo, write_records
from laurel_graph.passes.read_onnx.fused_adds import Join, take_apart


@dataclass(frozen=True)
class InsertReport:
    """What :func:`insert` did.

    Attributes:
        sites: the sites that were rewritten, in the order of the plans.
        tensors: names of the new initializers.
        parameters: number of new trainable parameters.
    """

    sites: tuple[str, ...]
    tensors: tuple[str, ...]
    parameters: int


@dataclass
class _Edit:
    """One node that gives way to others, in the main graph or in the body at a path."""

    path: str
    graph: GraphProto
    index: int
    nodes: list[NodeProto]


@dataclass
class _Edits:
    """All that one call of :func:`insert` will do."""

    nodes: list[_Edit] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)


def insert(
    model: ModelProto,
    plans: Sequence[SitePlan],
    config: LaurelConfig,
    *,
    adapter_inputs: bool = False,
    folder: Path | None = None,
) -> InsertReport:
    """Replaces the joins of *plans* by LAuReL residuals that compute the same bits at the start, in place.

    Whatever is not a join stays as it is: names, symbolic dims, value infos, metadata, opset. The IR version alone
    rises to 8, which functions need. (Below IR version 4 every weight is listed as a graph input; from 4 on runtimes
    take such weights for inputs that may change and fold them no more, until deployment takes them off the list.) A
    second call with other sites adds to the first.

    Operators of ONNX Runtime that hide an add (``SkipLayerNormalization``, ``SkipSimplifiedLayerNormalization``,
    ``FusedConv``, ``Gemm``) come apart; the plain operators round in another order there, so that the start differs
    from the original in the last bits.

    Args:
        model: the model; external data may stay unread.
        plans: what goes where.
        config: kept in the model's metadata.
        adapter_inputs: declare the LAuReL tensors as graph inputs with the initializers as defaults, so that a runtime
            can be given another adapter with every request.
        folder: of the model's weight files; with it, what :func:`~.restore.remove` says later covers their numbers.

    Raises:
        RewriteError: a join is not there, is none that can be rewritten, or a name is taken. The model is unchanged.
        ModelError: the model's opset is older than 7.
    """
    known = read_specs(model)
    edits = _Inserter(model, known).plan(plans)
    if not plans:
        return InsertReport((), (), 0)
    undo = read_undo(model) or {
        **new_undo(model, domain=all(entry.domain != DOMAIN for entry in model.opset_import)),
        "digests": digests_of(model, folder),
        "files": folder is not None or not weight_locations(model),
    }
    undo["nodes"] += _apply(edits.nodes)
    model.graph.initializer.extend(edits.tensors)
    undo["tensors"] += [tensor.name for tensor in edits.tensors]
    if adapter_inputs:
        for tensor in edits.tensors:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        undo["inputs"] += [tensor.name for tensor in edits.tensors]
    write_records(model, config.to_json(), (*known.values(), *(plan.spec for plan in plans)), undo)
    attach(model)
    return InsertReport(
        tuple(plan.spec.site for plan in plans),
        tuple(tensor.name for tensor in edits.tensors),
        sum(plan.spec.parameter_count() for plan in plans),
    )


def _apply(edits: Sequence[_Edit]) -> list[dict[str, Any]]:
    """Makes the edits; returns what :mod:`.restore` needs: the old node and the keys of those that replaced it."""
    undo = []
    for edit in sorted(edits, key=lambda edit: -edit.index):
        old = edit.graph.node.pop(edit.index)
        for node in reversed(edit.nodes):
            edit.graph.node.insert(edit.index, node)
        text = base64.b64encode(old.SerializeToString()).decode()
        where = {"body": edit.path} if edit.path else {}
        undo.append({"new": [key_of(node) for node in edit.nodes], "old": text, **where})
    return undo


def key_of(node: NodeProto) -> str:
    """The value that a node goes by: the first that it makes."""
    return next((name for name in node.output if name), "")


class _Inserter:
    """Works out the edits for a sequence of plans; changes nothing."""

    def __init__(self, model: ModelProto, known: dict[str, Any]) -> None:
        self.opset = default_opset(model)
        self.known = set(known)
        self.edits = _Edits()
        self.hidden: dict[tuple[str, str], str] = {}
        self.graphs = scopes_of(model)
        self.places: dict[str, tuple[str, int]] = {}
        self.names: set[str] = set()
        self.made_at: dict[str, int] = {}
        for path, graph in self.graphs.items():
            self.names.update(value.name for value in (*graph.input, *graph.initializer))
            self.names.update(sparse.values.name for sparse in graph.sparse_initializer)
            for index, node in enumerate(graph.node):
                self.places.setdefault(path + key_of(node), (path, index))
                self.names.update(node.output)
                self.made_at.update((path + name, index) for name in node.output)
        self.alone = Counter(key.removeprefix(path) for key, (path, _) in self.places.items())

    def plan(self, plans: Sequence[SitePlan]) -> _Edits:
        for plan in plans:
            if plan.spec.site in self.known:
                raise RewriteError(
                    f"site {plan.spec.site!r} is in the model already; give the new one another name or leave it out."
                )
            self.known.add(plan.spec.site)
            _Site(self, plan).rewrite()
        return self.edits

    def claim(self, name: str, site: str) -> str:
        """Takes a new name.

        Raises:
            RewriteError: the graph has it already.
        """
        if name in self.names:
            raise RewriteError(f"site {site!r}: the graph has a value {name!r} already; expected no name like this.")
        self.names.add(name)
        return name

    def node(self, key: str, site: str) -> tuple[str, int, NodeProto]:
        """The join with that key, each once: the path of its body, its place there, and itself."""
        place = self.places.pop(key, None)
        if place is None and self.alone[key] == 1:  # the plain name of a join in a body, where it is the only one
            scoped = next((scoped for scoped, (path, _) in self.places.items() if scoped == path + key), "")
            place = self.places.pop(scoped, None)
        if place is None:
            raise RewriteError(f"site {site!r}: the graph has no join {key!r} left to rewrite; detect and select anew.")
        path, index = place
        return path, index, self.graphs[path].node[index]


class _Site:
    """Works out the edits of one site."""

    def __init__(self, inserter: _Inserter, plan: SitePlan) -> None:
        self.inserter, self.plan, self.spec = inserter, plan, plan.spec
        self.site = plan.spec.site
        self.count: dict[str, int] = {}

    def fail(self, message: str) -> RewriteError:
        return RewriteError(f"site {self.site!r}: {message}")

    def fresh(self, word: str) -> str:
        """A new name for a value of this site."""
        self.count[word] = self.count.get(word, 0) + 1
        number = self.count[word] if self.count[word] > 1 else ""
        return self.inserter.claim(tensor_name(self.site, f"{word}{number}"), self.site)

    def tensor(self, name: str, array: Any) -> str:
        full = self.inserter.claim(tensor_name(self.site, name), self.site)
        self.inserter.edits.tensors.append(make_tensor(full, array, ELEMENT_TYPES[self.spec.dtype]))
        return full

    def rewrite(self) -> None:
        residual = self.plan.residual
        tensors = {
            name: self.tensor(name, array) for name, array in resolve(self.spec, initial_parameters(self.spec)).items()
        }
        for each, previous in ((residual, self.plan.previous), *zip(residual.copies, self.plan.copies, strict=True)):
            if len(previous) != self.spec.previous:
                raise self.fail(f"{self.spec.previous} earlier activations expected, {len(previous)} given.")
            self.rewrite_joins(each, list(tensors.values()), previous)

    def rewrite_joins(self, residual: Residual, tensors: Sequence[str], previous: Sequence[str]) -> None:
        """Rewrites the joins of the site in one body."""
        chain, first = bare(residual.skip, residual.body), True
        for key in residual.joins:
            if not first and not self.spec.has_rw:
                break  # outer adds change nothing but α of their branch
            path, index, node = self.inserter.node(key, self.site)
            join = take_apart(node, self.inserter.opset, self.spec.dtype, self.fresh)
            place = self.place_of(join, chain, node, path)
            if place is None:
                if first:
                    operands = ", ".join(map(repr, join.operands))
                    raise self.fail(f"join {key!r} adds {operands}; expected the skip {chain!r} among them.")
                continue  # a sum of branches only
            join = join.biased(place, self.fresh)
            earlier = [self.earlier(j, residual, previous[j], path, index) for j in range(self.spec.previous)]
            nodes = self.added(join, place, [*tensors, *earlier] if first else [])
            _take_over(node, nodes)
            graph = self.inserter.graphs[path]
            self.inserter.edits.nodes.append(_Edit(path, graph, index, [*join.before, *nodes, *join.after]))
            chain, first = join.total, False

    def place_of(self, join: Join, chain: str, node: NodeProto, path: str) -> int | None:
        """Which operand of *join* the stream comes in by."""
        if chain in join.operands:
            return join.operands.index(chain)
        if join.hidden and chain == key_of(node):
            self.inserter.hidden[path, self.site] = join.hidden
            return join.operands.index(join.hidden)
        return None

    def added(self, join: Join, place: int, given: Sequence[str]) -> list[NodeProto]:
        """The nodes that add the operands in their old order, with the stream at *place*.

        *given* is what the site's operator reads beside skip and branch; it is empty for outer adds.
        """
        operands = join.operands
        nodes: list[NodeProto] = []
        stream = operands[place]
        lead, rest = (operands[:place], operands[place + 1 :]) if place else (operands[1:2], operands[2:])
        branch = lead[0]
        for other in lead[1:]:
            total = self.fresh("part")
            nodes.append(helper.make_node("Add", [branch, other], [total], name=total))
            branch = total
        branches = [branch, *rest]
        for i, f in enumerate(branches):
            output = join.total if i == len(branches) - 1 else self.fresh("partial")
            if given and i == 0:
                nodes.append(self.full(stream, f, given, output))
            elif self.spec.has_rw:
                nodes.append(self.outer(stream, f, output))
            else:
                nodes.append(helper.make_node("Add", [stream, f], [output], name=output))
            stream = output
        return nodes

    def full(self, x: str, f: str, given: Sequence[str], output: str) -> NodeProto:
        """The site's operator."""
        return helper.make_node(self.operator().name, [x, f, *given], [output], name=output, domain=DOMAIN)

    def operator(self) -> Operator:
        if self.spec.axis == 1 and self.spec.ndim > 5:
            raise self.fail(f"channels with {self.spec.ndim - 2} axes of space have no operator; expected at most 3.")
        return Operator.of(self.spec)

    def outer(self, x: str, f: str, output: str) -> NodeProto:
        """α·f + x for a further branch."""
        one = tensor_name(self.site, "one")
        if one not in self.inserter.names:
            self.tensor("one", 1.0)
        operator = Operator(rw=True, layout=self.operator().layout)
        return helper.make_node(
            operator.name, [x, f, tensor_name(self.site, "alpha"), one], [output], name=output, domain=DOMAIN
        )

    def earlier(self, j: int, residual: Residual, scoped: str, path: str, index: int) -> str:
        """The value of the j-th earlier activation, which must be there before the join."""
        sites, name = residual.previous, bare(scoped, residual.body)
        if j < len(sites):
            name = self.inserter.hidden.get((path, sites[j]), name)
        if name not in self.inserter.names:
            raise self.fail(f"the graph has no value {name!r}, the earlier activation number {j + 1}.")
        if self.inserter.made_at.get(path + name, -1) >= index:
            raise self.fail(f"the earlier activation {name!r} is computed after the join.")
        return name


def _take_over(old: NodeProto, nodes: Sequence[NodeProto]) -> None:
    """Gives the last LAuReL node the name, doc string and metadata of the node that it replaces."""
    heir = next(node for node in reversed(nodes) if node.domain == DOMAIN)
    heir.ClearField("name")
    if old.HasField("name"):
        heir.name = old.name
    if old.HasField("doc_string"):
        heir.doc_string = old.doc_string
    heir.metadata_props.extend(old.metadata_props)
