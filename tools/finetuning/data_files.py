"""Reads training data from files, folders and functions."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DataError
from laurel_graph.tools.callables import call, is_reference
from laurel_graph.tools.dependencies import missing

from .data import Data, InputSpec
from .forms.datasets import class_names, is_dataset, read_table
from .forms.images import LABEL, image_files, read_images

Array = NDArray[Any]
FORMS = (
    "an .npz, .parquet or .csv file, a folder of NAME.npy files, of .npz/.parquet shards, of images (CLASS/*.png) or "
    "of Hugging Face's datasets, or package.module:function"
)


def read_data(source: str, inputs: Sequence[InputSpec] = (), known: Mapping[str, Sequence[str]] | None = None) -> Data:
    """Reads training data.

    Args:
        source: an ``.npz`` or ``.parquet`` file, a folder (``NAME.npy`` files, mapped into memory rather than read, or
            ``.npz``/``.parquet`` shards that are joined in the order of their names), a ``.csv`` file with a header, a
            folder of images in folders named after their classes, a folder that ``save_to_disk`` of Hugging Face's
            datasets wrote, or ``package.module:function``, whose result is a mapping from name to array or a
            :class:`Samples`.
        inputs: what the model takes, for images.
        known: name to its classes in the order of their numbers, where other data gave them.

    Raises:
        DataError: missing, of another form, damaged, or without usable arrays.
        DependencyError: a ``.parquet`` or ``.csv`` file or a data set without pyarrow, images without pillow.
    """
    if is_reference(source):
        content = call(source, "--data")
        if not isinstance(content, Mapping) and not (hasattr(content, "__len__") and hasattr(content, "__getitem__")):
            raise DataError(
                f"{source}: expected a mapping from name to array, or samples with len() and [index], "
                f"found {type(content).__name__}."
            )
        return Data(content, source)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: no such data; expected {FORMS}.")
    if path.is_dir():
        if is_dataset(path):
            arrays, unusable = _of_table(read_table(path))
            data = Data(arrays, source, unusable)
            data.classes.update(class_names(path))
            return data
        if image_files(path) and not any(folder_files(path)):
            return read_images(path, inputs, (known or {}).get(LABEL))
        return _read_folder(path)
    arrays, unusable = _read_file(path)
    data = Data(arrays, source, unusable)
    data.is_table = path.suffix == ".csv"
    return data


def _read_file(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    raise DataError(f"{path}: cannot read data of type {path.suffix or 'unknown'!r}; expected {FORMS}.")


def _read_npz(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a readable .npz file (no zip archive, or one that was cut off).")
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError as error:
                    objects = "it holds Python objects; store plain numbers"
                    unusable[name] = objects if "pickle" in str(error) else f"it is damaged: {error}"
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise DataError(f"{path}: not a readable .npz file ({error}).") from error
    return arrays, unusable


def _read_parquet(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing(f"{path}: reading .parquet", "pyarrow") from error
    try:
        table = pq.read_table(path)
    except Exception as error:  # Arrow, the file system and the codecs each raise their own
        raise DataError(f"{path}: not a readable .parquet file ({' '.join(str(error).split())[:300]}).") from error
    return _of_table(table)


def _read_csv(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        from pyarrow import csv
    except ImportError as error:
        raise missing(f"{path}: reading .csv", "pyarrow") from error
    try:
        table = csv.read_csv(path)
    except Exception as error:  # Arrow and the file system each raise their own
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not a readable .csv file with a header ({why}).") from error
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice; the first line must name the columns.")
    return _of_table(table)


def _of_table(table: Any) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns the columns of an Arrow table as arrays, and why others are none."""
    import pyarrow as pa

    arrays: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    for name in table.column_names:
        column = table.column(name)
        value = _arrow_array(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        if isinstance(value, str):
            unusable[name] = value
        else:
            arrays[name] = value
    return arrays, unusable


def _arrow_array(column: Any) -> Array | str:
    """Returns a column as ``(N, ...)``, nested lists of equal length becoming axes; or why that cannot be."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if column.null_count:
        return f"{column.null_count} values are missing"
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):  # Array2D and the like of datasets, where that is loaded
        return _arrow_array(column.storage)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False)) if len(column) else np.zeros(1, int)
        if len(lengths) > 1:
            return f"its lists differ in length ({lengths[0]} to {lengths[-1]}); pad them first"
        inner = _arrow_array(column.flatten())
        return inner if isinstance(inner, str) else inner.reshape(len(column), int(lengths[0]), *inner.shape[1:])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.asarray(column.to_pylist(), np.str_)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return f"element type {kind} is not numeric"
    return np.asarray(column.to_numpy(zero_copy_only=False))


def folder_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the arrays and the shards in a folder of data."""
    shards = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".parquet"))
    return sorted(path.glob("*.npy")), shards


def _read_folder(path: Path) -> Data:
    arrays, shards = folder_files(path)
    if bool(arrays) == bool(shards):
        raise DataError(
            f"{path}: expected a folder of NAME.npy files or of .npz/.parquet shards, found "
            f"{len(arrays)} .npy files and {len(shards)} shards."
        )
    if arrays:
        try:
            return Data({file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in arrays}, str(path))
        except (ValueError, OSError, EOFError, MemoryError) as error:
            raise DataError(f"{path}: a .npy file cannot be read ({error}).") from error
    parts, unusable = zip(*map(_read_file, shards), strict=True)
    names = {name: None for part in parts for name in part}
    for file, part in zip(shards, parts, strict=True):
        if missing := [name for name in names if name not in part]:
            raise DataError(f"{file}: {missing[0]!r} is missing here but present in another shard.")
    try:
        joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    except ValueError as error:
        raise DataError(f"{path}: the shards cannot be joined ({error}).") from error
    return Data(joined, str(path), {name: why for part in unusable for name, why in part.items()})
