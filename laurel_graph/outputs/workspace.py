"""Temporaries of one call in one folder, and the moves that make them visible."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .journal import Entry, Found, Journal, identity_of, journals
from .locks import OURS, folder_lock, sync, sync_names
from .named_weights import is_mentioned, is_named_by_content, mentioned_weights
from .signals import unwinding


@contextmanager
def workspace(folder: Path) -> Iterator[Workspace]:
    """Opens a workspace in *folder*, after sweeping what dead processes left there; takes it away again at the end.

    Raises:
        OSError: nothing can be written there.
    """
    with unwinding():
        with folder_lock(folder):
            _sweep(folder)
            journal = Journal(folder)
        try:
            yield Workspace(journal)
        finally:
            journal.close()
            with contextlib.suppress(OSError), folder_lock(folder):
                _sweep(folder)


class Workspace:
    """A folder in which one call writes: temporaries first, then moved to names that stay.

    Attributes:
        folder: where.
    """

    def __init__(self, journal: Journal) -> None:
        self.folder, self._journal, self._count = journal.folder, journal, 0

    def new_path(self, suffix: str = "") -> Path:
        """Returns a path that nothing else has, for a temporary file or folder."""
        self._count += 1
        return self.folder / f"{OURS}{self._journal.id}.{self._count}.part{suffix}"

    def new_folder(self) -> Path:
        """Returns a new, empty folder."""
        path = self.new_path()
        path.mkdir()
        return path

    def place(self, part: Path, names: Iterable[str]) -> str:
        """Gives the complete file *part* the first of *names* that is free, or that has the same content already.

        Unless something speaks of it in the end, a file that was moved is removed with the workspace.

        Returns:
            The name, relative to the folder.
        """
        sync(part)
        with folder_lock(self.folder):
            for name in names:
                target = self.folder / name
                if not os.path.lexists(target):
                    self._make_folders(target.parent)
                    self._journal.add(Entry("made", name, identity_of(part)))
                    _move_to_new(part, target)
                    sync_names(target.parent)
                    return name
                if self._uses(name, part):
                    part.unlink()
                    return name
        raise OSError(errno.EEXIST, f"{target} exists and is another file")

    def use(self, name: str, original: Path) -> bool:
        """Whether the file *name* lies there already with the content of *original*; if so, nobody removes it now."""
        with folder_lock(self.folder):
            return self._uses(name, original)

    def _uses(self, name: str, original: Path) -> bool:
        path = self.folder / name
        if not (os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)):
            return False
        if not filecmp.cmp(original, path, shallow=False):
            return False
        self._journal.add(Entry("used", name))
        return True

    def _make_folders(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if path != self.folder and not path.exists()]
        for path in reversed(missing):
            self._journal.add(Entry("folder", str(path.relative_to(self.folder))))
            path.mkdir()

    def publish(self, part: Path, output: Path, keep: Callable[[Path], bool]) -> None:
        """Renames the complete file *part* to *output*; weight files of ours that only the old one used go.

        Args:
            part: a synced temporary.
            output: a path in the folder.
            keep: tells files that must stay.
        """
        with folder_lock(self.folder):
            for name in self._weights_of(output):
                if not keep(self.folder / name):
                    self._journal.add(Entry("old", name))
            part.replace(output)
            sync_names(self.folder)
            with contextlib.suppress(OSError):  # it is there, full disk or not
                self._journal.add(Entry("published", output.name))

    def _weights_of(self, output: Path) -> list[str]:
        is_file = os.path.lexists(output) and stat.S_ISREG(output.lstat().st_mode)
        return mentioned_weights(output, self.folder) if is_file else []


def _move_to_new(part: Path, target: Path) -> None:
    """Moves a file to a name that nothing may have; a name that was taken meanwhile is an error."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        part.rename(target)
    else:
        part.unlink()


def _sweep(folder: Path) -> None:
    """Cleans up after every call in *folder* that is over or dead; to be called with the folder locked."""
    found = journals(folder)
    claimed = {entry.name for journal in found if journal.alive for entry in journal.entries}
    for journal in found:
        if not journal.alive:
            with contextlib.suppress(OSError):  # of another user
                _clean(folder, journal, claimed)


def _clean(folder: Path, journal: Found, claimed: Collection[str]) -> None:
    """Removes temporaries, files that were made for nothing, old ones, and the journal when nothing is left to do."""
    temporaries = [p for p in folder.iterdir() if p.name.startswith(f"{OURS}{journal.id}.") and p != journal.path]
    for path in temporaries:
        _remove(path)
    published = any(entry.kind == "published" for entry in journal.entries)
    due = [e for e in journal.entries if e.kind == "old" or (e.kind == "made" and not published)]
    for entry in due:
        if entry.name not in claimed and _is_ours(entry, folder) and not is_mentioned(entry.name, folder):
            (folder / entry.name).unlink(missing_ok=True)
    for entry in reversed(journal.entries):
        if entry.kind == "folder":
            with contextlib.suppress(OSError):  # not empty
                (folder / entry.name).rmdir()
    waiting = any(entry.name in claimed for entry in due)  # the one who uses the file sweeps when it is done
    if not waiting and not any(os.path.lexists(path) for path in temporaries):
        journal.path.unlink(missing_ok=True)


def _is_ours(entry: Entry, folder: Path) -> bool:
    path = folder / entry.name
    if not (os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)):
        return False
    return identity_of(path) == entry.identity if entry.kind == "made" else is_named_by_content(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
