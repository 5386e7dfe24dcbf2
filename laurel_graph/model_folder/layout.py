"""Where the graph of a model folder is, and what its configs say about running it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import ModelError

GENAI = "genai_config.json"
"""The file that makes a folder one of ONNX Runtime GenAI."""

_OPTIMUM = ("model.onnx", "decoder_model_merged.onnx")
"""Graphs of optimum that are a whole model, or a whole decoder."""
_PAIR = ("decoder_model.onnx", "decoder_with_past_model.onnx")
"""A decoder as optimum splits it: one graph for the prompt, one for the steps after it, each with all weights."""
_LARGEST = 1 << 26
"""Bytes of the largest config that is read."""
_INNER = "onnx"
"""Where exporters put graphs that lie below the configs."""


@dataclass(frozen=True)
class Layout:
    """What a model folder holds.

    Attributes:
        folder: the folder.
        kind: ``genai``, ``optimum``, or ``files`` where no config of either is there.
        graph: the graph that commands work on: the decoder's where there are several.
        others: the other graphs; they are carried over as they are.
    """

    folder: Path
    kind: str
    graph: Path
    others: tuple[Path, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """What ``genai_config.json`` holds; empty without one."""
        return read_genai(self.folder) if self.kind == "genai" else {}


def is_folder(model: object) -> bool:
    """Whether *model* is the path of a folder."""
    return isinstance(model, (str, os.PathLike)) and Path(model).is_dir()


def graph_path(model: str | os.PathLike[str]) -> Path:
    """Returns the ``.onnx`` file of *model*: itself, or the graph of a folder.

    Raises:
        ModelError: it is no path, or a folder whose graph cannot be told; see :func:`layout_of`.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f"expected the path of an ONNX file or of a model folder, found {type(model).__name__}: save the model "
            "first, or use a function that takes it as it is (of a gs.Graph, laurel_graph.passes.graphsurgeon.to_model "
            "gives the ModelProto)."
        )
    return layout_of(Path(model)).graph if is_folder(model) else Path(model)


DRAWINGS = (".html", ".graphml", ".dot", ".gv")
"""Endings of pages and drawings: what lies in a folder under them belongs to no model."""


def folder_files(model: object) -> tuple[Path, ...]:
    """Returns all files of a model folder but drawings: they are carried over, none is an output. Else nothing."""
    if not is_folder(model):
        return ()
    files = (path for path in Path(cast("str | Path", model)).rglob("*") if path.is_file())
    return tuple(path for path in files if path.suffix.lower() not in DRAWINGS)


def layout_of(folder: str | Path) -> Layout:
    """Finds the graph of a folder.

    Raises:
        ModelError: there is no graph, several and no config that says which one, a decoder in two graphs, or a config
            that cannot be read or names a file that is not there.
    """
    folder = Path(folder)
    inner = folder / _INNER if not _graphs(folder) else folder
    graphs = _graphs(inner)
    names = [path.name for path in graphs]
    if (folder / GENAI).is_file():
        graph = folder / decoder_file(read_genai(folder), folder)
        if not _is_there(graph):
            raise ModelError(f"{folder / GENAI} names the graph {graph.name!r}, which is not there; export it again.")
        kind = "genai"
    else:
        kind = "optimum" if (folder / "config.json").is_file() else "files"
        chosen = next((name for name in _OPTIMUM if name in names), None)
        if chosen is None and set(_PAIR) <= set(names):
            raise ModelError(
                f"{folder} has its decoder in two graphs, {' and '.join(_PAIR)}, and to change one alone would part "
                "them; export it as one (optimum: decoder_model_merged.onnx), or name one file."
            )
        if chosen is None and _PAIR[0] in names:
            chosen = _PAIR[0]
        if chosen is None and len(names) != 1:
            there = f"it holds {', '.join(names[:5])}: name one of them" if names else "it holds no .onnx file"
            raise ModelError(
                f"{folder} is a directory; expected an ONNX file, or a folder with {GENAI} or optimum's config.json "
                f"and model.onnx; {there}."
            )
        graph = inner / (chosen or names[0])
    return Layout(folder, kind, graph, tuple(path for path in graphs if not path.samefile(graph)))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _graphs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.onnx") if path.is_file() and not path.name.startswith("."))


def read_genai(folder: Path) -> dict[str, Any]:
    """Returns what a folder's ``genai_config.json`` holds.

    Raises:
        ModelError: it is no JSON object with ``model.decoder``.
    """
    path = folder / GENAI
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"{path} has {path.stat().st_size} bytes: expected what onnxruntime-genai writes.")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        decoder = config["model"]["decoder"]
        if not isinstance(decoder, dict) or not isinstance(decoder.get("session_options") or {}, dict):
            raise TypeError
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    except (KeyError, TypeError):
        raise ModelError(
            f"{path} has no object model.decoder, or its session_options are none: expected what onnxruntime-genai "
            "writes."
        ) from None
    return dict(config)


def decoder_file(config: dict[str, Any], folder: Path) -> str:
    """Returns the file name of the decoder's graph.

    Raises:
        ModelError: it is no single file inside the folder.
    """
    decoder = config["model"]["decoder"]
    if decoder.get("pipeline"):
        raise ModelError(f"{folder / GENAI} runs its decoder as a pipeline of several graphs; name one of the files.")
    name = decoder.get("filename", "model.onnx")
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"{folder / GENAI} has model.decoder.filename = {name!r}: expected a file in the folder.")
    return name


def session_options(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the session options of the decoder in a config, to be read or changed."""
    decoder = config["model"]["decoder"]
    options: dict[str, Any] = decoder.get("session_options") or {}
    decoder["session_options"] = options
    return options
