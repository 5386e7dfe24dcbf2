"""ONNX files: read with clear errors, tell their graphs apart. They are written by :mod:`laurel_graph.outputs.models`.

Models are read without their external data: a tensor that lies in another file stays a reference, that file is never
rewritten, and models of many gigabytes cost no memory.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from . import soundness
from .errors import LaurelError, ModelError
from .onnx_model.tensors import make_tensor, set_tensor, tensor_array

__all__ = [
    "make_tensor",
    "read",
    "read_with_records",
    "set_tensor",
    "tensor_array",
]


def read(path: str | Path) -> ModelProto:
    """Reads an ONNX file; tensors in external files stay references, which are checked to exist.

    Calls of the model's own functions that hold LAuReL residuals come written out (:mod:`laurel_graph.opset.calls`).

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
    if not model.functions:
        return model
    from .opset.calls import with_calls_written_out

    try:
        written = with_calls_written_out(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if written is not model:  # a call may leave out what a site needs
        soundness.check(written, path)
    return written


def read_with_records(path: str | Path, *, to_look: bool = False) -> ModelProto:
    """Reads an ONNX file in which records and function bodies of ours are rebuilt where a tool dropped them.

    Plain nodes that stand for nodes of ``ai.laurel`` give way to these (:mod:`laurel_graph.opset.plain`). What cannot
    be told any more is a warning; see :mod:`laurel_graph.opset.recover`.

    Args:
        path: the file.
        to_look: nothing will be made of the model: plain nodes that were changed are a warning, too, and stay.

    Raises:
        ModelError: as for :func:`read`, and for :func:`put_back`.
    """
    from .opset import changed, functions

    model = read(path)
    try:
        put_back(model, str(path))
    except ModelError as error:
        if not to_look:
            raise
        warnings.warn(str(error), stacklevel=2)
    lost = changed.mend(model)
    try:
        if to_look and (gone := changed.why_gone(model)):
            lost.append(gone)
    except LaurelError as error:  # of records that nothing asks for
        lost.append(str(error))
    for line in lost:
        warnings.warn(f"{path}: {line}", stacklevel=2)
    recover_records(model, str(path))
    functions.complete(model)
    return model


def put_back(model: ModelProto, name: str) -> None:
    """Puts the nodes of ``ai.laurel`` back into a model that is kept in plain form, in place.

    Raises:
        ModelError: what stands for them was changed; starts with *name*. See :mod:`laurel_graph.opset.plain`.
    """
    from .opset import plain

    try:
        plain.put_back(model)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def recover_records(model: ModelProto, name: str) -> None:
    """Rebuilds the records of a model in place, as :func:`read_with_records` does; *name* is what warnings call it."""
    from .opset import recover

    if not recover.needs_recovery(model):
        if site := recover.site_without_records(model):
            warnings.warn(
                f"{name}: it holds tensors of LAuReL ({site}) and neither nodes nor records of them: a tool dropped "
                "what a file in plain form says of itself. It is taken for any other model.",
                stacklevel=3,
            )
        return
    try:
        lost = recover.recover(model).lost
    except ModelError as error:
        lost = [str(error)]
    for line in lost:
        warnings.warn(f"{name}: {line}", stacklevel=3)


def _near_files(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.glob("*.onnx"))[:5]
    return f" It holds {', '.join(names)}." if names else ""


def _parse(data: bytes, path: Path) -> ModelProto:
    if not data:
        raise ModelError(f"{path} is empty (0 bytes); expected an ONNX file.")
    missing = missing_bytes(data)
    if missing is None:
        raise ModelError(f"{path} is not an ONNX file: {len(data)} bytes that are no ModelProto.{_advice(path)}")
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


_TORCH = (
    " It looks like weights of PyTorch: build the module and load them (module.load_state_dict(...)), then "
    "lg.export_onnx(module, (inputs,), 'model.onnx'), or lg.attach(module) to work on the module itself."
)
_ADVICE = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors"), _TORCH),
    ".gguf": " GGUF holds weights alone: load it with transformers (gguf_file=...) and export that module.",
    ".tflite": " Convert it first: python -m tf2onnx.convert --tflite MODEL --output model.onnx.",
    ".pb": " Convert it first: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx.",
    **dict.fromkeys((".h5", ".keras"), " Convert it first: keras.Model.export('model.onnx', format='onnx')."),
    ".ort": " ONNX Runtime's own format cannot be rewritten: use the .onnx file that it was made from.",
}
"""What to do with files of other kinds, by the end of their names."""


def _advice(path: Path) -> str:
    return _ADVICE.get(path.suffix.lower(), "")


def missing_bytes(data: bytes) -> int | None:
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
