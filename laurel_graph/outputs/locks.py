"""What the writers of one folder share: a lock, and waiting until the disk has what was written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; files of dead processes go by their age there
    fcntl = None  # type: ignore[assignment]

OURS = ".laurel-"
"""What the names of all temporaries start with."""

_LOCK = ".laurel.lock"


def try_lock(file: int, wait: bool = False) -> bool | None:
    """Locks an open file; ``False`` where another process has it, ``None`` where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def open_to_lock(path: Path, flags: int = 0) -> int:
    """Opens a file so that it can be locked: for writing, as NFS wants it, where that is allowed."""
    flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags, 0o666)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keeps other writers of *folder* waiting, for moments; best effort where the file system knows no locks.

    A file of another user that cannot be opened, as in a folder for everybody such as /tmp, keeps nobody waiting:
    nothing of another user is touched.
    """
    path = folder / _LOCK
    with ExitStack() as stack:
        with contextlib.suppress(PermissionError):
            while not stack.enter_context(_locked(path)):
                stack.close()
        yield


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock file was had; it goes with the lock, so the next one in line has to look for a new one."""
    file = open_to_lock(path, os.O_CREAT)
    try:
        had = try_lock(file, wait=True) is None or _is_at(file, path)
        try:
            yield had
        finally:
            if had:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether *path* still names the open file: the one who had the lock before took the name away."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def sync(file: Path) -> None:
    """Puts what a file holds onto the disk."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_names(folder: Path) -> None:
    """Puts the names in a folder onto the disk, where the system can."""
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
