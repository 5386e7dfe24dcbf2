"""Training data: named arrays whose first axis counts the samples, read from files or from a function.

Arrays carry the names of the model's inputs and of the target. A file is held against the model before training
starts (:func:`fit_to_inputs`), so that a wrong name, shape or type is one clear sentence and no crash in step 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DataError, LaurelError, near
from laurel_graph.tools.failures import told

Array = NDArray[Any]


class Samples(Protocol):
    """A user's own data set: what a function named by ``--data`` may return beside a mapping of arrays."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Returns one sample: name to array, without the sample axis."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """What the model takes under one name.

    Attributes:
        name: the input's name.
        dtype: its NumPy element type.
        shape: an int or, where the size is free, a symbol's name or ``None`` per axis; ``None`` if unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


class Data:
    """Named arrays, or a data set that makes samples one by one, behind one interface.

    Attributes:
        source: where they come from, for messages.
        names: the names of the arrays.
        words: name to the texts of arrays that hold one text for each sample, such as names of classes.
        classes: name to what its class numbers are called, where the data say so.
        notes: sentences for the user: what was done to the data when they were read.
        is_table: whether the arrays are the columns of a table.
    """

    def __init__(
        self, content: Mapping[str, Array] | Samples, source: str = "data", unusable: Mapping[str, str] | None = None
    ) -> None:
        """Takes arrays or samples.

        Args:
            content: name to array ``(N, ...)``, or a sized, indexable collection of samples.
            source: where they come from, for messages.
            unusable: names that are there but hold no numbers, and why.

        Raises:
            DataError: no samples, no arrays, arrays of different length, arrays that hold no numbers, or samples that
                the user's own code fails to make.
        """
        self.source = source
        self._unusable = dict(unusable or {})
        self.words: dict[str, Array] = {}
        self.classes: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self.is_table = False
        self._scale: dict[str, tuple[Array, Array]] = {}
        self._arrays: dict[str, Array] | None = None
        self._cast: dict[str, np.dtype[Any]] = {}
        self._rows: NDArray[np.int64] | None = None
        if isinstance(content, Mapping):
            self._arrays = self._checked(content)
            self._length = len(next(iter(self._arrays.values())))
            self.names = tuple(self._arrays)
        else:
            self._samples = content
            self._length = self._user(lambda: len(content), "len()")
            if not self._length:
                raise DataError(f"{source}: no samples.")
            self.names = tuple(self._sample(0))

    def _user(self, made: Callable[[], Any], what: str) -> Any:
        """Returns what the user's own code gives."""
        try:
            return made()
        except LaurelError:
            raise
        except Exception as error:  # whatever it raises
            raise DataError(f"{self.source}: {what} failed with {told(error)}.") from error

    def _sample(self, row: int) -> Mapping[str, Any]:
        sample = self._user(lambda: self._samples[row], f"sample {row}")
        if not isinstance(sample, Mapping):
            kind = type(sample).__name__
            raise DataError(f"{self.source}: sample {row} must be a mapping from name to array, found {kind}.")
        return sample

    def _checked(self, content: Mapping[str, Array]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name, value in content.items():
            array = self._user(partial(np.asarray, value), f"reading {name!r}")
            if not _is_numeric(array.dtype):
                self._unusable[name] = f"element type {array.dtype} is not numeric{_advice(array)}"
                if array.dtype.kind == "U" and array.ndim == 1:
                    self.words[name] = array
            elif array.ndim == 0:
                self._unusable[name] = "a single value; the first axis must count the samples"
            else:
                arrays[name] = array
        if not arrays:
            raise DataError(f"{self.source}: no usable array{self.unusable()}.")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            listing = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"{self.source}: the arrays differ in their number of samples: {listing}.")
        if not next(iter(lengths.values())):
            raise DataError(f"{self.source}: no samples.")
        return arrays

    def __len__(self) -> int:
        """Returns the number of samples."""
        return self._length

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Array]:
        """Returns name to array ``(len(indices), ...)`` of the samples at *indices*, in that order."""
        rows = np.asarray(indices) if self._rows is None else self._rows[np.asarray(indices)]
        if self._arrays is not None:
            picked = {name: np.asarray(array[rows]) for name, array in self._arrays.items()}
        else:
            samples = [self._sample(int(row)) for row in rows]
            picked = {name: self._stack(name, samples) for name in self.names}
        for name, (factor, offset) in self._scale.items():
            picked[name] = (picked[name] * factor + offset).astype(np.float32)
        return {
            name: array.astype(self._cast.get(name, _plain(array.dtype)), copy=False) for name, array in picked.items()
        }

    def _stack(self, name: str, samples: list[Mapping[str, Any]]) -> Array:
        try:
            stacked = np.stack([np.asarray(sample[name]) for sample in samples])
        except KeyError:
            raise DataError(f"{self.source}: {name!r} is missing in one of the samples.") from None
        except ValueError as error:
            raise DataError(f"{self.source}: {name!r} has samples of different shapes; pad them first.") from error
        except Exception as error:  # tensors that need gradients, objects of the user's own
            raise DataError(f"{self.source}: {name!r} of a sample is no array: {told(error)}.") from error
        if not _is_numeric(stacked.dtype):
            raise DataError(f"{self.source}: {name!r} has elements of type {stacked.dtype}; expected numbers.")
        return stacked

    def require(self, name: str, what: str) -> Array:
        """Returns one sample of *name*, as ``(1, ...)``.

        Raises:
            DataError: there is no such array; the message says *what* was looked for.
        """
        if name in self._unusable:
            raise DataError(f"{self.source}: {what} {name!r} is there but unusable: {self._unusable[name]}.")
        if name not in self.names:
            raise DataError(
                f"{self.source}: {what} {name!r} is missing; it holds {', '.join(map(repr, self.names))}."
                f"{near(name, self.names)}"
            )
        return self.batch([0])[name]

    def unusable(self) -> str:
        """Returns `` (name: why; ...)`` of the arrays that hold no numbers, or an empty text."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self._unusable.items())
        return f" ({reasons})" if reasons else ""

    def cast(self, name: str, dtype: np.dtype[Any]) -> None:
        """Hands *name* out as *dtype* from now on."""
        self._cast[name] = dtype

    def scale(self, name: str, factor: Array, offset: Array) -> None:
        """Hands *name* out times *factor* plus *offset* from now on; both broadcast against ``(N, ...)``."""
        self._scale[name] = (factor, offset)

    def values(self, name: str) -> Array | None:
        """Returns the whole array *name*, or ``None`` where samples are made one by one."""
        if self._arrays is None:
            return None
        return self._arrays[name] if self._rows is None else self._arrays[name][self._rows]

    def with_array(self, name: str, array: Array) -> Data:
        """Returns the same data with one more array ``(N, ...)``."""
        if self._arrays is not None and self._rows is None:
            data = Data({**self._arrays, name: array}, self.source, self._unusable)
            data._scale = dict(self._scale)  # of samples it is done already
        else:
            data = Data(_Extended(self, name, array), self.source, self._unusable)
        data._cast = dict(self._cast)
        data.classes, data.notes, data.is_table = dict(self.classes), list(self.notes), self.is_table
        data.words.update({key: words for key, words in self.words.items() if key != name})
        return data

    def subset(self, indices: NDArray[np.int64], label: str) -> Data:
        """Returns the samples at *indices* as data of its own, named *label* after the source."""
        part = copy(self)
        part._rows = indices if self._rows is None else self._rows[indices]
        part._length, part.source, part._cast = len(indices), f"{self.source} ({label})", dict(self._cast)
        part._scale, part.notes = dict(self._scale), list(self.notes)
        return part

    def fingerprint(self) -> str:
        """Returns a short digest of names, shapes, types and the first and last samples."""
        digest = hashlib.sha256(str(self._length).encode())
        for name, array in sorted(self.batch([0, self._length // 2, self._length - 1]).items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def _advice(array: Array) -> str:
    """Returns what to do with words: number them."""
    if array.dtype.kind not in "US" or not array.size:
        return ""
    words = [str(word) for word in np.unique(array)[:3]]
    return (
        f"; numbers are needed for words such as {', '.join(map(repr, words))}: names, label = numpy.unique(words, "
        "return_inverse=True) gives them"
    )


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that torch takes: this machine's byte order, at most 64 bits."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


class _Extended:
    """Samples with one array more."""

    def __init__(self, data: Data, name: str, array: Array) -> None:
        self.data, self.name, self.array = data, name, array

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        sample = {name: array[0] for name, array in self.data.batch([index]).items()}
        return {**sample, self.name: self.array[index]}


def fit_to_inputs(data: Data, inputs: Sequence[InputSpec], suffix: str = "") -> list[str]:
    """Holds the arrays named ``input + suffix`` against the model's inputs; they come out in the model's types then.

    Returns:
        Sentences: bytes that a model takes as numbers, which are images of 0 to 255 more often than not.

    Raises:
        DataError: an input is missing, has another number of axes, another fixed size, sizes that contradict another
            input's, or values that its type cannot hold.
    """
    symbols: dict[str, tuple[str, int]] = {}
    notes: list[str] = []
    for spec in inputs:
        name = spec.name + suffix
        sample = data.require(name, "model input")
        if spec.shape is not None:
            _check_shape(data, name, sample.shape, spec.shape, symbols)
        if not _castable(sample.dtype, spec.dtype):
            raise DataError(
                f"{data.source}: {name!r} has element type {sample.dtype}, but the model takes {spec.dtype}; "
                "convert it first."
            )
        whole = data.values(name)
        if sample.dtype == np.uint8 and _is_float(spec.dtype):  # what is scaled is float32
            most = int((sample if whole is None else whole).max())
            notes.append(
                f"{data.source}: {name!r} holds whole numbers from 0 to {most} (uint8) and is used as it is; where the "
                "model expects images of 0 to 1, or normalised ones, give --scale 255, and --mean and --std."
            )
        if spec.dtype.kind in "iu" and whole is not None and whole.dtype.kind in "iu":
            bounds = np.iinfo(spec.dtype)
            if whole.min() < bounds.min or whole.max() > bounds.max:
                raise DataError(f"{data.source}: {name!r} has values outside the range of {spec.dtype}.")
        data.cast(name, spec.dtype)
    return notes


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _castable(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    if _is_float(wanted):
        return True
    if wanted.kind == "b":
        return found.kind == "b"
    return found.kind in "biu"


def _check_shape(
    data: Data,
    name: str,
    found: tuple[int, ...],
    wanted: tuple[int | str | None, ...],
    symbols: dict[str, tuple[str, int]],
) -> None:
    listing = "(" + ", ".join(str(dim if dim is not None else "?") for dim in wanted) + ")"
    shape = "(" + ", ".join(["N", *map(str, found[1:])]) + ")"
    if len(found) != len(wanted):
        raise DataError(f"{data.source}: {name!r} has shape {shape}, but the model takes {listing}.")
    for axis, (size, dim) in enumerate(zip(found[1:], wanted[1:], strict=True), 1):
        if not size and "past" not in name:  # a cache that holds nothing
            raise DataError(f"{data.source}: {name!r} has shape {shape}: axis {axis} is empty.")
        if isinstance(dim, int) and dim != size:
            raise DataError(
                f"{data.source}: {name!r} has shape {shape}, but the model takes {listing}: "
                f"axis {axis} must be {dim}, found {size}."
            )
        if isinstance(dim, str):
            other, known = symbols.setdefault(dim, (name, size))
            if known != size:
                raise DataError(
                    f"{data.source}: axis {axis} of {name!r} is {size}, but {other!r} has {known} "
                    f"for the same dim {dim!r}."
                )


def split(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Returns *data* without a random *fraction* of the samples, and that fraction.

    Raises:
        DataError: one of the two would be empty, or *fraction* is no number.
    """
    held_out = round(len(data) * fraction) if math.isfinite(fraction) else 0
    if not 0 < held_out < len(data):
        raise DataError(f"{data.source}: a validation fraction of {fraction} of {len(data)} samples leaves one empty.")
    order = np.random.default_rng([seed, 1]).permutation(len(data))
    return data.subset(np.sort(order[held_out:]), "training"), data.subset(np.sort(order[:held_out]), "validation")
