"""What an output may replace: a file of the kind that is written, and no other, for that one was not made by us."""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from pathlib import Path
from typing import Final

from ..errors import OutputError

MODEL: Final = "an ONNX model"
ADAPTER: Final = "a LAuReL adapter"
ORT_ADAPTER: Final = "an adapter of ONNX Runtime"
ARCHIVE: Final = "a zip archive"
TEXT: Final = "a text"
PICTURE: Final = "a PNG picture"
OTHER: Final = "another file"

_HEAD = 1 << 16
"""Bytes from the beginning of a file that tell its kind."""
_HEADER = 1 << 23
"""Longest header in bytes of a safetensors file that may be an adapter; see :mod:`laurel_graph.adapters.file`."""


def kind_of(path: Path) -> str:
    """Returns what a file holds, as its content says; "" for one that is not there or empty.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return ""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return ""
    if head[4:8] == b"TORT":
        return ORT_ADAPTER
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return PICTURE
    if head[:4] == b"PK\x03\x04":
        return ARCHIVE
    if head[8:9] == b"{":
        return ADAPTER if _is_adapter(path) else OTHER
    if _is_model(head):
        return MODEL
    return TEXT if _is_text(head) else OTHER


def _is_adapter(path: Path) -> bool:
    """Whether a safetensors file is one that ``save_adapter`` wrote."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER:
            return False
        try:
            header = json.loads(file.read(length))
            return bool({"format", "sites"} <= header["__metadata__"].keys())
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return False


def _is_model(head: bytes) -> bool:
    """Whether these are the first bytes of an ONNX model with its version in front, where every writer puts it."""
    from ..onnx_file import missing_bytes

    return head[0] == 0x08 and missing_bytes(head) is not None


def _is_text(head: bytes) -> bool:
    try:
        getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut off
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def check_replaced(output: Path, kind: str = "") -> None:
    """Checks that a file which lies at *output* may be replaced.

    Args:
        output: where something is to be written.
        kind: what is to be written: one of the constants above, "" where that is not known yet.

    Raises:
        OutputError: what lies there is of another kind, or of none that is written here.
        OSError: it cannot be read.
    """
    if kind == MODEL and output.suffix.lower() == ".onnx":
        return
    found = kind_of(output)
    if not found or (found == kind if kind else found != OTHER):
        return
    found = "something that laurel-graph does not write (weights, for one)" if found == OTHER else found
    wanted = f", and {kind} is to be written" if kind else ""
    raise OutputError(
        f"the output {output} is there already and holds {found}{wanted}: it is not replaced. "
        "Choose another name, or delete it first."
    )
