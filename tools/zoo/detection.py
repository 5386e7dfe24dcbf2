"""Measures detection on architectures whose number of residual joins is known from their source.

``python -m laurel_graph.tools.zoo [FILE] [--kinds ...] [--only GLOB] [--part N/M] [--json]``

What such a file holds, :mod:`.architectures` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from laurel_graph.detection import Detection
from laurel_graph.errors import DependencyError, LaurelError
from laurel_graph.graph_view import GraphView
from laurel_graph.passes.detect.rule import detect
from laurel_graph.tools.console import note, print_json, print_table

from .architectures import Entry, Specimen, arguments, chosen_entries, silence
from .kinds import KINDS


@dataclass(frozen=True)
class Row:
    """One architecture in one kind of graph.

    Attributes:
        name: the architecture.
        kind: one of :data:`KINDS`.
        truth: residual joins it has.
        found: joins that detection reports.
        false: reported beyond truth and soft joins.
        missed: not reported.
        split: joins whose kind (identity or projection) is wrong; ``None`` where the truth does not tell.
        nodes: nodes of the graph.
        micros: detection time per node in µs.
        failure: why there is no such graph, or "".
    """

    name: str
    kind: str
    truth: int = 0
    found: int = 0
    false: int = 0
    missed: int = 0
    split: int | None = None
    nodes: int = 0
    micros: float = 0.0
    failure: str = ""


def score(entry: Entry, kind: str, view: GraphView) -> tuple[Row, Detection]:
    """Runs detection on one graph and holds it against the truth."""
    start = time.perf_counter()
    detection = detect(view)
    seconds = time.perf_counter() - start
    found = len(detection.residuals)
    projections = sum(residual.kind == "projection" for residual in detection.residuals)
    false, missed = max(0, found - entry.joins - entry.soft), max(0, entry.joins - found)
    split = None
    if entry.projection is not None and not entry.soft:
        split = max(0, abs(projections - entry.projection) - false - missed)
    micros = 1e6 * seconds / max(1, view.nodes)
    row = Row(entry.name, kind, entry.joins, found, false, missed, split, view.nodes, micros)
    return row, detection


def measure(entry: Entry, kinds: Sequence[str] = KINDS) -> Iterator[tuple[Row, Detection | None]]:
    """Yields one row per kind; a graph that an exporter cannot make gives a row with its failure."""
    try:
        specimen = Specimen(entry)
    except DependencyError:
        raise
    except Exception as error:  # the architecture's own code ran
        for kind in kinds:
            yield Row(entry.name, kind, failure=one_line(error)), None
        return
    for kind in kinds:
        make: Callable[[], GraphView] = getattr(specimen, kind)
        try:
            with silence():
                view = make()
        except Exception as error:  # exporters and tracers run the architecture's own code
            yield Row(entry.name, kind, failure=one_line(error)), None
            continue
        yield score(entry, kind, view)


def is_wanted(name: str, only: str) -> bool:
    """Tells whether one of the globs in *only*, separated by commas, matches *name*."""
    return any(fnmatchcase(name, glob) for glob in only.split(","))


def one_line(error: BaseException) -> str:
    """Returns the type and the first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"


@dataclass(frozen=True)
class Total:
    """All architectures of one kind."""

    kind: str
    graphs: int
    joins: int
    found: int
    false: int
    missed: int
    precision: float
    recall: float
    split: float
    micros: float


def totals(rows: Iterable[Row]) -> list[Total]:
    """Returns precision, recall and the share of joins with the right kind, per kind of graph."""
    rows = [row for row in rows if not row.failure]
    result: list[Total] = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        joins, found = sum(row.truth for row in own), sum(row.found for row in own)
        false, missed = sum(row.false for row in own), sum(row.missed for row in own)
        known = [row for row in own if row.split is not None]
        split = 1 - sum(row.split or 0 for row in known) / max(1, sum(row.found for row in known))
        nodes = sum(row.nodes for row in own)
        result.append(
            Total(
                kind, len(own), joins, found, false, missed,
                1 - false / max(1, found), 1 - missed / max(1, joins), split,
                sum(row.micros * row.nodes for row in own) / max(1, nodes),
            )
        )  # fmt: skip
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = arguments("zoo", __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of graph")
    parser.add_argument("--wrong", action="store_true", help="print rows that are wrong or failed alone")
    options = parser.parse_args(argv)
    try:
        entries = chosen_entries(options)
    except (LaurelError, ValueError) as error:
        note(str(error))
        return 2
    rows: list[Row] = []
    for entry in entries:
        if is_wanted(entry.name, options.only):
            with suppress(BrokenPipeError):
                note(entry.name)
            rows.extend(row for row, _ in measure(entry, options.kinds))
    _print(rows, options.json, options.wrong)
    return 1 if any(row.false or row.missed for row in rows) else 0


def _print(rows: Sequence[Row], as_json: bool, wrong: bool) -> None:
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], "totals": [asdict(total) for total in totals(rows)]})
        return
    shown = [row for row in rows if not wrong or row.false or row.missed or row.failure or row.split]
    print_table(
        "architectures",
        ("architecture", "graph", "truth", "found", "false", "missed", "nodes", "µs/node", "failure"),
        [
            (
                row.name,
                row.kind,
                row.truth,
                row.found,
                row.false,
                row.missed,
                row.nodes,
                round(row.micros, 1),
                row.failure,
            )
            for row in shown
        ],
    )
    print_table(
        "per kind of graph",
        ("graph", "graphs", "joins", "found", "false", "missed", "precision", "recall", "kind right", "µs/node"),
        [
            (t.kind, t.graphs, t.joins, t.found, t.false, t.missed, f"{t.precision:.4f}", f"{t.recall:.4f}",
             f"{t.split:.4f}", round(t.micros, 1))
            for t in totals(rows)
        ],
    )  # fmt: skip
