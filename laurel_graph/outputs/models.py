"""ONNX models as outputs: a model and its weight files become visible together.

Weight files that we make are named after their content (``<output>.<digest>.data``), so that they never take the name
of a file that another model uses, and lie in their final place before the model is renamed. Weight files of the input
stay where they are; a model in another folder gets copies (runtimes refuse locations and links that lead out of the
model's folder), under their own names where those are free, and else under names with a digest.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePath

from onnx import ModelProto

from .. import onnx_file
from ..errors import ModelError, OutputError
from ..onnx_model.weight_file import move_weights_out, rename_weight_file, weight_locations
from ..opset import plain
from .files import Input, Staged, is_same_file, staged
from .named_weights import names_by_content

_LIMIT = 2**31 - 1
"""What one protobuf message can hold."""


def model_files(path: str | Path, model: ModelProto | None = None) -> tuple[Path, ...]:
    """Returns the file *path* and the files that its tensors lie in.

    Args:
        path: an ONNX file.
        model: what it holds, if it was read already.

    Raises:
        ModelError: it cannot be read.
    """
    path = Path(path)
    model = onnx_file.read(path) if model is None else model
    return (path, *weight_files(model, path.parent))


def weight_files(model: ModelProto, folder: str | Path) -> tuple[Path, ...]:
    """Returns the files that the tensors of *model* lie in, for a model whose weight files lie in *folder*."""
    return tuple(Path(folder) / location for location in weight_locations(model))


def write_model(
    model: ModelProto,
    output: str | Path,
    source: str | Path | None = None,
    inputs: Iterable[Input] = (),
    *,
    folder: str | Path | None = None,
) -> Path:
    """Writes *model* to *output*; see :func:`stage_model`. Returns the path.

    Args:
        model: what to write.
        output: the file; an older one is replaced.
        source: the file that *model* was read from; needed, or *folder*, when it has external data.
        inputs: all other files that the command reads.
        folder: where its weight files lie, for a model of memory.

    Raises:
        OutputError: see :func:`~laurel_graph.outputs.staged`.
        ModelError: the model is larger than the 2 GB of one protobuf message.
    """
    if source is not None:
        inputs, folder = (*inputs, source), Path(source).parent
    read = (*inputs, *(() if folder is None else weight_files(model, folder)))
    with staged(output, read) as aside:
        stage_model(aside, model, folder)
        aside.publish()
    return Path(output)


def stage_model(aside: Staged, model: ModelProto, folder: str | Path | None = None, spill: bool = False) -> ModelProto:
    """Writes *model* to the staged file, to be opened and checked there, with its weight files in their final places.

    Args:
        aside: the output.
        model: what to write; references to weight files that got another name are changed in it, in place. One that
            is kept in plain form is written so (:mod:`laurel_graph.opset.plain`).
        folder: where the weight files of *model* lie; needed when it has external data.
        spill: move the large tensors that the model holds itself into a weight file.

    Returns:
        What lies there, read back.

    Raises:
        OutputError: the file system refuses.
        ModelError: the model is larger than the 2 GB of one protobuf message.
    """
    is_kept_plain = plain.is_plain(model) and bool(plain.write_out(model))
    with aside.telling():
        if folder is not None and not Path(folder).samefile(aside.output.parent):
            for location in weight_locations(model):
                _bring(aside, model, Path(folder), location)
        if spill:
            part = aside.space.new_path()
            if move_weights_out(model, part):
                place_weights(aside, model, part, part.name)
    size = model.ByteSize()
    if size > _LIMIT:
        raise ModelError(
            f"the model has {size} bytes, a protobuf message holds {_LIMIT}; save its weights as external "
            "data first (onnx.save_model with save_as_external_data=True)."
        )
    aside.write(model.SerializeToString())
    if is_kept_plain:
        plain.put_back(model)
    return onnx_file.read(aside.path)


def place_weights(aside: Staged, model: ModelProto, part: Path, location: str) -> None:
    """Gives a new weight file its final name beside the output, and *model*'s references to *location* that name."""
    with aside.telling():
        names = names_by_content(part, aside.output.name, ".data", aside.output.parent)
        rename_weight_file(model, location, aside.space.place(part, names))


def _bring(aside: Staged, model: ModelProto, folder: Path, location: str) -> None:
    """Copies a weight file of the source, if the same one does not lie beside the output already."""
    output, origin = aside.output, folder / location
    if PurePath(location).is_absolute() or os.path.normpath(location).startswith(".."):
        raise OutputError(f"the weight file {location!r} lies outside the model's folder; write beside the input.")
    place = output.parent / location
    free = _is_inside(place.parent, output.parent) and not is_same_file(place, output)
    if free and aside.space.use(location, origin):
        return
    part = aside.space.new_path()
    shutil.copyfile(origin, part)
    if not filecmp.cmp(origin, part, shallow=False):
        raise OutputError(f"the copy of {origin} reads otherwise than it was written; check the disk.")
    name = PurePath(location)
    others = names_by_content(part, name.stem, name.suffix, output.parent)
    rename_weight_file(model, location, aside.space.place(part, [location, *others] if free else others))


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
