"""Which operators of a file are on the lists of runtimes that cannot be had or run everywhere: a census, no run.

An operator on a list may still be refused for its attributes or types, and the lists are of the versions that are
named: the files of the wheel of onnx2tf, ``docs/operators.md`` of onnx-tensorrt, and ONNX Runtime's
``coreml_supported_mlprogram_ops.md``.
"""

from __future__ import annotations

import json
from pathlib import Path

from laurel_graph import onnx_file
from laurel_graph.onnx_model.walk import graphs_of

LISTS = {
    name: frozenset(operators.split())
    for name, operators in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
"""List to the operators of ``ai.onnx`` on it."""


def unknown_operators(path: Path, known: frozenset[str]) -> set[str]:
    """Returns the operators of a file that are not on a list; constants count as weights."""
    return {
        node.op_type
        for graph in graphs_of(onnx_file.read(path).graph)
        for node in graph.node
        if node.op_type != "Constant" and (node.domain not in ("", "ai.onnx") or node.op_type not in known)
    }
