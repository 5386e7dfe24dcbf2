"""Works out what is done to each block of a live model: which adds, which residuals, which way."""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from torch import fx, nn

from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.detection import Detection, Residual, SitePlan
from laurel_graph.errors import AdapterError, near
from laurel_graph.passes.read_fx.roles import is_in_place
from laurel_graph.passes.select import Selection, select

from .bytecode import Node
from .capture import Event, Path, Seen
from .joins import Entry, Point
from .watch import code_of

REWRITTEN, WATCHED = "rewritten", "watched"
"""The ways a site is reached: a call in the place of the instruction; found on the stack while the block runs."""

Slot = tuple[int, Path, int]
"""One execution of one add of one block: ``(id(block), path, place)``."""


@dataclass(frozen=True)
class Join:
    """One add of a residual connection in the model's code."""

    event: Event
    swapped: bool
    outer: bool


@dataclass
class BlockPlan:
    """What one block gets.

    Attributes:
        block: the module.
        paths: its adds, numbered by their place in this list.
        points: what each of them stands for.
        residuals: name of a submodule to the plan of its site.
        sites: all sites that its code holds.
        handed: the calls that hand on a function instead of calling it.
        home: the module that gets the residuals.
        prefix: how their names begin there.
    """

    block: nn.Module
    home: nn.Module
    prefix: str = "laurel_"
    handed: Collection[tuple[str, int]] = ()
    paths: list[Path] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    residuals: dict[str, SitePlan] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)

    def node(self) -> Node:
        """The tree of functions from the block's forward to its adds."""
        return _tree([(path, number) for number, path in enumerate(self.paths)], self.handed)


def _tree(paths: Sequence[tuple[Path, int]], handed: Collection[tuple[str, int]]) -> Node:
    inside: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    points: list[tuple[int, int, Node | None]] = []
    for path, number in paths:
        (_, offset), *rest = path
        if rest:
            inside[offset].append((tuple(rest), number))
        else:
            points.append((offset, number, None))
    code = paths[0][0][0][0]
    own = code_of(code)
    for offset, inner in inside.items():
        callee = _tree(inner, handed)
        called = code_of(callee.code)
        fresh = any(const is called or const == called for const in own.co_consts)
        points.append((offset, -1, replace(callee, fresh=fresh, handed=(code, offset) in handed)))
    return Node(code, tuple(sorted(points, key=lambda point: point[0])))


@dataclass(frozen=True)
class Plan:
    """What is done to a model.

    Attributes:
        detection: every join with its verdict.
        plans: one per residual that is put in.
        skipped: ``(site, reason)`` of the residual connections that get none of their own.
        blocks: what each block gets.
    """

    detection: Detection
    plans: tuple[SitePlan, ...]
    skipped: tuple[tuple[str, str], ...]
    blocks: tuple[BlockPlan, ...]


class Planner:
    """Ties the residual connections of a graph to the code of the model."""

    def __init__(self, seen: Seen, detection: Detection) -> None:
        self.seen = seen
        self.nodes: dict[str, fx.Node] = {node.name: node for node in seen.module.graph.nodes}
        self.lost: dict[str, str] = {}
        self.joins: dict[str, list[Join]] = {}
        for residual in detection.residuals:
            if residual.kind != "laurel":
                found = self._joins(residual)
                if isinstance(found, str):
                    self.lost[residual.site] = found
                else:
                    self.joins[residual.site] = found
        self.by_site = {residual.site: residual for residual in detection.residuals}
        self.site_of = {id(join.event): site for site, joins in self.joins.items() for join in joins}
        self.calls: dict[tuple[int, Path], list[list[int]]] = self._calls()
        self.number = {id(event): number for number, event in enumerate(seen.order)}
        self.periods = {key: self._period(calls) for key, calls in self.calls.items()}
        self.first: dict[Slot, str] = {}
        self.shares: dict[str, str] = {}
        for site, joins in self.joins.items():
            first = self.first.setdefault(self.slot(joins[0].event), site)
            if first != site:
                self.shares[site] = first
        self.merged = {*self.shares, *self.shares.values()}
        self.detection = self._without_merged_memory(detection)

    # Where the adds are

    def _joins(self, residual: Residual) -> list[Join] | str:
        chain: fx.Node | None = self.nodes.get(residual.skip)
        found: list[Join] = []
        for key in residual.joins:
            node = self.nodes.get(key)
            event = self.seen.events.get(key)
            if node is None or event is None or chain is None:
                return "no line of the model's own code adds here: torch does, inside one of its operators"
            if event.block is None:
                return "the add runs outside of any module's forward"
            operands = [value for value in _operands(node) if isinstance(value, fx.Node)]
            place = next((i for i, operand in enumerate(operands) if _same(operand, chain)), None)
            if place is None:
                continue  # a sum of branches only
            found.append(Join(event, place == 1, bool(found)))
            chain = node
        return found or "none of its adds takes the skip"

    def _calls(self) -> dict[tuple[int, Path], list[list[int]]]:
        """For each add of each block the numbers of its executions, call by call."""
        calls: dict[tuple[int, Path], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, event in enumerate(self.seen.order):
            if event.block is not None:
                calls[id(event.block), event.path][event.call].append(number)
        return {key: list(by_call.values()) for key, by_call in calls.items()}

    def _period(self, calls: list[list[int]]) -> int:
        """After how many executions an add of one call does the same again; the number of executions if it does not."""
        longest = max(calls, key=len)
        names = [self._identity(self.seen.order[number]) for number in longest]
        for period in range(1, len(names)):
            if all(name and name == names[i % period] for i, name in enumerate(names)):
                return period
        return len(names)

    def _identity(self, event: Event) -> str:
        site = self.site_of.get(id(event), "")
        return (self.by_site[site].shared or site) if site else ""

    def slot(self, event: Event) -> Slot:
        """Which execution of which add an event is."""
        key = (id(event.block), event.path)
        number = self.number[id(event)]
        place = next(call.index(number) for call in self.calls[key] if number in call)
        return *key, place % self.periods[key]

    def is_cyclic(self, key: tuple[int, Path]) -> bool:
        """Whether all executions of an add repeat a few."""
        return self.periods[key] < max(map(len, self.calls[key]))

    def _without_merged_memory(self, detection: Detection) -> Detection:
        """PA reads no residual that stands for several connections, and such a one has no PA."""
        gone = self.merged | set(self.lost)
        residuals = tuple(
            replace(
                residual,
                previous=() if residual.site in gone else tuple(s for s in residual.previous if s not in gone),
                blocked=residual.blocked or self.lost.get(residual.site, ""),
            )
            for residual in detection.residuals
        )
        return replace(detection, residuals=residuals)

    # What they get

    def plan(self, config: LaurelConfig) -> Plan:
        """Selects the sites of *config*; what is left alone says why.

        Raises:
            NoResidualError, SelectorError, ConfigError: as for :func:`laurel_graph.passes.select.select`.
        """
        selection: Selection = select(self.detection, config, any_rank=True)
        given: dict[Slot, str] = {}
        plans: list[SitePlan] = []
        skipped = list(selection.skipped)
        for plan in selection.plans:
            site = plan.spec.site
            slot = self.slot(self.joins[site][0].event)
            if slot in given:
                skipped.append((site, f"its code is that of {given[slot]}, whose residual serves both"))
            else:
                given[slot] = site
                plans.append(plan)
        return Plan(self.detection, tuple(plans), tuple(skipped), tuple(self._blocks(plans)))

    def plan_for(self, specs: Mapping[str, SiteSpec]) -> Plan:
        """Plans just the sites of *specs*, as an adapter has them.

        Raises:
            AdapterError: the model has no such site, or another number of earlier activations.
        """
        plans: list[SitePlan] = []
        slots: dict[Slot, str] = {}
        for site, spec in specs.items():
            residual = self.by_site.get(site)
            if residual is None or site not in self.joins:
                reason = self.lost.get(site, "") or f"the model has no such site{near(site, self.joins)}"
                raise AdapterError(f"the adapter's site {site!r} cannot be attached: {reason.rstrip('.')}.")
            slot = self.slot(self.joins[site][0].event)
            if (other := slots.setdefault(slot, site)) != site:
                raise AdapterError(
                    f"the adapter has residuals of their own for {other} and {site}, which are one here."
                )
            usable = next(r for r in self.detection.residuals if r.site == site).previous
            if spec.previous > len(usable):
                raise AdapterError(
                    f"site {site!r} of the adapter reads {spec.previous} earlier activations; there are {len(usable)}."
                )
            previous = tuple(self.by_site[name].skip for name in usable[: spec.previous])
            plans.append(SitePlan(residual, spec, previous))
        skipped = tuple((site, "not in the adapter") for site in self.joins if site not in specs)
        return Plan(self.detection, tuple(plans), skipped, tuple(self._blocks(plans)))

    def _blocks(self, plans: Sequence[SitePlan]) -> Iterator[BlockPlan]:
        sources = {self.by_site[site].skip: site for site in reversed(self.joins)}
        wanted = dict.fromkeys(sources[name] for plan in plans for name in plan.previous)
        slots = {site: number for number, site in enumerate(wanted)}
        entries: dict[Slot, Entry] = {}
        blocks: dict[int, BlockPlan] = {}
        for site in slots:
            join = self.joins[site][0]
            self._block(blocks, join.event)
            entries[self.slot(join.event)] = Entry("", join.swapped, slot=slots[site])
        for plan in plans:
            site, joins = plan.spec.site, self.joins[plan.spec.site]
            block = self._block(blocks, joins[0].event)
            name = _free(block)
            block.residuals[name] = plan
            previous = tuple(slots[sources[value]] for value in plan.previous)
            for join in joins:
                if join.outer and not plan.spec.has_rw:
                    continue
                self._block(blocks, join.event)
                slot = -1 if join.outer else slots.get(site, -1)
                entries[self.slot(join.event)] = Entry(
                    name, join.swapped, join.outer, slot, () if join.outer else previous
                )
        for key, block in blocks.items():
            for path in block.paths:
                period = self.periods[key, path]
                found = tuple(entries.get((key, path, place)) for place in range(period))
                block.points.append(Point(found, self.is_cyclic((key, path))))
            places = {(key, path) for path in block.paths}
            block.sites += [s for s, js in self.joins.items() if (id(js[0].event.block), js[0].event.path) in places]
            yield block

    def _block(self, blocks: dict[int, BlockPlan], event: Event) -> BlockPlan:
        assert event.block is not None  # such joins are lost
        block = blocks.get(id(event.block))
        if block is None:
            home, prefix = home_of(event.block, self.seen.model)
            block = blocks[id(event.block)] = BlockPlan(event.block, home, prefix, self.seen.handed)
        if event.path not in block.paths:
            block.paths.append(event.path)
        return block


def _free(plan: BlockPlan) -> str:
    """A name for a residual that nothing in the block has."""
    for number in count():
        name = f"{plan.prefix}{number}"
        if name not in plan.residuals and not hasattr(plan.home, name):
            return name
    raise AssertionError("unreachable")


def _operands(node: fx.Node) -> list[Any]:
    named = (node.kwargs[key] for key in ("input", "self", "other") if key in node.kwargs)
    return [*node.args[:2], *named]


def _same(one: fx.Node, other: fx.Node) -> bool:
    """Tells whether two nodes are one value: ``y = relu_(x)`` and x are, afterwards."""
    return _origin(one) is _origin(other)


def _origin(node: fx.Node) -> fx.Node:
    while node.all_input_nodes and is_in_place(node):
        node = node.all_input_nodes[0]
    return node


# Where residuals live ------------------------------------------------------------------------------------------------

_ITERATED = frozenset(("children", "named_children", "modules", "named_modules", "_modules"))


def home_of(block: nn.Module, model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that gets the residuals of *block*, and how their names begin there.

    A block that goes through its submodules, as a subclass of ``nn.Sequential`` does, would run a residual as one of
    them. So its residuals go to the nearest module above that does not, and where there is none to a layer inside.
    """
    if not goes_through_children(block):
        return block, "laurel_"
    path = next(path for path, module in model.named_modules() if module is block)
    steps = path.split(".") if path else []
    for length in range(len(steps) - 1, -1, -1):
        above = model.get_submodule(".".join(steps[:length]))
        if not goes_through_children(above):
            return above, f"laurel_{'_'.join(steps[length:])}_"
    inside = (m for m in block.modules() if m is not block and type(m).__module__.startswith("torch.nn."))
    leaf = next((m for m in inside if not any(True for _ in m.children()) and not isinstance(m, _CONTAINERS)), None)
    return (block, "laurel_") if leaf is None else (leaf, "laurel_")


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def goes_through_children(block: nn.Module) -> bool:
    """Tells whether the forward of *block* may run every submodule that it has."""
    if isinstance(block, _CONTAINERS):
        return True
    return any(_ITERATED & set(code.co_names) for code in _codes(type(block)))


def _codes(kind: type[nn.Module]) -> Iterator[types.CodeType]:
    """Yields the code of ``forward`` and of the methods of its class that it may call."""
    todo = ["forward"]
    seen = set(vars(nn.Module)) - {"forward"}
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        function = inspect.unwrap(getattr(kind, name, None))  # type: ignore[arg-type]
        codes = [function.__code__] if isinstance(function, types.FunctionType) else []
        while codes:
            code = codes.pop()
            yield code
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
            todo += code.co_names
