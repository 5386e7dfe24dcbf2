"""The door: what a model must be before any pass looks at it.

:func:`check` accepts what ONNX Runtime accepts and refuses the rest in one sentence, in time linear in the model's
size and without allocating anything that the file merely states. What stands behind the door relies on it: names and
texts are UTF-8, every value is computed once and before it is read, no value depends on itself, operators that ONNX
knows have the inputs, outputs and attributes that they need, and tensors have the bytes that their shapes take.
"""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from ..errors import ModelError
from ..onnx_model.walk import sparse_tensors_of, tensors_of
from .functions import check_calls, function_table, opsets_of
from .laurel import check_laurel
from .names import check_function, check_graph
from .tensors import check_infos, check_sparse, check_tensor
from .text import check_text

__all__ = ["check"]

MAX_IR_VERSION = 99
"""Far above what is there today; versions beyond are damage."""


def check(model: ModelProto, path: str | Path | None = None) -> None:
    """Raises ModelError, naming the place, if *model* is not structurally sound.

    Args:
        model: what was read or made; it is not changed, and weights in other files stay unread.
        path: the file that it was read from: weights in other files must lie in that file's folder. ``None`` for a
            model that was made in memory, whose external weights are not looked for.

    Raises:
        ModelError: the first fault found.
    """
    file = None if path is None else Path(path)
    try:
        check_text(model)
        opsets = _opsets(model)
        functions = function_table(model)
        check_graph(model.graph, opsets, functions)
        for function in model.functions:
            check_function(function, functions)
        check_calls(model, functions)
        check_infos(model.graph)
        check_laurel(model.graph)
        for tensor in tensors_of(model):
            check_tensor(tensor, file)
        for sparse in sparse_tensors_of(model):
            check_sparse(sparse)
    except ModelError as error:
        raise ModelError(f"{'the model' if file is None else file}: {error}") from None


def _opsets(model: ModelProto) -> dict[str, int]:
    """Returns domain to version, after looking at what stands in the model's head."""
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError("it holds no graph: it is truncated or not an ONNX model.")
    if not model.graph.output:
        raise ModelError("its graph has no output, so it computes nothing; the file is cut off or damaged.")
    if not model.opset_import:
        raise ModelError("it imports no opset: it is truncated or older than ONNX 1.0.")
    if model.HasField("ir_version") and not 0 <= model.ir_version <= MAX_IR_VERSION:
        raise ModelError(f"its IR version {model.ir_version} does not exist; the file is damaged.")
    return opsets_of(model.opset_import)
