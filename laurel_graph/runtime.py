"""Sessions on ONNX Runtime with the fused kernels of ``ai.laurel``, where their library was built.

A model with ``ai.laurel`` nodes carries their function bodies too, so it runs without the library, only slower.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import KernelLibraryError, ModelError

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from numpy.typing import NDArray

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_LIBRARY = ("" if sys.platform == "win32" else "lib") + "laurel_ops" + _SUFFIX
_OPERATOR = re.compile(rb"Laurel(?:_(?:RW|LR|PAL?[1-9]|Bias|[123]d|Relu|LayerNorm|RMSNorm|Quantized))+")
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""The session option that says where the external weights of a model in memory lie."""
_registering = threading.Lock()


def library_path() -> Path | None:
    """Returns the path of the library of fused kernels, or ``None`` if it was not built.

    Hand it to ``onnxruntime.SessionOptions.register_custom_ops_library`` in programs that make their own sessions.
    """
    # An editable install keeps sources and built files in different folders of the package's path.
    package = sys.modules[__package__]
    return next((path for folder in package.__path__ if (path := Path(folder) / _LIBRARY).is_file()), None)


@cache
def kernel_library() -> ctypes.CDLL | None:
    """Returns the loaded library, or ``None`` if it was not built.

    Raises:
        KernelLibraryError: the library does not load.
    """
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelLibraryError(f"{path} does not load: {error}. Reinstall laurel-graph on this machine.") from error
    library.laurel_isa.restype = ctypes.c_char_p
    library.laurel_available_isa.restype = ctypes.c_char_p
    library.laurel_available_isa.argtypes = [ctypes.c_int]
    library.laurel_select.argtypes = [ctypes.c_char_p]
    library.laurel_multiply_adds.restype = ctypes.c_double
    library.laurel_multiply_adds.argtypes = [ctypes.c_int64]
    library.laurel_hidden_floats.restype = ctypes.c_int64
    library.laurel_hidden_floats.argtypes = library.laurel_sum.argtypes = [ctypes.c_void_p]
    return library


def isa() -> str | None:
    """Returns the instruction set that new sessions run on: ``avx512``, ``avx2``, ``neon`` or ``baseline``.

    ``None`` without the library. The environment variable ``LAUREL_ISA`` chooses another one that the machine has.

    Raises:
        KernelLibraryError: ``LAUREL_ISA`` names none of :func:`available_isas`, or the library does not load.
    """
    library = kernel_library()
    if library is None:
        return None
    name: bytes | None = library.laurel_isa()
    if name is None:
        raise KernelLibraryError(
            f"LAUREL_ISA = {os.environ.get('LAUREL_ISA')!r} is not available on this machine: "
            f"expected one of {', '.join(available_isas())}."
        )
    return name.decode()


def available_isas() -> tuple[str, ...]:
    """Returns the instruction sets that this machine can run, best first; none without the library."""
    library = kernel_library()
    names: list[str] = []
    while library is not None and (name := library.laurel_available_isa(len(names))):
        names.append(name.decode())
    return tuple(names)


def multiply_adds(rounds: int) -> float:
    """Runs multiply-adds on registers alone and returns the number of float32 operations; 0 without the library.

    The time it takes gives the peak rate of one core, the roof over every kernel.
    """
    library = kernel_library()
    return float(library.laurel_multiply_adds(rounds)) if library is not None else 0.0


_added: list[Path] = []
"""Libraries of custom operators that a person added."""


def add_library(library: str | os.PathLike[str]) -> None:
    """See :func:`laurel_graph.passes.extend.add_kernels`.

    Raises:
        KernelLibraryError: there is no such file.
    """
    path = Path(library).resolve()
    if not path.is_file():
        raise KernelLibraryError(f"there is no library {path}: expected a shared library of custom operators.")
    if path not in _added:
        _added.append(path)


def register_added(options: onnxruntime.SessionOptions) -> None:
    """Registers the libraries that a person added with the options of a session.

    Raises:
        KernelLibraryError: ONNX Runtime does not load one.
    """
    for path in _added:
        try:
            options.register_custom_ops_library(str(path))
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise KernelLibraryError(f"ONNX Runtime does not load {path}: {' '.join(str(error).split())}") from error


def session_options(
    threads: int | None = None, optimize: bool = True, operators: Sequence[str] | None = None
) -> onnxruntime.SessionOptions:
    """Returns session options with the fused kernels registered; warns in one line where there is no library.

    Args:
        threads: threads of one operator, or ``None`` for ONNX Runtime's own choice.
        optimize: whether ONNX Runtime optimises the graph.
        operators: the type names that the model has of ``ai.laurel``, or ``None`` for all there are. Naming them
            makes the session some 50 ms faster to create.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    register_added(options)
    library = kernel_library()
    if library is None:
        if operators is None or operators:
            warnings.warn(
                "laurel-graph was installed without its fused kernels (no C++ compiler at build time); "
                "ai.laurel operators run from their function bodies, slower.",
                RuntimeWarning,
                stacklevel=2,
            )
    elif operators is None or operators:
        isa()
        with _registering:
            library.laurel_select(",".join(operators or ()).encode())
            try:
                options.register_custom_ops_library(str(library_path()))
            finally:
                library.laurel_select(None)
    return options


def session(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    optimize: bool = True,
    model: onnx.ModelProto | None = None,
) -> onnxruntime.InferenceSession:
    """Returns an ONNX Runtime session for a model file, with the fused kernels for its ``ai.laurel`` nodes.

    Args:
        path: the ``.onnx`` file, or a model folder.
        threads: threads of one operator, or ``None`` for ONNX Runtime's own choice.
        providers: execution providers, or ``None`` for the CPU.
        optimize: whether ONNX Runtime optimises the graph.
        model: run this in place of what the file holds; its external weights are looked for beside the file.

    Raises:
        ModelError: the file is missing or no model that ONNX Runtime can load.
    """
    import onnxruntime

    from .model_folder import graph_path

    path = graph_path(path)
    if not path.is_file():
        raise ModelError(f"No model file at {path}: expected an .onnx file.")
    options = session_options(threads, optimize, operators=used_operators(path))
    source: str | bytes = str(path)
    if model is not None:
        source = model.SerializeToString()
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent.resolve()))
    try:
        return onnxruntime.InferenceSession(source, options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise refused(f"ONNX Runtime cannot load {path}", error) from error


def run(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str], name: object
) -> list[NDArray[Any]]:
    """Returns the values of *outputs* that a session computes from *feeds*.

    Args:
        session: the session.
        feeds: input name to array.
        outputs: names of outputs of the model.
        name: what the message calls the model.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these arrays.
    """
    try:
        return list(session.run(list(outputs), {name: _fed(array) for name, array in feeds.items()}))
    except Exception as error:  # ONNX Runtime's errors share no base class
        told = f"{name} does not run on inputs of {_shapes(feeds)}"
        if misfit := _misfit(session, feeds):
            raise ModelError(f"{told}: {misfit}") from error
        raise refused(told, error) from error


def _misfit(session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]]) -> str:
    """Returns which input has another shape or type than the model takes, and what to do; "" where all fit."""
    for value in session.get_inputs():
        if value.name not in feeds:
            continue
        found, shape = feeds[value.name], list(value.shape or ())
        takes = f"it takes {value.name!r} as ({', '.join('?' if dim is None else str(dim) for dim in shape)})"
        advice = "give it inputs of that shape, as with --data, or models that take the same inputs"
        if value.shape is not None and len(shape) != found.ndim:
            return f"{takes}, expected {len(shape)} axes, found {found.ndim}; {advice}."
        for axis, (dim, size) in enumerate(zip(shape, found.shape, strict=False)):
            if isinstance(dim, int) and dim != size:
                return f"{takes}, so axis {axis} must be {dim}, found {size}; {advice}."
        kind = _NUMPY_TYPES.get(value.type)
        if kind is not None and kind != found.dtype.name:
            return f"it takes {value.name!r} as {kind}, found {found.dtype.name}; convert it first."
    return ""


_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({name})": name for name in ("float16", "bfloat16", "int8", "int16", "int32", "int64")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
"""ONNX Runtime's name of an element type to NumPy's."""


def _fed(array: NDArray[Any]) -> Any:
    """Returns what ONNX Runtime takes for an array: it knows none of bfloat16."""
    return ort_value(array) if array.dtype.name == "bfloat16" else array


def ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    """Returns an array of numbers as ONNX Runtime holds it, bfloat16 included."""
    import numpy as np
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view("uint16"), _BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array)


_BFLOAT16 = 16
"""``TensorProto.BFLOAT16``; this module does without onnx."""


def _shapes(feeds: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name!r} {tuple(array.shape)}" for name, array in feeds.items()) or "no kind"


def refused(what: str, error: Exception) -> ModelError:
    """Returns ONNX Runtime's complaint as one sentence of ours."""
    return ModelError(f"{what}: {' '.join(str(error).split())[:_LONGEST]}")


_LONGEST = 600
"""Characters of a complaint of ONNX Runtime that a message of ours takes over."""


def used_operators(model: str | os.PathLike[str] | onnx.ModelProto) -> tuple[str, ...]:
    """Returns the type names of ``ai.laurel`` that stand in the nodes of a model; no weights of a file are read.

    A file that is no ONNX model gives an empty tuple.
    """
    if not isinstance(model, (str, os.PathLike)):
        from .onnx_model.walk import graphs_of
        from .opset.schema import laurel_nodes

        nodes = [node for graph in graphs_of(model.graph) for node in laurel_nodes(graph)]
        return tuple(sorted({node.op_type for node in nodes}))
    with Path(model).open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return ()
        with data:
            names: set[bytes] = set()
            try:
                for field, start, end in _fields(data, 0, len(data)):
                    if field == _MODEL_GRAPH:
                        for inner, first, last in _fields(data, start, end):
                            if inner == _GRAPH_NODE:  # a node's bytes hold its subgraphs too
                                names.update(_OPERATOR.findall(data, first, last))
                    elif field == _MODEL_FUNCTIONS:
                        names.update(_OPERATOR.findall(data, start, end))
            except IndexError:  # truncated: loading it will say so
                pass
            return tuple(sorted(name.decode() for name in names))


# Field numbers of ModelProto and GraphProto in onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS, _GRAPH_NODE = 7, 25, 1


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, start, end) of the length-delimited fields of a protobuf message."""

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < end:
        tag = varint()
        match tag & 7:
            case 0:
                varint()
            case 1:
                position += 8
            case 2:
                length = varint()
                yield tag >> 3, position, position + length
                position += length
            case 5:
                position += 4
            case _:
                return
