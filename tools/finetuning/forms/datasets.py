"""Folders that ``save_to_disk`` of Hugging Face's datasets wrote, read with pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from laurel_graph.errors import DataError
from laurel_graph.tools.dependencies import missing

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"


def is_dataset(folder: Path) -> bool:
    """Whether ``datasets`` wrote a folder: one data set, or several splits."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def dataset_files(folder: Path) -> list[Path]:
    """Returns the files of one data set, in order.

    Raises:
        DataError: the folder holds several splits, was sorted or filtered without being rewritten, or is damaged.
    """
    if not (folder / STATE).is_file():
        splits = _json(folder / SPLITS).get("splits")
        listed = [str(folder / str(name)) for name in splits] if isinstance(splits, list) else []
        raise DataError(f"{folder}: a data set of several splits; name one of them: {', '.join(listed) or 'none'}.")
    state = _json(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder}: its rows are chosen by indices; save it again after flatten_indices().")
    try:
        return [folder / Path(each["filename"]).name for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / STATE}: expected what save_to_disk of datasets wrote.") from error


def read_table(folder: Path) -> Any:
    """Returns the table of one data set.

    Raises:
        DataError: see :func:`dataset_files`, or a file cannot be read.
        DependencyError: pyarrow is missing.
    """
    files = dataset_files(folder)
    try:
        import pyarrow as pa
    except ImportError as error:
        raise missing(f"{folder}: reading a data set", "pyarrow") from error
    tables = []
    for file in files:
        try:
            with pa.memory_map(str(file)) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        except Exception as error:  # Arrow and the file system each raise their own
            raise DataError(f"{file}: not a readable Arrow file ({' '.join(str(error).split())[:300]}).") from error
    if not tables:
        raise DataError(f"{folder}: no samples.")
    return pa.concat_tables(tables)


def class_names(folder: Path) -> dict[str, tuple[str, ...]]:
    """Returns column to the names of its classes, where the data set says them."""
    if not (folder / INFO).is_file():
        return {}
    features = _json(folder / INFO).get("features")
    return {
        name: tuple(map(str, feature["names"]))
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected what save_to_disk of datasets wrote.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected what save_to_disk of datasets wrote.")
    return found
