"""The records that an insertion leaves in a model's metadata: what was put in, and what the graph was before.

They are read, not trusted.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from ..config import SiteSpec
from ..onnx_model.tensors import inlined
from ..onnx_model.walk import copy_of, tensors_of
from .schema import (
    METADATA_CONFIG,
    METADATA_FORMAT,
    METADATA_SITES,
    METADATA_UNDO,
    PREFIX,
    RECORDS_FORMAT,
    damaged,
    read_json,
)

RECORDS: Final = (METADATA_FORMAT, METADATA_CONFIG, METADATA_SITES, METADATA_UNDO)
"""The keys of the metadata that an insertion writes, in their order in the file."""


def new_undo(model: ModelProto, *, domain: bool) -> dict[str, Any]:
    """Returns the record of a model into which nothing was put yet; for its keys see :func:`read_undo`.

    Args:
        model: the model.
        domain: whether the import of ours will come with the first insertion.
    """
    return {
        "ir_version": model.ir_version if model.HasField("ir_version") else None,
        "domain": domain,
        "metadata": [[prop.key, prop.value] for prop in model.metadata_props if prop.key in RECORDS],
        "nodes": [],
        "tensors": [],
        "inputs": [],
    }


def write_records(
    model: ModelProto, config: str, specs: Iterable[SiteSpec], undo: Mapping[str, Any] | None = None
) -> None:
    """Writes the records of what was put into *model*, in place of those that it has.

    Args:
        model: the model; its metadata changes.
        config: the configuration as JSON.
        specs: every site.
        undo: what the graph was before; ``None`` where it came with the sites.
    """
    values = {
        METADATA_FORMAT: RECORDS_FORMAT,
        METADATA_CONFIG: config,
        METADATA_SITES: json.dumps([spec.to_dict() for spec in specs]),
    }
    put_records(model, values if undo is None else {**values, METADATA_UNDO: json.dumps(undo)})


def put_records(model: ModelProto, values: Mapping[str, str]) -> None:
    """Makes *values*, by key of :data:`RECORDS`, the only records of *model*; keys that it has keep their place."""
    left = dict(values)
    for index, prop in reversed(list(enumerate(model.metadata_props))):
        if prop.key in left:
            prop.value = left.pop(prop.key)
        elif prop.key in RECORDS:
            del model.metadata_props[index]
    for key in RECORDS:
        if key in left:
            model.metadata_props.add(key=key, value=left[key])


def read_undo(model: ModelProto) -> dict[str, Any] | None:
    """Returns the record, or ``None`` if the model holds none.

    Its keys: ``ir_version`` (a number or ``None``), ``domain`` (whether the import of ours came with it), ``metadata``
    (pairs of texts), ``nodes`` (each ``new``, the values of what stands there now, and ``old``, the node that stood
    there, in base64; ``body`` is the path of the body of If, Loop or Scan that they stand in), ``tensors`` and
    ``inputs`` (names of ours), ``digests`` (what :func:`digests_of` gave for the model as it was; not in files of older
    versions and in rebuilt records), and ``files`` (whether the numbers in its weight files are in them; missing in
    files of older versions, where they are not).

    Raises:
        ModelError: the record is damaged.
    """
    undo = read_json(model, METADATA_UNDO)
    if undo is None and not any(prop.key == METADATA_UNDO for prop in model.metadata_props):
        return None
    if not isinstance(undo, dict):
        raise damaged(METADATA_UNDO, "expected one JSON object")
    if "ir_version" not in undo:
        raise damaged(METADATA_UNDO, "it does not say which IR version the model had")
    version = undo["ir_version"]
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
    if not isinstance(undo.get("files", False), bool):
        raise damaged(METADATA_UNDO, "its files is neither true nor false")
    pairs = undo.get("metadata")
    if not isinstance(pairs, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in pairs):
        raise damaged(METADATA_UNDO, "its metadata are no pairs of texts")
    if not isinstance(undo.get("nodes"), list):
        raise damaged(METADATA_UNDO, "it holds no list of nodes")
    for record in undo["nodes"]:
        if not isinstance(record, dict) or not _are_texts(record.get("new")) or not record["new"]:
            raise damaged(METADATA_UNDO, "a record of it does not say what stands in the node's place")
        if not isinstance(record.get("body", ""), str):
            raise damaged(METADATA_UNDO, "a record of it does not say in which body its node stands")
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
HOLD_TENSORS: Final = ("nodes", "weights", "functions")
"""Parts that hold tensors, which may lie in weight files."""
_NOTES = "notes"
"""What everything else is called: metadata, names, doc strings, stated shapes."""


def digests_of(model: ModelProto, folder: str | Path | None = None) -> dict[str, str]:
    """Returns part of the model to a digest of it: nodes, weights, inputs and outputs, functions, versions, notes.

    Args:
        model: the model.
        folder: of its weight files. Whether a weight lies there or in the model then makes no difference. Without it,
            only name, type and shape of the weights that lie there count.

    Raises:
        ModelError: a weight file cannot be read.
    """
    if folder is not None:
        model = _with_inner_tensors(model, folder)
    hashes = {part: sha256() for part in (*_PARTS.values(), _NOTES)}
    for holder in (model, model.graph):
        for descriptor, value in holder.ListFields():
            if descriptor.name == "graph":
                continue
            hashed = hashes[_PARTS.get(descriptor.name, _NOTES)]
            for item in value if descriptor.is_repeated else [value]:
                for data in (descriptor.name.encode(), *_content(item, folder)):
                    hashed.update(len(data).to_bytes(8, "little") + data if len(data) < _SMALL else data)
    return {part: hashed.hexdigest()[:32] for part, hashed in hashes.items()}


_SMALL = 1 << 16


def _with_inner_tensors(model: ModelProto, folder: str | Path) -> ModelProto:
    """The model itself, or a copy that holds all tensors but the weights of its graph, if some lie in files."""
    if all(tensor.data_location != TensorProto.EXTERNAL for tensor in _inner_tensors(model)):
        return model
    model = copy_of(model)
    for tensor in _inner_tensors(model):
        tensor.CopyFrom(inlined(tensor, folder))
    return model


def _inner_tensors(model: ModelProto) -> Iterator[TensorProto]:
    return islice(tensors_of(model), len(model.graph.initializer), None)


def _content(item: Any, folder: str | Path | None) -> Iterator[bytes]:
    """Yields the bytes of an item; a weight's own numbers as they lie there."""
    if isinstance(item, TensorProto) and (item.data_location == TensorProto.EXTERNAL or item.HasField("raw_data")):
        yield TensorProto(name=item.name, data_type=item.data_type, dims=item.dims).SerializeToString()
        numbers = (item if folder is None else inlined(item, folder)).raw_data  # protobuf copies them for every call
        yield len(numbers).to_bytes(8, "little")
        yield numbers
    elif hasattr(item, "SerializeToString"):
        yield item.SerializeToString(deterministic=True)
    else:
        yield repr(item).encode()


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
