"""ONNX files: read with clear errors, tell their graphs apart, write atomically.

Models are read without their external data: a tensor that lies in another file stays a reference, that file is never
rewritten, and models of many gigabytes cost no memory.
"""

from __future__ import annotations

import filecmp
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from . import soundness
from .errors import ModelError, OutputError
from .onnx_graph import graphs_of, tensors_of
from .onnx_tensors import external_reference, make_tensor, sample_bytes, set_tensor, tensor_array
from .opset.schema import PREFIX

__all__ = [
    "check_output",
    "count_parameters",
    "fingerprint",
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
        ModelError: no such file, a directory, empty, not ONNX, truncated, not structurally sound (see
            :mod:`laurel_graph.soundness`), or external data missing, too short or outside the model's folder.
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
    soundness.check(model, path)
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
    return model


def _missing_bytes(data: bytes) -> int | None:
    """Walks the top-level protobuf fields of a ModelProto.

    Returns 0 when they end with the data, the number of bytes that the last one lacks, or ``None`` when the data is
    something else.
    """
    wires = {field.number: 0 if field.cpp_type <= 4 else 2 for field in ModelProto.DESCRIPTOR.fields}
    position, known = 0, 0
    while position < len(data):
        tag, after = _varint(data, position)
        if after < 0 or after > len(data):
            return 1 if known and after > 0 else None
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
        if position < 0:
            return None
        position += value if wire == 2 else 0
    return position - len(data) if known else None


_LONGEST_VARINT = 10
"""Bytes of the longest varint that protobuf knows."""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns the number at *position* and the position after it: beyond the data if cut off, -1 if it is none."""
    value = shift = 0
    found = data[position : position + _LONGEST_VARINT]
    for byte in found:
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    return value, position + 1 if len(found) < _LONGEST_VARINT else -1


def fingerprint(model: ModelProto, base_dir: str | Path = "") -> str:
    """Returns a digest of the base graph that is the same before and after the insertion of LAuReL.

    It covers the names and types of inputs and outputs, the names of all computed values, and every initializer's
    name, type, shape and first and last bytes; what is ours (``laurel.*``) does not count.

    Raises:
        ModelError: external data is missing.
    """
    lines = []
    for graph in graphs_of(model.graph):
        for kind, infos in (("in", graph.input), ("out", graph.output)):
            lines += [f"{kind} {info.name} {info.type.tensor_type.elem_type}" for info in infos]
        lines += [f"value {output}" for node in graph.node for output in node.output if output]
        lines += [
            f"tensor {t.name} {t.data_type} {tuple(t.dims)} {hashlib.sha256(sample_bytes(t, base_dir)).hexdigest()}"
            for t in graph.initializer
        ]
    lines = sorted(line for line in lines if not line.split(" ", 2)[1].startswith(f"{PREFIX}."))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
