"""The journal of one call: what it put into a folder and what it means to take away, for whoever cleans up after it.

It is a file ``.laurel-<id>.stage`` in that folder, one JSON object a line, locked while its process lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from .locks import OURS, open_to_lock, try_lock

_SUFFIX = ".stage"
_ABANDONED = 24 * 3600.0
"""Seconds after which a journal counts as abandoned where locks do not tell: of another host, or without locks."""

Kind = Literal["made", "used", "old", "folder", "published"]


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        kind: a file that was ``made``; one that was there and is ``used``; an ``old`` one, to be removed; a ``folder``
            that was made; the output, ``published``.
        name: its path in the folder.
        identity: what a file that was made is known by: inode and time of its last change in ns.
    """

    kind: Kind
    name: str
    identity: tuple[int, int] = (0, 0)


def identity_of(path: Path) -> tuple[int, int]:
    """Returns what tells a file from another one that has its name later."""
    state = path.lstat()
    return state.st_ino, state.st_mtime_ns


class Journal:
    """The journal that this call writes; to be opened with the folder locked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, secrets.token_hex(8)
        self.path = folder / f"{OURS}{self.id}{_SUFFIX}"
        self.entries: list[Entry] = []
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try_lock(self._file)
            self._write({"host": platform.node()})
        except BaseException:
            self.close()
            self.path.unlink()
            raise
        _LIVE[self.path.name] = self

    def add(self, entry: Entry) -> None:
        """Notes *entry* on the disk, before it is acted upon."""
        self._write(asdict(entry))
        self.entries.append(entry)

    def _write(self, line: object) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)

    def close(self) -> None:
        """Lets go of the file, which stays."""
        _LIVE.pop(self.path.name, None)
        os.close(self._file)


_LIVE: dict[str, Journal] = {}
"""The journals of this process by name; they are not opened again, because on NFS that would drop their locks."""


@dataclass(frozen=True)
class Found:
    """A journal that lies in a folder.

    Attributes:
        path: where.
        alive: whether the process that writes it may live; what another user wrote is left to that user.
        entries: its lines.
    """

    path: Path
    alive: bool
    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """What the names of all its temporaries start with, after the common prefix."""
        return self.path.name.removeprefix(OURS).removesuffix(_SUFFIX)


def journals(folder: Path) -> list[Found]:
    """Returns the journals in *folder*."""
    names = [e.name for e in os.scandir(folder) if e.name.startswith(OURS) and e.name.endswith(_SUFFIX)]
    found = []
    for name in sorted(names):
        with contextlib.suppress(OSError):  # of another user, or gone in between
            found.append(_read(folder / name))
    return found


def _read(path: Path) -> Found:
    if path.name in _LIVE:
        return Found(path, True, tuple(_LIVE[path.name].entries))
    file = open_to_lock(path)
    try:
        free = try_lock(file)
        state = os.fstat(file)
        with open(file, "rb", closefd=False) as stream:
            lines = list(_parsed(stream.read()))
    finally:
        os.close(file)
    mine = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
    here = not lines or lines[0].get("host") == platform.node()
    over = (free is True and here) or (free is not False and time.time() - state.st_mtime > _ABANDONED)
    return Found(path, not (mine and over), tuple(filter(None, map(_entry, lines))))


def _parsed(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.split(b"\n")[:-1]:  # what follows the last end of a line was cut off
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _entry(line: dict[str, Any]) -> Entry | None:
    """The entry of one line, if it is one and stays in the folder: anybody may have put the file there."""
    match line:
        case {"kind": str(kind), "name": str(name), "identity": [int(inode), int(changed)]}:
            inside = not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
            return Entry(kind, name, (inode, changed)) if kind in get_args(Kind) and inside else None  # type: ignore[arg-type]
    return None
