"""What detection says: residual connections, rejected joins, and the plan for one site.

Values and nodes go by the graph's own names. In a torch.fx graph a node and its value share one name. In ONNX a node
goes by its *key*, the name of its first non-empty output, because node names may be absent or repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from .config import SiteSpec
from .errors import ModelError
from .foreign_names import bare, printable
from .showing import Cell, Shown, counted

if TYPE_CHECKING:
    import networkx as nx

    from .graph_view import GraphView


@dataclass(frozen=True)
class Residual:
    """One residual connection ``join = add(skip, branch)``.

    Attributes:
        site: stable name, a dotted path of Python identifiers and digits, unique in the model.
        kind: ``identity``, ``projection`` (the skip passes a norm, pool or convolution on its way) or ``laurel``
            (a LAuReL residual is already here).
        skip: name of the value x that enters the join, of the join's shape.
        branches: names of the values f that enter, in the order in which they are added (several for n-ary joins).
        join: name of the (outermost) add as a viewer shows it: the node's name, or its key if it has none.
        joins: keys of the adds from the innermost (which takes *skip*) to the outermost; one for a binary join.
        axis: feature axis, -1 or 1.
        width: D, or ``None`` if unknown.
        shape: the join's shape; an int, a symbol's name or ``None`` per axis; ``None`` if not even the rank is known.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``float64`` or ``None`` if unknown.
        stream: number of the skip path it lies on.
        index: its place on that stream, from 0.
        previous: sites before it on the stream whose skip has the same shape, nearest first: what PA may link.
        fork: name of the value both sides come from (equals *skip* for plain identity joins).
        source: ``file.py:line`` or the module path it was written at, where the graph knows.
        shared: name of the module or weights that several sites have in common, or "".
        blocked: why it cannot be rewritten although it was found, or "".
        rank: the rank of an existing LAuReL block (``kind == "laurel"``), else 0.
        former: another name that it is known by: of an add inside a norm, the one after that norm; or "".
        body: path of the body of If, Loop or Scan that it stands in, "" for the graph itself. Names of values there
            are scoped (:mod:`laurel_graph.onnx_model.bodies`).
        copies: the same connection in the other bodies of an If, each of which holds the same network with the same
            weights: one site, one set of tensors, several joins.
    """

    site: str
    kind: str
    skip: str
    branches: tuple[str, ...]
    join: str
    joins: tuple[str, ...]
    axis: int
    width: int | None
    shape: tuple[int | str | None, ...] | None
    dtype: str | None
    stream: int = 0
    index: int = 0
    previous: tuple[str, ...] = ()
    fork: str = ""
    source: str = ""
    shared: str = ""
    blocked: str = ""
    rank: int = 0
    former: str = ""
    body: str = ""
    copies: tuple[Residual, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel inspect --json``; ``branch`` is the first branch.

        Names are those of the graph's own values; ``body`` says in which body of the graph they are.
        """
        skip, fork, *branches = (bare(name, self.body) for name in (self.skip, self.fork, *self.branches))
        data: dict[str, Any] = {
            "site": self.site,
            "kind": self.kind,
            "skip": skip,
            "branch": branches[0],
            "join": bare(self.join, self.body),
            "axis": self.axis,
            "width": self.width,
            "dtype": self.dtype,
            "stream": self.stream,
            "index": self.index,
            "shape": list(self.shape) if self.shape is not None else None,
            "fork": fork,
        }
        if len(branches) > 1:
            data["branches"] = branches
        if self.body:
            data["body"] = self.body.removesuffix("/")
        if self.copies:
            data["copies"] = [
                {key: value for key, value in copy.to_dict().items() if key in ("body", "join", "skip", "branch")}
                for copy in self.copies
            ]
        for name in ("source", "shared", "blocked", "rank", "former"):
            if value := getattr(self, name):
                data[name] = value
        return data


@dataclass(frozen=True)
class Rejected:
    """An add that is no residual connection.

    Attributes:
        join: name of the add as a viewer shows it.
        reason: one of :data:`laurel_graph.passes.detect.reasons.REASONS`, a short stable name such as
            ``no-weighted-op``.
        detail: one sentence with the names involved.
        near: how near a miss it is, from 0 (not at all) to 1; orders the list a user sees when nothing is found.
    """

    join: str
    reason: str
    detail: str
    near: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel inspect --json``."""
        return {"join": self.join, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on, as indices of vertices of :attr:`Detection.view`.

    Attributes:
        verdict: the verdict.
        adds: the adds that it is about, inner to outer.
        fork: where skip and branches come from; ``None`` where no operand leads back to such a value.
        skip: the operand that leads back to the fork, or ``None``.
        branches: the operands that descend from the fork.
    """

    verdict: Residual | Rejected
    adds: tuple[int, ...]
    fork: int | None = None
    skip: int | None = None
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class Detection(Shown):
    """The verdict on every add of one model.

    Attributes:
        model: the file or class that was looked at.
        residuals: residual connections in topological order.
        rejected: every other add, each with its reason.
        nodes: number of nodes looked at.
        notes: sentences for the user (a front end that was fallen back to, shapes that are unknown, ...).
        view: the graph that was looked at, ``None`` where it is not at hand.
        evidence: what each verdict rests on, residual connections first.
    """

    model: str
    residuals: tuple[Residual, ...]
    rejected: tuple[Rejected, ...]
    nodes: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)
    view: GraphView | None = field(default=None, repr=False, compare=False)
    evidence: tuple[Evidence, ...] = field(default=(), repr=False, compare=False)
    describes_graph: ClassVar[bool] = True

    columns_shown: ClassVar[tuple[str, ...]] = ("site", "kind", "width", "stream", "index", "source")

    def shown(self) -> list[str]:
        """Returns how many adds are residual connections, and why the others are none."""
        kinds = Counter(residual.kind for residual in self.residuals)
        counts = Counter(rejected.reason for rejected in self.rejected).most_common()
        others = ", ".join(f"{count} {reason}" for reason, count in counts)
        streams = len({residual.stream for residual in self.residuals})
        return [
            f"{self.model}: {len(self.residuals)} residual connections in {streams} streams, {self.nodes} nodes",
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            counted([residual.site for residual in self.residuals]),
            f"other joins: {others}" if others else "",
            *self.notes,
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per residual connection."""
        return [(r.site, r.kind, r.width, r.stream, r.index, r.source) for r in self.residuals]

    def _repr_html_(self) -> str:
        """Returns the streams as rows of dots, filled where a LAuReL residual is, and the lines and the table."""
        return _drawn(self.residuals) + super()._repr_html_()

    def to_networkx(self) -> nx.DiGraph[int]:
        """Returns the graph with the verdicts in it, for questions of one's own.

        Beside what :meth:`~laurel_graph.graph_view.GraphView.to_networkx` gives, the adds of residual connections
        carry ``verdict="residual"``, ``site``, ``kind``, ``stream`` and ``index``; other adds carry
        ``verdict="rejected"``, ``reason`` and ``detail``; everything between a fork and its add on the skip's side
        carries ``stream``, too; the edges into an add carry ``part="skip"`` or ``part="branch"``.

        Raises:
            ModelError: this detection has no graph at hand.
        """
        if self.view is None:
            raise ModelError("this Detection holds no graph: expected one that inspect or transform returned.")
        graph = self.view.to_networkx()
        for item in self.evidence:
            _note(graph, item)
        return graph

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel inspect --json``."""
        return {
            "model": self.model,
            "residuals": [r.to_dict() for r in self.residuals],
            "rejected": [r.to_dict() for r in self.rejected],
            "notes": list(self.notes),
        }


def _note(graph: nx.DiGraph[int], item: Evidence) -> None:
    import networkx as nx

    verdict, adds = item.verdict, [add for add in item.adds if add in graph]
    if isinstance(verdict, Rejected):
        for add in adds:
            graph.nodes[add].update(verdict="rejected", reason=verdict.reason, detail=verdict.detail)
        return
    for add in adds:
        place = {"stream": verdict.stream, "index": verdict.index}
        graph.nodes[add].update(verdict="residual", site=verdict.site, kind=verdict.kind, **place)
        for u in graph.predecessors(add):
            graph.edges[u, add]["part"] = "branch" if u in item.branches else "skip"
    if item.skip is not None and item.fork is not None:
        for index in nx.shortest_path(graph, item.fork, item.skip):
            graph.nodes[index].setdefault("stream", verdict.stream)


@dataclass(frozen=True)
class SitePlan:
    """What insertion does at one site.

    Attributes:
        residual: the residual connection.
        spec: its operator and tensors.
        previous: names of the values that enter as earlier activations, nearest first; ``spec.previous`` of them.
        copies: for each of the residual's copies, the values that enter there.
    """

    residual: Residual
    spec: SiteSpec
    previous: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()


_MOST = 40
"""Streams that are drawn; the table has them all."""


def _drawn(residuals: Sequence[Residual]) -> str:
    """Returns a drawing of the streams for a notebook, in the notebook's own colour of text; "" for none."""
    streams: dict[int, list[Residual]] = {}
    for residual in residuals:
        streams.setdefault(residual.stream, []).append(residual)
    lanes = list(streams.items())[:_MOST]
    if not lanes:
        return ""
    width, high = 90 + 16 * max(len(lane) for _, lane in lanes), 22 * len(lanes) + 4
    parts = [
        f'<div style="overflow-x:auto"><svg width="{width}" height="{high}" role="img" aria-label="{len(streams)} '
        'streams" stroke="currentColor">'
    ]
    for row, (number, lane) in enumerate(lanes):
        y = 13 + 22 * row
        parts.append(f'<text x="0" y="{y + 4}" font-size="12" stroke="none" fill="currentColor">stream {number}</text>')
        parts.append(f'<path d="M70 {y}h{16 * len(lane)}" fill="none"/>')
        for place, each in enumerate(lane):
            fill = "currentColor" if each.kind == "laurel" else "none" if each.kind == "projection" else "silver"
            told = escape(printable(f"{each.site}: {each.kind}"))
            parts.append(f'<circle cx="{78 + 16 * place}" cy="{y}" r="5" fill="{fill}"><title>{told}</title></circle>')
    return "".join([*parts, "</svg></div>"])
