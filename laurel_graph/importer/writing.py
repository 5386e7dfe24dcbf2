"""Trained tensors back into the file they came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.trained import trained_tensors
from ..errors import AdapterError
from ..onnx_file import read
from ..onnx_model.tensors import set_tensors
from ..outputs import check_outputs
from ..outputs.kinds import MODEL
from ..outputs.models import model_files, write_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn


def write_back(module: nn.Module, source_path: str | Path, output: str | Path) -> tuple[str, ...]:
    """Writes *source_path* with the module's trained tensors to *output*.

    Only the named tensors change: they are cast to the element type they have in the file. All other bytes of nodes
    and weights stay as they were; external data is neither read nor rewritten.

    Args:
        module: an imported module, or any that holds the LAuReL residuals of the file's sites.
        source_path: the transformed file.
        output: the file to write; never the source.

    Returns:
        The names of the tensors that were written.

    Raises:
        ModelError: the file has no tensor of that name, or of another shape.
        AdapterError: the module trains nothing that has a name in the file.
        OutputError: the output cannot be written.
    """
    model = read(source_path)
    check_outputs(output, inputs=model_files(source_path, model), kind=MODEL)
    names = patch(module, model)
    write_model(model, output, source_path)
    return names


def patch(module: nn.Module, model: ModelProto) -> tuple[str, ...]:
    """Puts the module's trained tensors into *model* by name, in place, and returns their names.

    Raises:
        ModelError: the model has no tensor of that name, or of another shape.
        AdapterError: the module trains nothing that has a name in the model.
    """
    tensors = trained_tensors(module)
    if not tensors:
        raise AdapterError("the module trains no tensor, so there is nothing to write back.")
    set_tensors(model, tensors)
    return tuple(tensors)
