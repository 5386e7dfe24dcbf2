"""Writes a model folder from another one: everything carried over but the graph, which a pass rewrites."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .. import runtime
from ..errors import LaurelError, ModelError, OutputError
from ..foreign_names import LONGEST, printable
from ..outputs.files import Input
from ..outputs.folder import copy_file, staged_folder
from ..outputs.locks import OURS, sync
from .layout import GENAI, Layout, is_folder, layout_of, read_genai, session_options

LIBRARY = "custom_ops_library"
"""The session option that names a library of kernels, relative to the folder."""


@dataclass
class Rewriting:
    """A folder while it is written.

    Attributes:
        layout: the folder that is read.
        graph: the file to write the new graph to.
        output: the folder as it will be called.
        notes: sentences for the user, complete when the block has ended.
    """

    layout: Layout
    graph: Path
    output: Path
    notes: list[str] = field(default_factory=list)

    @property
    def source(self) -> Path:
        """The graph to read."""
        return self.layout.graph


def writes_folder(model: object, output: str | Path | None) -> bool:
    """Whether a command that reads *model* and writes *output* writes a folder: for a folder, but to a ``.onnx``."""
    return is_folder(model) and output is not None and Path(output).suffix != ".onnx"


@contextmanager
def rewritten(
    model: str | Path,
    output: str | Path,
    *,
    portable: bool = False,
    inputs: Iterable[Input] = (),
) -> Iterator[Rewriting]:
    """A context in which a pass reads ``.source`` and writes ``.graph``; the whole folder is visible when it ends.

    Args:
        model: the folder to read; nothing in it is written.
        output: the folder to make; see :func:`laurel_graph.outputs.folder.staged_folder` for what is guaranteed.
        portable: leave our library and its setting away whatever the graph holds.
        inputs: further files that the command reads.

    Raises:
        ModelError: the folder's graph cannot be told, or its config names another library of kernels.
        OutputError: the folder cannot be written.
    """
    layout, output = layout_of(model), Path(output)
    with staged_folder(output, (layout.folder, *inputs)) as folder:
        work = Rewriting(layout, folder / layout.graph.relative_to(layout.folder), output)
        try:
            left = _carry(layout, folder)
            yield work
            _drop_unused(layout, folder)
            if layout.kind == "genai":
                _settle_library(work, folder, portable)
        except LaurelError as error:
            raise type(error)(str(error).replace(str(folder), str(output))) from error
        if left:
            work.notes.append(f"not carried over, because they are no files or lead nowhere: {', '.join(left)}.")
        if layout.others:
            names = ", ".join(path.name for path in layout.others)
            work.notes.append(f"{layout.graph.name} was rewritten; carried over as they are: {names}.")


def _carry(layout: Layout, folder: Path) -> list[str]:
    """Fills *folder* with all that is there but the graph itself and a library of ours.

    Returns:
        What cannot be carried over: pipes, links to folders, links that lead nowhere.

    Raises:
        ModelError: a link leads out of the folder.
        OutputError: the file system refuses.
    """
    library = _own_library(layout)
    left: list[str] = []
    for path in sorted(layout.folder.rglob("*")):
        inner = path.relative_to(layout.folder)
        if any(part.startswith((OURS, ".git", ".cache")) for part in inner.parts):
            continue
        if path.is_symlink():
            _check_link(path, layout.folder)
        if path.is_dir() and not path.is_symlink():
            (folder / inner).mkdir(exist_ok=True)
        elif not path.is_file():
            left.append(printable(str(inner), LONGEST))
        elif path != layout.graph and inner.name != library:
            try:
                copy_file(path, folder / inner)
            except OSError as error:
                raise OutputError(f"{path} cannot be carried over: {error.strerror or error}.") from None
    return left


def _check_link(path: Path, folder: Path) -> None:
    """Raises ModelError for a link out of the folder: it would put a file of this machine into what is handed on.

    The folders of Hugging Face's cache are links to its own blobs.
    """
    place, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not place.is_relative_to(home) and not place.is_relative_to(home.parent.parent / "blobs") and path.exists():
        raise ModelError(
            f"{path} leads out of the model folder, to {place}; put the file itself there, or take the link away."
        )


def _weights_of(layout: Layout) -> set[Path]:
    """Returns the weight files of all graphs of a folder."""
    from ..outputs.models import model_files

    return {file for graph in (layout.graph, *layout.others) for file in model_files(graph)[1:]}


def _drop_unused(layout: Layout, folder: Path) -> None:
    """Takes away the weight files that no graph of the new folder speaks of any more."""
    from ..outputs.models import model_files

    graphs = [folder / path.relative_to(layout.folder) for path in (layout.graph, *layout.others)]
    used = {file.resolve() for graph in graphs for file in model_files(graph)}
    for path in _weights_of(layout):
        if path.is_relative_to(layout.folder):
            carried = folder / path.relative_to(layout.folder)
            if carried.exists() and carried.resolve() not in used:
                carried.unlink()


def _own_library(layout: Layout) -> str | None:
    """Returns the file name of the library of ours that a folder holds."""
    if layout.kind != "genai":
        return None
    name = session_options(layout.config).get(LIBRARY)
    return Path(name).name if isinstance(name, str) and is_ours(name) else None


def is_ours(library: str) -> bool:
    """Whether a session option names our library, by the file's name."""
    return Path(library).stem.removeprefix("lib") == "laurel_ops"


def _settle_library(work: Rewriting, folder: Path, portable: bool) -> None:
    """Lets the config name our library, put beside the graph, exactly where the graph has operators of ours.

    Without a library on this machine the operators run from their function bodies, which the graph carries.

    Raises:
        ModelError: a library of someone else's is named, and a session takes one.
    """
    config = read_genai(folder)
    options = session_options(config)
    before = options.get(LIBRARY)
    ours = isinstance(before, str) and is_ours(before)
    operators = () if portable else runtime.used_operators(work.graph)
    library = runtime.library_path()
    if before and not ours:
        if operators:
            raise ModelError(
                f"{GENAI} names the library {before!r}, and a session takes one; deploy with --portable, which needs "
                "none."
            )
        return
    if operators and library is not None:
        copy_file(library, folder / library.name)
        options[LIBRARY] = library.name
    else:
        options.pop(LIBRARY, None)
        if operators:
            work.notes.append("no library of fused kernels is installed here: the folder runs from function bodies.")
    if options.get(LIBRARY) != before:
        path = folder / GENAI
        end = "\n" if path.read_bytes().endswith(b"\n") else ""
        path.write_text(json.dumps(config, indent=4, ensure_ascii=False) + end, encoding="utf-8")
        sync(path)
