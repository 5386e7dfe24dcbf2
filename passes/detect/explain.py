"""Explains a verdict in words: the paths it rests on, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from laurel_graph.detection import Detection, Evidence, Residual
from laurel_graph.errors import ModelError, SelectorError, near
from laurel_graph.graph_view import GraphView, Role, Vertex

from . import reasons as why
from .paths import Chain
from .rule import on_chain

if TYPE_CHECKING:
    import networkx as nx

_LONGEST_CHAIN = 12
_MOST_OPERANDS = 4

_WORDS = {
    Role.INPUT: "an input of the graph",
    Role.CONSTANT: "a stored tensor",
    Role.META: "depends on shapes or comparisons, not on values",
    Role.PASS: "hands its input on",
    Role.RESHAPE: "arranges the same elements otherwise",
    Role.SLICE: "takes some of the elements",
    Role.CONCAT: "puts values side by side",
    Role.SELECT: "chooses between values",
    Role.SCATTER: "replaces a part",
    Role.ADD: "adds",
    Role.SUB: "subtracts",
    Role.MUL: "multiplies",
    Role.REDUCE: "reduces over axes",
    Role.MATH: "element-wise arithmetic",
    Role.ACTIVATION: "an activation",
    Role.SOFTMAX: "a softmax",
    Role.NORM: "a norm",
    Role.POOL: "a pool",
    Role.CONV: "a convolution",
    Role.LINEAR: "a matrix product",
    Role.UPSAMPLE: "upsamples",
    Role.MIX: "mixes positions without weights",
    Role.WEIGHTED: "an operator with weights",
    Role.LAUREL: "a LAuReL residual",
    Role.OTHER: "an operator that detection does not know",
}


@dataclass(frozen=True)
class Step:
    """One vertex of a path: value name, operator, what that means, and where it was written ("" if unknown)."""

    value: str
    operator: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Path:
    """A path from top to bottom, and what it is."""

    title: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Explanation:
    """Why an add is a residual connection, or none.

    Attributes:
        join: the add as a viewer shows it.
        verdict: ``residual`` or ``rejected``.
        reason: the kind of a residual connection, the reason of a rejection.
        sentences: the verdict in words.
        paths: what it rests on.
    """

    join: str
    verdict: str
    reason: str
    sentences: tuple[str, ...]
    paths: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel inspect --why JOIN --json``."""
        return asdict(self)


def explain(found: Detection, join: str) -> Explanation:
    """Explains the verdict on one add.

    Args:
        found: what :func:`laurel_graph.inspect` returned.
        join: a site, the name of an add's node, or the name of its value.

    Raises:
        ModelError: *found* has no graph at hand.
        SelectorError: no add has that name; names the nearest ones.
    """
    if found.view is None:
        raise ModelError("this Detection holds no graph: expected one that inspect or transform returned.")
    item = _named(found, found.view, join)
    graph, view = found.view.to_networkx(), found.view
    verdict = item.verdict
    if isinstance(verdict, Residual):
        return Explanation(
            verdict.join, "residual", verdict.kind, tuple(_about(verdict)), tuple(_between(graph, view, item, _works))
        )
    sentences = [
        f"{verdict.join} is no residual connection ({verdict.reason}): {why.REASONS[verdict.reason]}.",
        f"Here: {verdict.detail}.",
    ]
    if item.fork is not None:
        through = _upsamples if verdict.reason == why.LONG_SKIP else _works
        paths = tuple(_between(graph, view, item, through))
    else:
        paths = tuple(_upwards(view, item.adds[0]))
        if verdict.reason == why.NO_SKIP and (top := _dominator(graph, item.adds[0])) is not None:
            sentences.append(f"Every path from the inputs to it runs through {view.vertices[top].value}.")
    return Explanation(verdict.join, "rejected", verdict.reason, tuple(sentences), paths)


def _named(found: Detection, view: GraphView, name: str) -> Evidence:
    known: dict[str, Evidence] = {}
    for item in found.evidence:
        names = [item.verdict.join]
        names += [item.verdict.site, item.verdict.former] if isinstance(item.verdict, Residual) else []
        for add in item.adds:
            vertex = view.vertices[add]
            names += [vertex.name, vertex.key, vertex.value]
        for each in filter(None, names):
            known.setdefault(each, item)
    if name not in known:
        raise SelectorError(f"no add, and no site, is named {name!r} in {found.model}.{near(name, known)}")
    return known[name]


def _about(verdict: Residual) -> Iterator[str]:
    kind = {
        "identity": "nothing stands on the skip that changes its values, other than a scale",
        "projection": "a norm, a pool or a linear map stands on the skip",
        "laurel": "a LAuReL residual is there already",
    }[verdict.kind]
    yield (
        f"{verdict.join} is a residual connection, {verdict.kind}: {kind}. It is site {verdict.site}, number "
        f"{verdict.index} on stream {verdict.stream}."
    )
    branches = " and ".join(verdict.branches)
    yield (
        f"The skip {verdict.skip} leads back to {verdict.fork}, from which the branch {branches} is computed with "
        "weights of its own on the way."
    )
    if verdict.blocked:
        yield f"It cannot be rewritten: {verdict.blocked}."


def _works(vertex: Vertex) -> bool:
    return vertex.weighted or vertex.mixes or vertex.role in (Role.MIX, Role.LINEAR)


def _upsamples(vertex: Vertex) -> bool:
    return vertex.role is Role.UPSAMPLE


def _between(
    graph: nx.DiGraph[int], view: GraphView, item: Evidence, through: Callable[[Vertex], bool]
) -> Iterator[Path]:
    """The paths from the fork to the add: the skip's, and one of each branch that passes what the verdict is about."""
    if item.fork is None or item.skip is None:
        return
    fork = view.vertices[item.fork].value
    yield Path(
        f"the skip: from {fork} to the add",
        tuple(_step(view, index) for index in (*_path(graph, view, item.fork, item.skip, None), item.adds[0])),
    )
    for branch in item.branches:
        path = _path(graph, view, item.fork, branch, through)
        worked = any(through(view.vertices[index]) for index in path[1:])
        missing = "" if worked or through is _upsamples else ", the shortest of those without weights"
        yield Path(
            f"the branch {view.vertices[branch].value}: from {fork} to the add{missing}",
            tuple(_step(view, index) for index in (*path, item.adds[0])),
        )


def _path(
    graph: nx.DiGraph[int], view: GraphView, above: int, below: int, through: Callable[[Vertex], bool] | None
) -> list[int]:
    """Returns a shortest path that visits a vertex for which *through* holds, or a shortest path where none does."""
    import networkx as nx

    if above == below:
        return [above]
    if through is not None:
        region = graph.subgraph(nx.descendants(graph, above) & nx.ancestors(graph, below) | {above, below})
        after = nx.single_source_shortest_path_length(region, above)
        before = nx.single_source_shortest_path_length(region.reverse(copy=False), below)
        wanted = [index for index in region if index != above and through(view.vertices[index])]
        if wanted:
            best = min(wanted, key=lambda index: (after[index] + before[index], index))
            return [*nx.shortest_path(region, above, best), *nx.shortest_path(region, best, below)[1:]]
    path: list[int] = nx.shortest_path(graph, above, below)
    return path


def _upwards(view: GraphView, add: int) -> Iterator[Path]:
    """From each operand of an add upwards, as far as a skip may lead; the last step says why it leads no further."""
    for operand in view.vertices[add].inputs[:_MOST_OPERANDS]:
        steps: list[Step] = []
        index, end = operand, ""
        for _ in range(_LONGEST_CHAIN):
            vertex = view.vertices[index]
            data = [u for u in vertex.inputs if view.vertices[u].data]
            if not vertex.data:
                end = "does not depend on the input"
            elif not data:
                end = "the skip would start here"
            elif len(data) > 1:
                end = "two values meet here: no skip leads past it"
            elif on_chain(view, vertex, Chain()) is None:
                end = "no skip leads past it"
            steps.insert(0, _step(view, index, end))
            if end:
                break
            index = data[0]
        yield Path(f"above the operand {view.vertices[operand].value}", (*steps, _step(view, add)))


def _dominator(graph: nx.DiGraph[int], add: int) -> int | None:
    """Returns the nearest vertex that every path from the graph's inputs to *add* visits, ``None`` if there is none."""
    import networkx as nx

    region = nx.DiGraph(graph.subgraph(nx.ancestors(graph, add) | {add}))
    source = -1
    region.add_edges_from([(source, index) for index in region if graph.nodes[index]["role"] == Role.INPUT])
    top: int = nx.immediate_dominators(region, source)[add]
    return None if top == source else top


def _step(view: GraphView, index: int, end: str = "") -> Step:
    vertex = view.vertices[index]
    meaning = _WORDS[vertex.role]
    if vertex.weighted:
        meaning += f" with the weights {vertex.weight}" if vertex.weight else " with weights"
    elif vertex.role is Role.LINEAR:
        meaning += " of two activations"
    elif vertex.role is Role.MUL and vertex.scale:
        meaning = "scales by a number" if vertex.scale == 1 else "scales per element or channel"
    return Step(vertex.value, vertex.op, f"{meaning}; {end}" if end else meaning, vertex.source)
