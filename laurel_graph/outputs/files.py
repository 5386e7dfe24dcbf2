"""One output of a command: checked against what the command reads, written aside, visible by one rename."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import OutputError
from .kinds import check_replaced, kind_of
from .locks import sync
from .workspace import Workspace, workspace

Input = str | Path | None

_PSEUDO = tuple(map(Path, ("/dev/fd", "/proc", "/sys")))
_CHUNK = 1 << 24
_SUFFIX = 16
"""Letters of the longest ending that a temporary takes from the output."""


def check_outputs(*outputs: Input, inputs: Iterable[Input] = (), kind: str = "") -> None:
    """Checks that files can be written, and that none is a file that the command reads or writes otherwise.

    To be called before any work is done; what is written is checked again then.

    An older regular file of the same kind is replaced (:mod:`.kinds`). A symbolic link is replaced by a file of its
    own, and what it leads to stays; that keeps a model beside its weight files.

    Args:
        outputs: the files that one command writes; ``None`` stands for none.
        inputs: all files that it reads: models and their weight files, adapters, data, configs.
        kind: what the outputs will hold, one of :mod:`.kinds`; "" where they differ or where that is not known yet.

    Raises:
        OutputError: an output is there and of another kind, a directory, a device or a pipe, the same file as an input
            or as another output (also through links, and by names that differ in case only), its folder does not exist,
            or nothing can be written there.
    """
    wanted = [Path(output) for output in outputs if output is not None]
    read = [Path(path) for path in inputs if path is not None]
    for i, output in enumerate(wanted):
        with telling(output):
            _check_kind(output)
            for path in read:
                if is_same_file(output, path):
                    raise OutputError(
                        f"the output {output} is the input; the input is never overwritten: choose another name than "
                        f"that of {path}."
                    )
            check_replaced(output, kind)
            for other in wanted[:i]:
                if is_same_file(output, other) or _folded(output) == _folded(other):
                    raise OutputError(f"the outputs {other} and {output} are one file; choose another name for one.")
            with tempfile.TemporaryFile(dir=output.parent):
                pass


def _check_kind(output: Path) -> None:
    if "\0" in str(output):
        raise OutputError(f"the output {str(output)!r} is no file name: it holds a NUL character.")
    if output.is_dir():
        raise OutputError(f"the output {output} is a directory; expected the name of a file.")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} of the output does not exist; make it first.")
    folder = output.parent.resolve()
    special = folder == Path("/dev") or any(folder.is_relative_to(path) for path in _PSEUDO)
    if special or (output.exists() and not stat.S_ISREG(output.stat().st_mode)):
        raise OutputError(f"the output {output} is a device or a pipe; a file appears by a rename: name a plain file.")
    with contextlib.suppress(FileNotFoundError):
        output.lstat()  # says so where the name is too long


def is_same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file, through links of either kind; files that do not exist yet count too."""
    if a.exists() and b.exists():
        return a.samefile(b)
    return os.path.realpath(a) == os.path.realpath(b)


def _folded(path: Path) -> str:
    """What the paths of one file have in common where the file system does not tell upper and lower case apart."""
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


@contextmanager
def telling(output: Path) -> Iterator[None]:
    """Turns what the operating system says into one sentence."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"the output {output} cannot be written: {error.strerror or error}.") from None


class Staged:
    """An output while it is written, under another name in its own folder.

    Attributes:
        output: where it will be.
        path: where it lies until :meth:`publish`.
        space: for what has to lie beside it.
    """

    def __init__(self, output: Path, space: Workspace, inputs: tuple[Path, ...]) -> None:
        suffix = output.suffix if len(output.suffix) <= _SUFFIX else ""
        self.output, self.space, self.path = output, space, space.new_path(suffix)  # programs go by the suffix
        self._inputs = inputs

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A context in which what the operating system refuses becomes an OutputError about this output."""
        with telling(self.output):
            yield

    def fill(self, function: Callable[[Path], object]) -> None:
        """Lets *function* write the file that it is given."""
        with self.telling():
            function(self.path)

    def write(self, data: bytes) -> None:
        """Writes the whole file and reads it back."""
        with self.telling():
            self.path.write_bytes(data)
            sync(self.path)
            if not _is_content(self.path, data):
                raise OutputError(f"the output {self.output} reads otherwise than it was written; check the disk.")

    def publish(self) -> None:
        """Makes the file visible under its name; an older one is gone then.

        Raises:
            OutputError: it cannot be renamed, or the older one is of another kind.
        """
        with self.telling():
            check_replaced(self.output, kind_of(self.path))
            sync(self.path)
            self.space.publish(self.path, self.output, lambda path: any(is_same_file(path, i) for i in self._inputs))


def _is_content(path: Path, data: bytes) -> bool:
    view, start = memoryview(data), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if chunk != view[start : start + len(chunk)]:
                return False
            start += len(chunk)
    return start == len(data)


@contextmanager
def staged(output: str | Path, inputs: Iterable[Input] = ()) -> Iterator[Staged]:
    """A context in which *output* is written and checked under another name; without ``publish`` nothing is left.

    Args:
        output: the file.
        inputs: all files that the command reads.

    Raises:
        OutputError: see :func:`check_outputs`; the file system refuses (no space, no right, a name too long).
    """
    output, read = Path(output), tuple(Path(path) for path in inputs if path is not None)
    check_outputs(output, inputs=read)
    with ExitStack() as stack:
        with telling(output):
            space = stack.enter_context(workspace(output.parent))
        yield Staged(output, space, read)


def write(output: str | Path, content: bytes | Callable[[Path], object], inputs: Iterable[Input] = ()) -> Path:
    """Writes a file: *content*, or what a function writes to the path that it is given; returns the path.

    Raises:
        OutputError: see :func:`staged`.
    """
    with staged(output, inputs) as aside:
        if isinstance(content, bytes):
            aside.write(content)
        else:
            aside.fill(content)
        aside.publish()
    return Path(output)
