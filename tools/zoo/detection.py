"""Measures detection on architectures whose number of residual joins is known from their source.

``python -m laurel_graph.tools.zoo [FILE] [--kinds ...] [--only GLOB] [--part N/M] [--json]``

The file holds ``preamble`` (Python statements) and ``architectures``: name to ``build`` (an expression that gives an
``nn.Module``), ``inputs`` (``args: (...)`` or ``kwargs: dict(...)``), ``joins`` (the truth), ``identity`` and
``projection`` where the split is known, and ``soft``: joins of the form x + f(x) that are no classical residual
connections, so that either answer is right. Each architecture is turned into every kind of graph that its exporters can
make of it. The file is a program, not data: the Python in it is run, so take none from strangers.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from laurel_graph.detection import Detection
from laurel_graph.errors import DependencyError, LaurelError, ModelError
from laurel_graph.graph_view import GraphView
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.tools.console import note, print_json, print_table

from .kinds import KINDS, optimised, quantised_dynamic, quantised_static, without_shapes

ZOO = Path(__file__).with_name("zoo.json")


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


@dataclass(frozen=True)
class Entry:
    """One architecture of a zoo file."""

    name: str
    build: str
    inputs: str
    joins: int
    identity: int | None
    projection: int | None
    soft: int
    preamble: str

    @classmethod
    def of(cls, name: str, data: dict[str, Any], preamble: str) -> Entry:
        """Reads one entry of the file's ``architectures``."""
        return cls(
            name, data["build"], data["inputs"], int(data["joins"]), data.get("identity"), data.get("projection"),
            int(data.get("soft") or 0), preamble,
        )  # fmt: skip


def read_zoo(path: str | Path = ZOO) -> list[Entry]:
    """Returns the architectures of a zoo file.

    Raises:
        ModelError: the file is missing or not of this form.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return [Entry.of(name, item, data["preamble"]) for name, item in data["architectures"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a zoo file: {error}. Expected keys preamble and architectures.") from error


def _names(preamble: str, expressions: str) -> dict[str, Any]:
    """Runs the preamble; of ``from package import *`` only what the expressions mention is imported."""
    stars = re.findall(r"^from (\S+) import \*$", preamble, re.MULTILINE)
    names: dict[str, Any] = {}
    try:
        exec(re.sub(r"^from \S+ import \*$", "", preamble, flags=re.MULTILINE), names)
        for package in stars:
            module = importlib.import_module(package)
            for word in set(re.findall(r"[A-Za-z_]\w*", expressions)) - set(names) - set(dir(builtins)):
                with suppress(AttributeError):
                    names[word] = getattr(module, word)
    except ImportError as error:
        raise DependencyError(f"{error}. The architectures need it; install laurel-graph[test].") from error
    return names


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns *make* with its result, or its error, kept: a graph that cannot be made is not tried for every kind."""

    @cache
    def outcome() -> tuple[Any, Exception | None]:
        try:
            return make(), None
        except Exception as error:  # the exporters' and the architecture's own code ran
            return None, error

    def get() -> Any:
        value, error = outcome()
        if error is not None:
            raise error
        return value

    return get


class Specimen:
    """One built architecture; makes its graphs on demand and keeps them for the kinds that derive from them."""

    def __init__(self, entry: Entry) -> None:
        import torch

        names = _names(entry.preamble, entry.build + entry.inputs)
        torch.manual_seed(0)
        self.module = eval(entry.build, names).eval()
        form, _, expression = entry.inputs.partition(":")
        given = eval(expression.strip(), names)
        self.args = tuple(given) if form.strip() == "args" else ()
        self.kwargs = dict(given) if form.strip() == "kwargs" else {}
        self.exported = _once(self._exported)
        self.dynamo = _once(self._dynamo)

    def _exported(self) -> Any:
        import torch

        with torch.no_grad():
            return torch.export.export(self.module, self.args, self.kwargs, strict=False)

    def _dynamo(self) -> onnx.ModelProto:
        import torch

        program = torch.onnx.export(self.exported(), dynamo=True, verbose=False)
        if program is None:
            raise ModelError("the exporter returned nothing")
        return program.model_proto  # type: ignore[no-any-return]

    # One method per kind; its name is the kind's.

    def symbolic(self) -> GraphView:
        """torch.fx.symbolic_trace."""
        captured = capture(self.module, self.args, self.kwargs)
        if any("symbolic_trace stopped" in text for text in captured.notes):
            raise ModelError(captured.notes[0])
        return captured.view

    def export(self) -> GraphView:
        """torch.export as it is."""
        return capture(self.exported()).view

    def dynamic(self) -> GraphView:
        """torch.export with symbolic sizes wherever the model allows."""
        import torch
        from torch.utils import _pytree as pytree

        auto = torch.export.Dim.AUTO
        shapes = pytree.tree_map(
            lambda v: dict.fromkeys(range(v.dim()), auto) if isinstance(v, torch.Tensor) else None,
            (self.args, self.kwargs),
        )
        shapes = shapes[1] if not self.args else shapes[0]
        with torch.no_grad():
            program = torch.export.export(
                self.module, self.args, self.kwargs, dynamic_shapes=shapes, strict=False
            )  # fmt: skip
        return capture(program).view

    def decomposed(self) -> GraphView:
        """torch.export after run_decompositions()."""
        return capture(self.exported().run_decompositions()).view

    def onnx(self) -> GraphView:
        """torch.onnx.export(dynamo=True)."""
        return view_of(self.dynamo())

    def noshapes(self) -> GraphView:
        """The same without any shape information."""
        return view_of(without_shapes(self.dynamo()))

    def torchscript(self) -> GraphView:
        """torch.onnx.export(dynamo=False)."""
        import torch

        file: Any = io.BytesIO()  # the old exporter writes to buffers; its annotation says paths alone
        args: Any = (*self.args, self.kwargs) if self.kwargs else self.args
        torch.onnx.export(self.module, args, file, dynamo=False, verbose=False, opset_version=17)
        return view_of(onnx.load_from_string(file.getvalue()))

    def optimised(self) -> GraphView:
        """ONNX Runtime's extended optimisation."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(optimised(self.dynamo(), Path(folder)))

    def optimised_noshapes(self) -> GraphView:
        """The same without any shape information."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(without_shapes(optimised(self.dynamo(), Path(folder))))

    def qdq(self) -> GraphView:
        """Static int8 quantisation, QDQ format."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(quantised_static(self.dynamo(), Path(folder)))

    def int8(self) -> GraphView:
        """Dynamic int8 quantisation."""
        with tempfile.TemporaryDirectory() as folder:
            return view_of(quantised_dynamic(self.dynamo(), Path(folder)))

    def fp16(self) -> GraphView:
        """Converted to float16, with the casts that stay."""
        from onnxruntime.transformers.float16 import convert_float_to_float16

        copy = copy_of(self.dynamo())
        return view_of(convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=True))


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


@contextmanager
def silence() -> Iterator[None]:
    """Keeps what exporters and tracers print and warn of from the terminal."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


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
    parser = argparse.ArgumentParser(prog="zoo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", default=str(ZOO), help="zoo file (default: the one of the project)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of graph")
    parser.add_argument("--only", default="*", help="names or globs of architectures, separated by commas")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th architecture from the N-th")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--wrong", action="store_true", help="print rows that are wrong or failed alone")
    options = parser.parse_args(argv)
    try:
        number, parts = (int(v) for v in options.part.split("/"))
        entries = read_zoo(options.file)[number - 1 :: parts]
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
