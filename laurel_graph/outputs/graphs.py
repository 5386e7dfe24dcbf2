"""Graphs as files for viewers: GraphML (yEd, Gephi, networkx) and dot (Graphviz)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..foreign_names import printable
from .files import Input, write

if TYPE_CHECKING:
    import networkx as nx

FORMATS = (".graphml", ".dot", ".gv")
"""The endings that a graph file may have."""

_COLOURS = {"residual": "#1a73e8", "rejected": "#d93025"}


def check_format(output: str | Path) -> None:
    """Checks the ending of a graph file's name before any work is done.

    Raises:
        OutputError: it is none of :data:`FORMATS`.
    """
    if Path(output).suffix.lower() not in FORMATS:
        raise OutputError(f"{output}: a graph is written as {', '.join(FORMATS)}; choose one of these endings.")


def write_graph(graph: nx.DiGraph[int], output: str | Path, inputs: Iterable[Input] = ()) -> Path:
    """Writes what :meth:`laurel_graph.detection.Detection.to_networkx` returns; the ending tells the format.

    Names from a model are escaped: a node's id is ``n`` and a number, every text is one attribute of printable
    characters.

    Args:
        graph: the graph.
        output: the file; an older one is replaced.
        inputs: files that the command reads and that *output* must not be.

    Raises:
        OutputError: another ending, or *output* cannot be written.
    """
    check_format(output)
    text = _graphml(graph) if Path(output).suffix.lower() == ".graphml" else "\n".join(_dot(graph)) + "\n"
    return write(output, text.encode(), inputs)


def _graphml(graph: nx.DiGraph[int]) -> str:
    import networkx as nx

    plain: nx.DiGraph[str] = nx.DiGraph(name=printable(graph.name))
    for index, held in graph.nodes(data=True):
        plain.add_node(f"n{index}", **{key: _plain(value) for key, value in held.items()})
    for above, below, held in graph.edges(data=True):
        plain.add_edge(f"n{above}", f"n{below}", **{key: _plain(value) for key, value in held.items()})
    buffer = io.BytesIO()
    nx.write_graphml_xml(plain, buffer)
    return buffer.getvalue().decode()


def _plain(value: Any) -> str | int | bool:
    """A value that GraphML knows: shapes become text such as ``batch, 8``."""
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, tuple):
        return printable(", ".join("?" if dim is None else str(dim) for dim in value))
    return "" if value is None else printable(str(value))


def _dot(graph: nx.DiGraph[int]) -> Iterator[str]:
    """The graph without its stored tensors, which would hide everything else in a drawing."""
    yield f"digraph {_quoted(graph.name)} {{"
    yield '  node [shape=box, fontname="sans-serif"];'
    shown = {index: held for index, held in graph.nodes(data=True) if held["role"] != "constant"}
    for index, held in shown.items():
        lines = [held["value"], f"{held['op']} ({held['role']})", f"[{_plain(held['shape'])}]"]
        styles = [f"label={_quoted(*lines)}"]
        if (verdict := held.get("verdict")) is not None:
            about = f"site {held['site']}, stream {held['stream']}" if "site" in held else held["detail"]
            styles += [f"color={_quoted(_COLOURS[verdict])}", "penwidth=2", f"tooltip={_quoted(about)}"]
        yield f"  n{index} [{', '.join(styles)}];"
    for above, below, held in graph.edges(data=True):
        if above in shown:
            style = {"skip": " [penwidth=3]", "branch": " [style=dashed]"}.get(held.get("part", ""), "")
            yield f"  n{above} -> n{below}{style};"
    yield "}"


def _quoted(*lines: str) -> str:
    """Lines of text as one string of dot: quotes and backslashes lose what they mean there."""
    escaped = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
