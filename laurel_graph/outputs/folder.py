"""A whole folder as one output: filled under another name beside its place, visible by one rename.

What is guaranteed: a folder is new, or was empty; until it is complete and synced nothing is visible under its name,
and a death at any point leaves no folder or the whole one (what it left is swept by the next command that writes into
the folder around it). A folder that holds something is refused: nothing is merged into it or taken away from it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import OutputError
from .files import Input, is_same_file, telling
from .locks import sync, sync_names
from .workspace import workspace

try:
    import fcntl
except ImportError:  # Windows has no clones of this kind
    fcntl = None  # type: ignore[assignment]

_CLONE = 0x40049409
"""Linux's FICLONE: a file that shares its blocks with another one until either is written."""


def check_folder(output: str | Path, inputs: Iterable[Input] = ()) -> None:
    """Checks that a new folder can be made, outside of every folder that the command reads.

    Raises:
        OutputError: *output* is a file or a link, a folder that holds something, lies in a folder of *inputs* or holds
            one, or the folder around it does not exist or cannot be written.
    """
    output = Path(output)
    with telling(output):
        if os.path.lexists(output) and not output.is_dir():
            raise OutputError(f"the output {output} is a file; a model folder is written as a folder: choose another.")
        if output.is_symlink():
            raise OutputError(f"the output {output} is a link; a folder appears by a rename: name the folder itself.")
        if output.is_dir() and any(output.iterdir()):
            raise OutputError(
                f"the output folder {output} holds files already; it is never written over: choose another name, or "
                "remove it first."
            )
        if not output.parent.is_dir():
            raise OutputError(f"the folder {output.parent} of the output does not exist; make it first.")
        place = output.resolve()
        for read in (Path(path) for path in inputs if path is not None):
            if read.is_dir() and (place.is_relative_to(read.resolve()) or read.resolve().is_relative_to(place)):
                raise OutputError(f"the output folder {output} lies in the input {read}, or around it; choose another.")
            if is_same_file(output, read):
                raise OutputError(f"the output {output} is the input; the input is never overwritten.")


@contextmanager
def staged_folder(output: str | Path, inputs: Iterable[Input] = ()) -> Iterator[Path]:
    """A context that gives an empty folder to fill, which becomes *output* where the block ends without an error.

    Args:
        output: the folder to make.
        inputs: all files and folders that the command reads.

    Raises:
        OutputError: see :func:`check_folder`; the file system refuses.
    """
    output = Path(output)
    check_folder(output, inputs)
    with ExitStack() as stack:
        with telling(output):
            space = stack.enter_context(workspace(output.parent))
            folder = space.new_folder()
        yield folder
        with telling(output):
            for inner in [path for path in folder.rglob("*") if path.is_dir()]:
                sync_names(inner)
            sync_names(folder)
            space.publish(folder, output, lambda path: True)


def copy_file(origin: Path, target: Path) -> None:
    """Makes the new file *target* with what *origin* holds, on the disk.

    Where the file system can, it is a clone, which shares the blocks of *origin* until either is written. It is no
    link: the onnx package reads no weight file that has several names, and ONNX Runtime none outside of the folder.
    """
    if not _cloned(origin, target):
        shutil.copyfile(origin, target)
    sync(target)


def _cloned(origin: Path, target: Path) -> bool:
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):
        with origin.open("rb") as source, target.open("xb") as clone:
            fcntl.ioctl(clone.fileno(), _CLONE, source.fileno())
        return True
    target.unlink(missing_ok=True)
    return False
