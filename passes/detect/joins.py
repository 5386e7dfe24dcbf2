"""What detection knows of each add while it works, and how the joins become residual connections.

A join is one add; a residual connection may have several: (x + a) + b is one with two branches. LAuReL residuals that
are already there, ours or a published model's, are recognised here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from laurel_graph.graph_view import GraphView, Role
from laurel_graph.opset.schema import tensor_name

from .conditions import Entries
from .copies import Found
from .paths import LAYOUT, LONGEST_CHAIN, WEIGHTED, Chain, Facts, only_reader
from .reasons import BIAS, BRANCH_SUM, BROADCAST, NOT_FLOAT


@dataclass(slots=True)
class Candidate:
    """A way to read one add: *skip* leads back to *fork*, from which *branches* descend.

    Attributes:
        chain: what stands between fork and add on the side of the skip.
        facts: what is known of the paths from the fork to the branches.
        rank: the smallest one wins where an add has several readings.
    """

    skip: int
    fork: int
    chain: Chain
    branches: list[int]
    facts: int
    rank: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Joins:
    """The verdicts so far.

    Attributes:
        facts: what is known of the paths.
        entries: the adds that each value enters.
        found: add to the reading that made it a join.
        verdicts: add to (reason, detail) of those that are none.
        nearest: add to the reading that a verdict speaks of, where there is one.
        origins: LAuReL vertex to the fork that its skip and its branch come from.
    """

    view: GraphView
    facts: Facts
    entries: Entries
    found: dict[int, Candidate] = field(default_factory=dict)
    verdicts: dict[int, tuple[str, str]] = field(default_factory=dict)
    nearest: dict[int, Candidate] = field(default_factory=dict)
    origins: dict[int, int] = field(default_factory=dict)

    def take_back(self, index: int, detail: str) -> None:
        """Makes a join that was found a sum of branches of another one."""
        self.nearest[index] = self.found.pop(index)
        self.verdicts[index] = BRANCH_SUM, detail


def read_elsewhere(view: GraphView, branch: int, add: int) -> bool:
    """Tells whether *branch*, or what it is a cast of, has other readers than *add*."""
    for _ in range(LONGEST_CHAIN):
        if any(reader != add for reader in view.consumers[branch]):
            return True
        vertex = view.vertices[branch]
        if vertex.role is not Role.PASS or not vertex.inputs:
            return False
        add, branch = branch, vertex.inputs[0]
    return False


def residual_connections(joins: Joins) -> list[Found]:
    """Returns the residual connections in topological order; drops sums of branches from the joins."""
    view = joins.view
    for index in sorted(joins.found):
        _drop_inner_sums(joins, index)
    sites = _rewritten(joins)
    found: list[Found] = []
    taken: set[int] = set()
    for index in sorted(joins.found):
        if index in taken:
            continue
        item = joins.found[index]
        if (low_rank := _laurel_rank(view, item)) is not None:
            found.append(Found("laurel", item.fork, item.skip, tuple(item.branches), (index,), low_rank))
            continue
        adds, branches = [index], list(item.branches)
        while (outer := _outer_branch(joins, adds[-1], item)) is not None:
            adds.append(outer[0])
            branches.append(outer[1])
            taken.add(outer[0])
            joins.verdicts.pop(outer[0], None)
        site = sites.get(view.up(item.skip))
        if site is not None and view.up(item.fork) not in site.adds:  # (x + a) + b with the inner add rewritten
            site.branches.extend(branches)
            site.adds.extend(adds)
            continue
        kind = "projection" if item.chain.projection else "identity"
        found.append(Found(kind, item.fork, item.skip, tuple(branches), tuple(adds)))
    for site in {id(site): site for site in sites.values()}.values():
        skip = view.vertices[site.adds[0]].inputs[0]
        fork = joins.origins.get(site.adds[0], skip)
        found.append(Found("laurel", fork, skip, tuple(site.branches), tuple(site.adds), site.rank))
    found.sort(key=lambda item: item.adds[0])
    return found


def _drop_inner_sums(joins: Joins, index: int) -> None:
    """x + (g(c) + f(c)): the inner sum merges branches of the outer residual connection and is none itself."""
    view, item = joins.view, joins.found[index]
    if item.chain.projection:
        return
    for branch in item.branches:
        inner = view.up(branch)
        other = joins.found.get(inner)
        if other is not None and other.chain.projection and other.fork == item.fork:
            joins.take_back(inner, f"it adds branches of the join {view.vertices[index].value}")


def _outer_branch(joins: Joins, index: int, item: Candidate) -> tuple[int, int] | None:
    """Returns the add around *index* and its other operand when that is a further branch of the same fork."""
    view = joins.view
    below = only_reader(view, index)
    if below is None or joins.verdicts.get(below, (BIAS,))[0] in (BROADCAST, BIAS, NOT_FLOAT):
        return None
    inputs = view.vertices[below].inputs
    if index not in inputs or len(inputs) != 2:
        return None
    other = inputs[1] if inputs[0] == index else inputs[0]
    facts = joins.facts.between(item.fork, other) or 0
    if not facts & WEIGHTED or read_elsewhere(view, other, below):
        return None
    return below, other


# LAuReL that is already there -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rewritten:
    """A LAuReL residual that an earlier transformation put in."""

    rank: int
    branches: list[int] = field(default_factory=list)
    adds: list[int] = field(default_factory=list)


def _rewritten(joins: Joins) -> dict[int, _Rewritten]:
    """Returns the site of every LAuReL vertex; those of one site, for its several branches, share it.

    A sum of its branches in front of it is none of its own, as in :func:`_drop_inner_sums`.
    """
    view = joins.view
    sites: dict[int, _Rewritten] = {}
    named: dict[str, _Rewritten] = {}
    for index, vertex in enumerate(view.vertices):
        if vertex.role is not Role.LAUREL or not vertex.live or len(vertex.inputs) < 2:
            continue
        site = named.get(vertex.site) if vertex.site else None
        if site is None or view.up(vertex.inputs[0]) != site.adds[-1]:
            site = named[vertex.site] = _Rewritten(vertex.rank)
        site.adds.append(index)
        site.branches.append(vertex.inputs[1])
        sites[index] = site
        inner = view.up(vertex.inputs[1])
        join = joins.found.get(inner)
        if join is None:
            continue
        ours = bool(vertex.site) and view.vertices[inner].value.startswith(tensor_name(vertex.site, ""))
        if ours or (join.chain.projection and view.up(join.fork) == view.up(vertex.inputs[0])):
            joins.take_back(inner, f"it adds branches of the site {vertex.site or vertex.value}")
    return sites


def _laurel_rank(view: GraphView, item: Candidate) -> int | None:
    """Returns r where the branch is norm((x·A)·B), the LAuReL block of published models; else ``None``."""
    widths: list[int] = []
    index = item.branches[0]
    for _ in range(LONGEST_CHAIN):
        if index == item.fork:
            break
        vertex = view.vertices[index]
        data = [u for u in vertex.inputs if view.vertices[u].data]
        if vertex.role is Role.LINEAR and vertex.weighted and vertex.width is not None:
            widths.append(vertex.width)
        elif vertex.role not in (*LAYOUT, Role.NORM) and not (vertex.role is Role.MUL and vertex.scale):
            return None
        if len(data) != 1:
            return None
        index = data[0]
    return widths[1] if len(widths) == 2 and len(item.branches) == 1 and 2 * widths[1] <= widths[0] else None
