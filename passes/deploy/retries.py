"""How a deployment folds: all there is, then, where the file quantises values as they come and differs, less and less.

Each attempt is a whole deployment of its own, from the trained file to the comparison; none sees another one's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from laurel_graph.errors import VerificationError
from laurel_graph.onnx_model.walk import graphs_of

if TYPE_CHECKING:
    from laurel_graph.passes.base import PassResult

_EDGE = (
    "folded further, the file was refused (one integer on the other side of an edge is enough for that). "
    "It was: {reason}"
)
_NOTES = {
    "all": "",
    "unquantised": "values that are quantised as they come keep their scale, and what could not be folded past them "
    f"stays: {_EDGE}",
    "nothing": f"nothing is folded, because this file quantises values as they come: {_EDGE}",
}
"""What folding may rescale, from most to least, and what is said where that was needed."""

_AS_IT_COMES = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits"}


def less_and_less(attempt: Callable[[str], PassResult], trained: str | Path) -> tuple[PassResult, tuple[str, ...]]:
    """Returns what the first attempt that verifies gave, and the notes that go with it.

    Args:
        attempt: deploys with an option of ``Fold``'s ``rescale``.
        trained: the file that is deployed.

    Raises:
        VerificationError: the first refusal, where the file quantises nothing as it comes; else the last.
    """
    refusal = ""
    for rescale, note in _NOTES.items():
        try:
            result = attempt(rescale)
        except VerificationError as error:
            if rescale == "nothing" or not _quantises_as_it_comes(trained):
                raise
            refusal = str(error).partition("\n")[0]
        else:
            return result, (note.format(reason=refusal),) if note else ()
    raise AssertionError("the last attempt returns or raises")


def _quantises_as_it_comes(path: str | Path) -> bool:
    """Whether a file quantises values as they come, so that rounding before may move an integer by one."""
    from laurel_graph import onnx_file

    graphs = graphs_of(onnx_file.read(Path(path)).graph)
    return any(node.op_type in _AS_IT_COMES for graph in graphs for node in graph.node)
