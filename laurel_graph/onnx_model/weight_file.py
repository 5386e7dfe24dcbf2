"""Tensors of a model in weight files beside it, as models beyond protobuf's 2 GB need: found, renamed, moved there."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, TensorProto

from ..errors import ModelError
from .tensors import external_reference
from .walk import tensors_of

_PAGE = 4096
"""Tensors start at multiples of this, so that runtimes can map them."""


def has_external_weights(model: ModelProto) -> bool:
    """Whether any initializer of the main graph lies in another file."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)


def weight_locations(model: ModelProto) -> tuple[str, ...]:
    """Returns the files that tensors of *model* lie in, as the model names them: relative to its own folder."""
    external = (tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL)
    return tuple(dict.fromkeys(external_reference(tensor)[0] for tensor in external))


def check_weights_known(model: ModelProto, folder: str | Path = "") -> None:
    """Checks that the weights of a model of memory are in it, or in files of a known *folder*.

    A file of that name in another folder may be another model's: nothing that lies in files is guessed at.

    Raises:
        ModelError: they lie in files, and *folder* is "".
    """
    if not folder and weight_locations(model):
        raise ModelError(
            f"the weights of this model of memory lie in the file {weight_locations(model)[0]!r} of a folder that it "
            "does not know: give the path of the model's own file (for a gs.Graph: to_graph(model, folder))."
        )


def move_weights_out(model: ModelProto, path: Path, threshold: int = 1024) -> bool:
    """Writes the initializers that *model* holds itself to the new file *path* and leaves references, in place.

    Args:
        model: the model.
        path: the weight file; the references name it without its folder.
        threshold: tensors of fewer bytes stay.

    Returns:
        Whether there was any; without one no file is made.
    """
    large = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and len(tensor.raw_data) >= threshold
    ]
    if not large:
        return False
    with path.open("wb") as file:
        for tensor in large:
            file.write(bytes(-file.tell() % _PAGE))
            _refer(tensor, path.name, file.tell(), len(tensor.raw_data))
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
    return True


def rename_weight_file(model: ModelProto, old: str, new: str) -> None:
    """Lets all references to the weight file *old* name *new*, in place."""
    for tensor in tensors_of(model):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
