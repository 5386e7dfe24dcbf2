"""Every text in a model is UTF-8; protobuf hands damaged ones out as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from ..errors import ModelError

MAX_DEPTH = 100
"""How deep messages may lie in each other: what protobuf's own parser allows."""

_OF_TENSOR = ("name", "doc_string", "external_data", "metadata_props")
"""The fields of a tensor that hold text; the others may be large."""


def check_text(model: ModelProto) -> None:
    """Raises ModelError if a name, a domain, metadata or a doc string is no text, or messages lie too deep."""
    waiting: list[tuple[Any, int]] = [(model, 0)]
    inner: Iterable[Any]
    while waiting:
        message, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ModelError(f"its graphs lie more than {MAX_DEPTH // 3} deep in each other; expected a flatter model.")
        if isinstance(message, NodeProto) and _has_sound_texts(message):
            for inner in (message.attribute, message.metadata_props, message.device_configurations):
                if inner:
                    waiting.extend((one, depth + 1) for one in inner)
            continue
        for field, value in _fields(message):
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                inner = (value,) if isinstance(value, Message) else value
                waiting.extend((one, depth + 1) for one in inner)
            elif field.type == FieldDescriptor.TYPE_STRING:
                for text in (value,) if isinstance(value, (str, bytes)) else value:
                    if not isinstance(text, str):
                        raise _damaged(message, field.name, text)


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Yields descriptor and value of the fields that are set."""
    if not isinstance(message, TensorProto):
        yield from message.ListFields()
        return
    for name in _OF_TENSOR:
        value = getattr(message, name)
        if value:
            yield message.DESCRIPTOR.fields_by_name[name], value


def _has_sound_texts(node: NodeProto) -> bool:
    """Tells in one step whether what a node itself says is text; graphs are made of nodes above all."""
    try:
        "".join((node.name, node.op_type, node.domain, node.overload, node.doc_string, *node.input, *node.output))
    except TypeError:  # one of them is bytes
        return False
    return True


def _damaged(message: Any, field: str, text: bytes) -> ModelError:
    owner = getattr(message, "name", "")
    where = f" {owner!r}" if isinstance(owner, str) and owner else ""
    kind = message.DESCRIPTOR.name.removesuffix("Proto")
    return ModelError(
        f"it is damaged: the {field} of a {kind}{where} is not valid UTF-8: {text[:40]!r}. Fetch or export it again."
    )
