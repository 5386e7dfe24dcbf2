"""Weight files with the digest of their content in their name, and which models speak of them."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from pathlib import Path

_LARGEST_MODEL = 2**31
"""Bytes of the largest file that can be an ONNX model."""
_DIGEST = re.compile(r"\.([0-9a-f]{12,64})(?:\.|$)")


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
