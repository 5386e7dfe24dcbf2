"""The record that an insertion leaves in a model's metadata: what the graph was before. It is read, not trusted."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from .schema import METADATA_UNDO, PREFIX, damaged, read_json


def read_undo(model: ModelProto) -> dict[str, Any] | None:
    """Returns the record, or ``None`` if the model holds none.

    Its keys: ``ir_version`` (a number or ``None``), ``domain`` (whether the import of ours came with it), ``metadata``
    (pairs of texts), ``nodes`` (each ``new``, the values of what stands there now, and ``old``, the node that stood
    there, in base64), ``tensors`` and ``inputs`` (names of ours), and ``digests`` (what :func:`digests_of` gave for the
    model as it was; not in files of older versions and in rebuilt records).

    Raises:
        ModelError: the record is damaged.
    """
    undo = read_json(model, METADATA_UNDO)
    if undo is None and not any(prop.key == METADATA_UNDO for prop in model.metadata_props):
        return None
    if not isinstance(undo, dict):
        raise damaged(METADATA_UNDO, "expected one JSON object")
    version = undo.get("ir_version")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 100):
        raise damaged(METADATA_UNDO, f"its ir_version is {version!r}")
    if not isinstance(undo.get("domain"), bool):
        raise damaged(METADATA_UNDO, "its domain is neither true nor false")
    for key in ("tensors", "inputs"):
        if not _are_texts(undo.get(key)) or not all(name.startswith(f"{PREFIX}.") for name in undo[key]):
            raise damaged(METADATA_UNDO, f"its {key} are no names of ours")
    digests = undo.get("digests", {})
    if not isinstance(digests, dict) or not _are_texts(list(digests.values())):
        raise damaged(METADATA_UNDO, "its digests are no texts by name")
    pairs = undo.get("metadata")
    if not isinstance(pairs, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in pairs):
        raise damaged(METADATA_UNDO, "its metadata are no pairs of texts")
    if not isinstance(undo.get("nodes"), list):
        raise damaged(METADATA_UNDO, "it holds no list of nodes")
    for record in undo["nodes"]:
        if not isinstance(record, dict) or not _are_texts(record.get("new")) or not record["new"]:
            raise damaged(METADATA_UNDO, "a record of it does not say what stands in the node's place")
        old_node(record)
    return undo


def old_node(record: dict[str, Any]) -> NodeProto:
    """Returns the node that a record keeps.

    Raises:
        ModelError: it holds none.
    """
    node = NodeProto()
    try:
        node.ParseFromString(base64.b64decode(record["old"], validate=True))
    except (KeyError, TypeError, ValueError, DecodeError):
        raise damaged(METADATA_UNDO, "a record of it holds no node") from None
    return node


_PARTS = {"node": "nodes", "initializer": "weights", "sparse_initializer": "weights"}
_PARTS |= {"input": "inputs and outputs", "output": "inputs and outputs", "functions": "functions"}
_PARTS |= {"ir_version": "versions", "opset_import": "versions"}
_NOTES = "notes"
"""What everything else is called: metadata, names, doc strings, stated shapes."""


def digests_of(model: ModelProto) -> dict[str, str]:
    """Returns part of the model to a digest of it: nodes, weights, inputs and outputs, functions, versions, notes.

    Of a weight in another file, its name, type and shape count; where it lies does not.
    """
    hashes = {part: sha256() for part in (*_PARTS.values(), _NOTES)}
    for holder in (model, model.graph):
        for descriptor, value in holder.ListFields():
            if descriptor.name == "graph":
                continue
            hashed = hashes[_PARTS.get(descriptor.name, _NOTES)]
            for item in value if descriptor.is_repeated else [value]:
                for data in (descriptor.name.encode(), *_content(item)):
                    hashed.update(len(data).to_bytes(8, "little") + data if len(data) < _SMALL else data)
    return {part: hashed.hexdigest()[:32] for part, hashed in hashes.items()}


_SMALL = 1 << 16


def _content(item: Any) -> Iterator[bytes]:
    """Yields the bytes of an item; a weight's own numbers as they lie there, without a copy."""
    if isinstance(item, TensorProto) and (item.data_location == TensorProto.EXTERNAL or item.HasField("raw_data")):
        yield TensorProto(name=item.name, data_type=item.data_type, dims=item.dims).SerializeToString()
        yield len(item.raw_data).to_bytes(8, "little")
        yield item.raw_data
    elif hasattr(item, "SerializeToString"):
        yield item.SerializeToString(deterministic=True)
    else:
        yield repr(item).encode()


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
