"""ONNX Runtime as a trial needs it: models in memory and files, values of any kind, a limit of time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph import runtime

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]
Sample = Mapping[str, Array]

LIMIT = 120.0
"""Seconds that a model may take for its sample."""


@dataclass(frozen=True)
class Seen:
    """A value as a run showed it.

    Attributes:
        shape: its shape on the sample.
        dtype: its element type as detection calls it, or ONNX Runtime's own name.
    """

    shape: tuple[int, ...]
    dtype: str


def opened(
    model: ModelProto | Path, folder: Path | None, *, optimize: bool, kernels: bool
) -> onnxruntime.InferenceSession:
    """A session of a model in memory, or of a file.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    used: Sequence[str] = ()
    if kernels and runtime.library_path() is not None:
        used = runtime.used_operators(model)
    options = runtime.session_options(None, optimize, operators=used)
    options.log_severity_level = 4
    if isinstance(model, ModelProto) and folder is not None:
        options.add_session_config_entry(runtime.WEIGHTS_FOLDER, str(folder.resolve()))
    try:
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class; a model above 2 GB has no bytes
        raise runtime.refused("ONNX Runtime cannot load it", error) from error


def run_on(session: onnxruntime.InferenceSession, sample: Sample) -> dict[str, Any]:
    """Returns output name to ``OrtValue``, or to an array where the model reads text.

    Raises:
        ModelError: the model does not run on the sample, or not within :data:`LIMIT` seconds.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    given = {name: array for name, array in sample.items() if name in wanted}
    texts = any(array.dtype == object for array in given.values())  # they have no OrtValue

    def stop() -> None:
        options.terminate = True

    timer = threading.Timer(LIMIT, stop)
    timer.start()
    try:
        if texts:
            return dict(zip(names, session.run(names, given, options), strict=True))
        feeds = {name: runtime.ort_value(array) for name, array in given.items()}
        return dict(zip(names, session.run_with_ort_values(names, feeds, options), strict=True))
    except Exception as error:  # as above
        shapes = ", ".join(f"{name!r} {array.shape}" for name, array in sample.items())
        slow = f" within {LIMIT:g} s" if options.terminate else ""
        raise runtime.refused(f"it does not run{slow} on inputs of {shapes}", error) from error
    finally:
        timer.cancel()


def seen_of(value: Any) -> Seen | None:
    """Returns what a value shows, ``None`` for one that is no tensor."""
    if isinstance(value, np.ndarray):
        return Seen(value.shape, value.dtype.name)
    if value is None or not value.has_value() or not value.is_tensor():
        return None
    kind = value.data_type().removeprefix("tensor(").removesuffix(")")
    return Seen(tuple(value.shape()), _NAMES.get(kind, kind))


_NAMES = {"float": "float32", "double": "float64"}


def array_of(value: Any) -> Array | None:
    """The array of a tensor, ``None`` for a sequence and for a type that NumPy does not know."""
    if isinstance(value, np.ndarray):
        return value
    if value is None or isinstance(value, list) or not value.has_value() or not value.is_tensor():
        return None
    try:
        return np.asarray(value.numpy())
    except Exception:  # as above
        return None


def first_line(error: Exception) -> str:
    """Returns the first line of an error as a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
