"""Puts LAuReL residuals into a torch.fx graph in place of its joins, and takes them out again.

Each join node stays where it is, under its name and with its metadata, and becomes a call of the site's one
:class:`LaurelResidual` at ``laurel.<site>``. The modules remember what stood there, so that :func:`remove` gives the
same nodes back, copies and pickles included. All edits are worked out before the first one is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from typing import Any

import torch
from torch import fx, nn

from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.detection import SitePlan
from laurel_graph.errors import ModelError, RewriteError, near
from laurel_graph.foreign_names import path_parts
from laurel_graph.opset.schema import PREFIX
from laurel_graph.passes.read_fx.roles import is_in_place, operator_name
from laurel_graph.torch_residual.module import ATTRIBUTES, CONFIG, FROZEN, LaurelResidual

from .fx_memory import Memory

_ADDS = ("add", "radd", "iadd")
_ADDENDS = ("input", "self", "other")


@dataclass(frozen=True)
class InsertReport:
    """What :func:`insert` did.

    Attributes:
        sites: the sites that were rewritten, in the order of the plans.
        unchanged: sites whose residual was there already.
        parameters: number of new trainable parameters.
    """

    sites: tuple[str, ...]
    unchanged: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class JoinRecord:
    """What a join was before, kept by its site's module; operands are numbers of the new node's inputs.

    Attributes:
        name: the node's name.
        op: the node's op.
        target: what it called; ``("aten::add", "Tensor")`` for an operator overload.
        args: its arguments, nodes as :class:`Operand`.
        kwargs: its keyword arguments, likewise.
        moved: readers that read the overwritten operand and now read the join, by name.
        clones: names of the copies made for this join's earlier activations.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: tuple[str, ...] = ()
    clones: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operand:
    """Input number *index* of a rewritten join."""

    index: int


@dataclass
class _Edit:
    """One join that becomes a call."""

    node: fx.Node
    target: str
    place: int
    previous: list[fx.Node]
    kwargs: dict[str, Any]
    moved: list[fx.Node] = field(default_factory=list)


def insert(module: fx.GraphModule, plans: Sequence[SitePlan], config: LaurelConfig | None = None) -> InsertReport:
    """Replaces the joins of *plans* by LAuReL residuals that compute the same bits at the start, in place.

    In-place adds (``+=``, ``add_``) lose their side effect: what read the overwritten value afterwards reads the join.
    A site that is there already, in the same join, stays as it is.

    Args:
        module: a traced model; names in the plans are those of its nodes.
        plans: what goes where.
        config: kept in the module's ``meta``, for files that are written from it.

    Raises:
        RewriteError: a join is not there, is no add of two values, adds something else than its plan says, or
            overwrites memory that is read under another name afterwards. The module is unchanged.
    """
    inserter = _Inserter(module)
    fresh = [plan for plan in plans if not inserter.has(plan)]
    for plan in fresh:
        inserter.plan(plan)
    inserter.apply()
    if config is not None:
        module.meta[CONFIG] = config.to_json()
    return InsertReport(
        tuple(plan.spec.site for plan in fresh),
        tuple(plan.spec.site for plan in plans if plan not in fresh),
        sum(plan.spec.parameter_count() for plan in fresh),
    )


def remove(module: fx.GraphModule) -> fx.GraphModule:
    """Gives *module* back as it was before :func:`insert`, in place: nodes, names, arguments, order, frozen or not.

    Raises:
        ModelError: the module holds no LAuReL residual that :func:`insert` put there.
    """
    calls: dict[str, list[fx.Node]] = {}
    joins: dict[str, tuple[JoinRecord, ...]] = {}
    for node in module.graph.nodes:
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, LaurelResidual) and layer.joins:
            joins[str(node.target)] = layer.joins
            calls.setdefault(str(node.target), []).append(node)
    if not calls:
        raise ModelError(
            "there is nothing to remove: expected a module that laurel_graph.transform rewrote; for a module imported "
            "from ONNX use laurel remove on the file."
        )
    for target, nodes in calls.items():
        if len(joins[target]) != len(nodes):
            raise ModelError(
                f"{target} is called {len(nodes)} times and stands for {len(joins[target])} joins: the graph was "
                "changed after laurel_graph.transform; remove before that."
            )
    for target, nodes in calls.items():
        for node, record in zip(nodes, joins[target], strict=True):
            _restore(module.graph, node, record)
    for target in sorted(calls, key=lambda target: -target.count(".")):
        _delete(module, target)
    module.meta.pop(CONFIG, None)
    for name in module.meta.pop(FROZEN, ()):
        module.get_parameter(name).requires_grad_(True)
    _finish(module)
    return module


def _restore(graph: fx.Graph, node: fx.Node, record: JoinRecord) -> None:
    inputs: Any = node.args
    by_name = {other.name: other for other in graph.nodes}
    for name in record.moved:
        if name in by_name:
            by_name[name].replace_input_with(node, inputs[record.args[0].index])
    target = record.target
    if isinstance(target, tuple):
        namespace, _, op = target[0].partition("::")
        target = getattr(getattr(getattr(torch.ops, namespace), op), target[1])
    node.op, node.target = record.op, target
    node.args, node.kwargs = _decoded(record.args, inputs), _decoded(record.kwargs, inputs)
    if node.name != record.name and record.name not in by_name:
        node.name = record.name
    for name in record.clones:
        if name in by_name and not by_name[name].users:
            graph.erase_node(by_name[name])


def _encoded(value: Any, inputs: Sequence[fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        return Operand(inputs.index(value))
    if isinstance(value, (tuple, list)):
        return tuple(_encoded(item, inputs) for item in value)
    return {name: _encoded(item, inputs) for name, item in value.items()} if isinstance(value, dict) else value


def _decoded(value: Any, inputs: Sequence[Any]) -> Any:
    if isinstance(value, Operand):
        return inputs[value.index]
    if isinstance(value, tuple):
        return tuple(_decoded(item, inputs) for item in value)
    return {name: _decoded(item, inputs) for name, item in value.items()} if isinstance(value, dict) else value


def _delete(module: nn.Module, target: str) -> None:
    """Deletes a submodule and every container above it that is empty then."""
    parent, _, name = target.rpartition(".")
    delattr(module.get_submodule(parent), name)
    above = module.get_submodule(parent)
    if parent and type(above) is nn.Module and not any(True for _ in (*above.children(), *above.parameters())):
        _delete(module, parent)


def _finish(module: fx.GraphModule) -> None:
    module.graph.lint()
    module.recompile()


class _Inserter:
    """Works out the edits for a sequence of plans, then makes them."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self.memory = Memory(module.graph)
        self.edits: list[_Edit] = []
        self.sites: dict[str, tuple[str, SiteSpec, torch.device | None]] = {}
        self.known = {m.spec.site: name for name, m in module.named_modules() if isinstance(m, LaurelResidual)}
        self.taken = set(self.known.values())
        self.above: set[str] = set()
        tensors = [*module.parameters(), *module.buffers()]
        self.devices = {tensor.device for tensor in tensors}
        self.dtypes = Counter(
            str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.dtype.is_floating_point
        )

    def has(self, plan: SitePlan) -> bool:
        """Tells whether the residual of *plan* is in its place already."""
        target = self.known.get(plan.spec.site)
        return target is not None and any(
            key in self.nodes and self.nodes[key].op == "call_module" and self.nodes[key].target == target
            for key in plan.residual.joins
        )

    def plan(self, plan: SitePlan) -> None:
        """Checks one plan and adds its edits."""
        site, residual = plan.spec.site, plan.residual
        if site in self.known or site in self.sites:
            raise RewriteError(f"site {site!r} is in the model already; give the new one another name or leave it out.")
        if len(plan.previous) != plan.spec.previous:
            raise _fail(site, f"{plan.spec.previous} earlier activations expected, {len(plan.previous)} given")
        previous = [self.value(name, site) for name in plan.previous]
        chain = self.value(residual.skip, site)
        target, first = self.target(site), True
        for key in residual.joins:
            node = self.value(key, site)
            operands, scale = self.operands(node, site)
            place = next((i for i, operand in enumerate(operands) if self.same(operand, chain)), None)
            if place is None:
                continue  # a sum of branches only
            kwargs: dict[str, Any] = {} if first else {"outer": True}
            if scale != 1:
                kwargs["branch_scale" if place == 0 else "skip_scale"] = scale
            edit = _Edit(node, target, place, previous if first else [], kwargs)
            for value in edit.previous:
                if not self.memory.before(value, node):
                    raise _fail(site, f"the earlier activation {value.name!r} is computed after the join {key!r}")
            if is_in_place(node):
                edit.moved = self.moved(node, operands[0], site)
            if first or plan.spec.has_rw:
                self.edits.append(edit)
            chain, first = node, False
        if first:
            raise _fail(site, f"none of its joins {', '.join(residual.joins)} adds the skip {residual.skip!r}")
        self.sites[site] = (target, self.with_dtype(plan.spec), self.device(self.value(residual.joins[0], site)))

    def value(self, name: str, site: str) -> fx.Node:
        if name not in self.nodes:
            raise _fail(site, f"the graph has no node {name!r}; detect and select anew.{near(name, self.nodes)}")
        return self.nodes[name]

    def same(self, one: fx.Node, other: fx.Node) -> bool:
        """Tells whether two nodes are one value: ``y = relu_(x)`` and x are, afterwards."""
        while one.all_input_nodes and is_in_place(one):
            one = one.all_input_nodes[0]
        while other.all_input_nodes and is_in_place(other):
            other = other.all_input_nodes[0]
        return one is other

    def operands(self, node: fx.Node, site: str) -> tuple[tuple[fx.Node, fx.Node], float]:
        """Returns the two values that *node* adds, and the factor of the second."""
        adds = node.op in ("call_function", "call_method") and operator_name(node.target) in _ADDS
        if not adds or any(edit.node is node for edit in self.edits):
            raise _fail(site, f"{node.name!r} ({node.op} {operator_name(node.target)}) is no add that can be rewritten")
        kwargs = dict(node.kwargs)
        scale = kwargs.pop("alpha", 1)
        values = _addends(node)
        if set(kwargs) - set(_ADDENDS) or len(values) != 2 or not all(isinstance(value, fx.Node) for value in values):
            raise _fail(site, f"{node.format_node()} is no add of two values; write it as x + f(x)")
        if not isinstance(scale, (int, float)):
            raise _fail(site, f"the factor alpha of {node.name!r} is computed; expected a number")
        return (values[0], values[1]), scale

    def moved(self, node: fx.Node, overwritten: fx.Node, site: str) -> list[fx.Node]:
        """Returns what reads the overwritten operand of an in-place add afterwards, and from now on reads the add."""
        base = self.memory.base(overwritten)
        if base.op == "get_attr":
            raise _fail(site, f"{node.name!r} adds in place into {base.target!r}, which lives on; write x = x + f(x)")
        readers = list(self.memory.readers_after(node, overwritten))
        for value, reader in readers:
            if value is not overwritten and not self.same(value, overwritten):
                raise _fail(
                    site,
                    f"{node.name!r} adds in place into memory that {reader.name!r} reads afterwards as {value.name!r}; "
                    "write x = x + f(x)",
                )
        return [reader for value, reader in readers if value is overwritten]

    def target(self, site: str) -> str:
        """Returns where the site's module goes: ``laurel.<site>``, or near it where that is taken or no safe name."""
        parts = [f"{part}_" if part in ATTRIBUTES else part for part in path_parts(site)]
        for number in count(1):
            root = PREFIX if number == 1 else f"{PREFIX}_{number}"
            for name in (".".join([root, *parts]), f"{root}.{'_'.join(parts)}"):
                if self.free(name):
                    self.taken.add(name)
                    self.above.update(accumulate(name.split(".")[:-1], "{}.{}".format))
                    return name
        raise AssertionError("unreachable")

    def free(self, name: str) -> bool:
        if name in self.taken or name in self.above:
            return False
        owner: nn.Module = self.module
        *path, last = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                return True
            owner = getattr(owner, part)
            if not isinstance(owner, nn.Module):
                return False
        return not hasattr(owner, last)

    def with_dtype(self, spec: SiteSpec) -> SiteSpec:
        """The spec in an element type of the model's own parameters: its join's, else the most frequent one."""
        if not self.dtypes or spec.dtype in self.dtypes:
            return spec
        return spec.with_dtype(self.dtypes.most_common(1)[0][0])

    def device(self, join: fx.Node) -> torch.device | None:
        if len(self.devices) == 1:
            return next(iter(self.devices))
        value = join.meta.get("val")
        return value.device if isinstance(value, torch.Tensor) else next(iter(self.devices), None)

    def apply(self) -> None:
        """Makes the edits."""
        if not self.edits:
            return
        modules: dict[str, LaurelResidual] = {}
        for target, spec, device in self.sites.values():
            modules[target] = LaurelResidual(spec, device=device).train(self.module.training)
            self.module.add_submodule(target, modules[target])
        order = {node: place for place, node in enumerate(self.module.graph.nodes)}
        self.edits.sort(key=lambda edit: order[edit.node])
        records = [_rewrite(edit) for edit in self.edits]
        memory = Memory(self.module.graph)
        for edit, record in zip(self.edits, records, strict=True):
            clones = _keep_previous(edit, memory)
            modules[edit.target].joins += (replace(record, clones=clones),)
        _finish(self.module)


def _fail(site: str, message: str) -> RewriteError:
    return RewriteError(f"site {site!r}: {message}.")


def _addends(node: fx.Node) -> list[Any]:
    return [*node.args, *(node.kwargs[name] for name in _ADDENDS if name in node.kwargs)]


def _rewrite(edit: _Edit) -> JoinRecord:
    """Turns one join into a call; returns what it was."""
    node = edit.node
    values = _addends(node)
    inputs = (values[edit.place], values[1 - edit.place], *edit.previous)
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        target = (target._schema.name, target._overloadname)
    moved = tuple(reader.name for reader in edit.moved)
    args, kwargs = _encoded(node.args, inputs), _encoded(dict(node.kwargs), inputs)
    record = JoinRecord(node.name, node.op, target, args, kwargs, moved)
    node.op, node.target, node.args, node.kwargs = "call_module", edit.target, inputs, edit.kwargs
    for reader in edit.moved:
        reader.replace_input_with(values[0], node)
    return record


def _keep_previous(edit: _Edit, memory: Memory) -> tuple[str, ...]:
    """Copies the earlier activations that an in-place operator overwrites before the join reads them."""
    clones = []
    for place, value in enumerate(edit.previous):
        writer = memory.overwriter(value, edit.node)
        if writer is None:
            continue
        with value.graph.inserting_before(writer):
            clone = value.graph.create_node("call_method", "clone", (value,), name=f"{value.name}_kept")
        clone.meta = dict(value.meta)
        edit.node.update_arg(2 + place, clone)
        clones.append(clone.name)
    return tuple(clones)
