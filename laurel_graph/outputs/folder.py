"""What the writers of one folder share: a lock, and questions about the files that lie there."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
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
_LARGEST_MODEL = 2**31
"""Bytes of the largest file that can be an ONNX model."""
_DIGEST = re.compile(r"\.([0-9a-f]{12,64})(?:\.|$)")


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


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names_by_content(path: Path, before: str, after: str, folder: Path) -> list[str]:
    """Returns names for a weight file with *path*'s content, ``<before>.<digest><after>``, the best one first.

    *before* is cut where the name would be longer than the file system of *folder* takes.
    """
    digest = digest_of(path)
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    names = []
    for digits in (12, 24, 64):
        tail = f".{digest[:digits]}{after}"
        room = longest - len(os.fsencode(tail))
        names.append(os.fsencode(before)[:room].decode(errors="ignore") + tail)
    return names


def is_named_by_content(path: Path) -> bool:
    """Whether the name of a file carries the digest of what it holds, as only weight files of ours do."""
    named = _DIGEST.search(path.name)
    return named is not None and digest_of(path).startswith(named[1])


def mentioned_weights(model: Path, folder: Path) -> list[str]:
    """Returns the files of *folder* with a digest in their name that the file *model* speaks of."""
    named = [entry.name for entry in os.scandir(folder) if _DIGEST.search(entry.name)]
    return [name for name in named if _holds(model, name)]


def is_mentioned(name: str, folder: Path) -> bool:
    """Whether any file of *folder* that can be a model speaks of the file *name*."""
    name = Path(name).name
    for entry in os.scandir(folder):
        if entry.name == name or entry.name.endswith(".stage") or _DIGEST.search(entry.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file() and entry.stat().st_size <= _LARGEST_MODEL and _holds(Path(entry.path), name):
                return True
    return False


def _holds(path: Path, text: str) -> bool:
    """Whether the bytes of *text* stand anywhere in a file."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text.encode(errors="surrogateescape")) >= 0
