"""ONNX files: read with clear errors, tell their graphs apart, write atomically.

Models are read without their external data: a tensor that lies in another file stays a reference, that file is never
rewritten, and models of many gigabytes cost no memory.
"""

from __future__ import annotations

import filecmp
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from .errors import ModelError, OutputError
from .onnx_graph import graphs_of, tensors_of
from .onnx_tensors import byte_size, external_reference, make_tensor, set_tensor, tensor_array
from .opset.schema import PREFIX

__all__ = [
    "check_output",
    "count_parameters",
    "make_tensor",
    "read",
    "set_tensor",
    "tensor_array",
    "write",
]

_LIMIT = 2**31 - 1
"""What one protobuf message can hold."""


def read(path: str | Path) -> ModelProto:
    """Reads an ONNX file; tensors in external files stay references, which are checked to exist.

    Raises:
        ModelError: no such file, a directory, empty, not ONNX, truncated, or external data missing or too short.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"no such file: {path}; expected an ONNX model.") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a directory; expected an ONNX file.{_near_files(path)}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    model = _parse(data, path)
    _check_external(model, path)
    return model


def _near_files(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.glob("*.onnx"))[:5]
    return f" It holds {', '.join(names)}." if names else ""


def _parse(data: bytes, path: Path) -> ModelProto:
    if not data:
        raise ModelError(f"{path} is empty (0 bytes); expected an ONNX file.")
    missing = _missing_bytes(data)
    if missing is None:
        raise ModelError(f"{path} is not an ONNX file: {len(data)} bytes that are no ModelProto.")
    if missing:
        raise ModelError(
            f"{path} is truncated: at least {missing} bytes are missing after {len(data)}. Fetch it again."
        )
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{path} is damaged: it is no valid ONNX ModelProto. Fetch or export it again.") from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{path} holds no graph: it is truncated or not an ONNX model.")
    if not model.opset_import:
        raise ModelError(f"{path} imports no opset: it is truncated or older than ONNX 1.0.")
    if not all(isinstance(name, str) for name in _names(model)):
        raise ModelError(f"{path} is damaged: names in it are not valid UTF-8. Fetch or export it again.")
    return model


def _names(model: ModelProto) -> Iterator[object]:
    """Every name of a value, node or tensor; protobuf hands damaged ones out as bytes."""
    for graph in graphs_of(model.graph):
        yield graph.name
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield info.name
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    yield from (tensor.name for tensor in tensors_of(model))
    yield from (prop.key for prop in model.metadata_props)
    yield from (prop.value for prop in model.metadata_props)


def _check_external(model: ModelProto, path: Path) -> None:
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, offset, length = external_reference(tensor)
        file = path.parent / location
        if not file.is_file():
            raise ModelError(
                f"{path}: tensor {tensor.name!r} lies in the file {location!r}, which is not in {path.parent}; "
                "put the weight file beside the model."
            )
        size = file.stat().st_size
        if offset + (length or 0) > size:
            raise ModelError(
                f"{path}: the external file {location!r} is truncated: tensor {tensor.name!r} ends at byte "
                f"{offset + (length or 0)}, the file has {size}."
            )
        expected = byte_size(tensor)
        if length is not None and expected is not None and length != expected:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} of shape {tuple(tensor.dims)} takes {expected} bytes, but {length} "
                f"are stated for it in {location!r}; export the model again."
            )


def _missing_bytes(data: bytes) -> int | None:
    """Walks the top-level protobuf fields of a ModelProto.

    Returns 0 when they end with the data, the number of bytes that the last one lacks, or ``None`` when the data is
    something else.
    """
    wires = {field.number: 0 if field.cpp_type <= 4 else 2 for field in ModelProto.DESCRIPTOR.fields}
    position, known = 0, 0
    while position < len(data):
        tag, after = _varint(data, position)
        if after > len(data):
            return 1 if known else None
        number, wire = tag >> 3, tag & 7
        if (
            wires.get(number, wire) != wire
            or wire not in (0, 1, 2, 5)
            or number == 0
            or (number not in wires and not known)
        ):
            return None
        known += number in wires
        value, position = _varint(data, after) if wire in (0, 2) else (0, after + (8 if wire == 1 else 4))
        position += value if wire == 2 else 0
    return position - len(data) if known else None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns the number at *position* and the position after it, which is beyond the data when it is cut off."""
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    return value, position + 1


def count_parameters(model: ModelProto) -> int:
    """Returns the number of elements of all floating-point tensors of *model*, ours not counted."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(
        math.prod(tensor.dims)
        for tensor in tensors_of(model)
        if tensor.data_type in floats and not tensor.name.startswith(f"{PREFIX}.")
    )


def check_output(output: str | Path, source: str | Path | None = None) -> Path:
    """Returns *output* as a path that can be written; to be called before any work is done.

    Raises:
        OutputError: it is a directory or the file *source*, its folder does not exist, or nothing can be written there.
    """
    output = Path(output)
    if output.is_dir():
        raise OutputError(f"the output {output} is a directory; expected the name of a file.")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} of the output does not exist; make it first.")
    if source is not None and _same_file(output, Path(source)):
        raise OutputError(f"the output {output} is the input; the input is never overwritten: choose another name.")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OutputError(f"the output {output} cannot be written: {error.strerror or error}.") from None
    return output


def _same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def write(
    model: ModelProto, output: str | Path, source: str | Path | None = None, present: Collection[str] = ()
) -> tuple[Path, ...]:
    """Writes *model* aside and renames it to *output*, so that a half-written file is never seen.

    External data stays a reference at the same relative location. When *output* lies in another folder than *source*,
    the weight files are copied there (runtimes refuse locations and links that lead out of the model's folder), unless
    the same files are there already.

    Args:
        model: what to write; it is not changed.
        output: the file to write; an older one is replaced.
        source: the file that *model* was read from; needed when it has external data.
        present: locations of weight files that lie beside *output* already.

    Returns:
        The weight files that were copied.

    Raises:
        OutputError: see :func:`check_output`; a weight file would overwrite another file; no space is left.
        ModelError: the model is larger than the 2 GB of one protobuf message.
    """
    output = check_output(output, source)
    copies = _weight_copies(model, output, source, present)
    if model.ByteSize() > _LIMIT:
        raise ModelError(
            f"the model has {model.ByteSize()} bytes, a protobuf message holds {_LIMIT}; save its weights as external "
            "data first (onnx.save_model with save_as_external_data=True)."
        )
    for origin, target in copies:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_aside(target, partial(shutil.copyfile, origin))
    write_aside(output, lambda aside: aside.write_bytes(model.SerializeToString()))
    return tuple(target for _, target in copies)


def _weight_copies(
    model: ModelProto, output: Path, source: str | Path | None, present: Collection[str]
) -> list[tuple[Path, Path]]:
    """The weight files to copy, from and to."""
    external = (t for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL)
    locations = [name for name in dict.fromkeys(external_reference(t)[0] for t in external) if name not in present]
    if not locations:
        return []
    folder = output.parent if source is None else Path(source).parent
    copies = []
    for location in locations:
        origin, target = folder / location, output.parent / location
        if _same_file(output, target):
            raise OutputError(f"the output {output} is a weight file of the model itself; choose another name.")
        if _same_file(origin, target):
            continue
        if not target.resolve().is_relative_to(output.parent.resolve()):
            raise OutputError(f"the weight file {location!r} lies outside the model's folder; write beside the input.")
        if not target.exists():
            copies.append((origin, target))
        elif not filecmp.cmp(origin, target, shallow=False):
            raise OutputError(f"{target} exists and is another file than {origin}; write into another folder.")
    return copies


def write_aside(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets *fill* write a file beside *path*, then renames it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(aside)
        aside.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        aside.unlink(missing_ok=True)
