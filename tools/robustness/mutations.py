"""How :mod:`.mutants` damages a model: its bytes, its messages, or the metadata of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto

NUMBERS = (0, 1, -1, 2, 3, 7, 16, 64, 255, 1000, 10**6, 10**9, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
TEXTS = (
    "", "x", "y", "w0", "laurel.a.A", "ai.laurel", "com.microsoft", "Add", "Loop", "Identity", "ConstantOfShape",
    "a\nb", 'a"b', "a'b", "\0", "../x", "/etc/passwd", "weights.bin", "..", "-1", "abc", "1e9", "9" * 30, "é☃",
    "a" * 3000, "nan", "[]", "{}", "null", "[" * 5000,
)  # fmt: skip
JUNK: tuple[Any, ...] = (None, True, -1, 0, 10**9, 1e400, "", "x", [], {}, [[]], float("nan"), {"a": 1}, ["x"] * 3)


def mutate(data: bytes, other: bytes, rng: Random) -> bytes:
    """Returns a damaged copy of a model's file; *other* is a second model to take pieces from."""
    kind = rng.choices((_bytes, _messages, _metadata), (4, 5, 1))[0]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = kind(data, other, rng)
    return data


def _bytes(data: bytes, other: bytes, rng: Random) -> bytes:
    if not data:
        return other
    place, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 64, 500))
    edit = rng.randrange(7)
    if edit == 0:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if edit == 1:
        return data[:place] + rng.randbytes(length) + data[place + length :]
    if edit == 2:
        return data[:place] + data[place + length :]
    if edit == 3:
        return data[:place] + data[place : place + length] + data[place:]
    if edit == 4:
        start = rng.randrange(len(other))
        return data[:place] + other[start : start + length] + data[place + length :]
    if edit == 5:
        return (
            data[:place] + rng.choice((b"\xff" * 9 + b"\x01", b"\x00", b"\xff", b"\x80" * length)) + data[place + 1 :]
        )
    return data[:place]


def _messages(data: bytes, other: bytes, rng: Random) -> bytes:
    model, donor = ModelProto(), ModelProto()
    try:
        model.ParseFromString(data)
        donor.ParseFromString(other)
    except Exception:  # damaged already
        return _bytes(data, other, rng)
    places = list(_places(model))
    if not places:
        return data
    message, field = rng.choice(places)
    if rng.random() < 0.3:  # rename one value to another: cycles, duplicates, missing names
        nodes = [message for message, field in places if field.full_name == "onnx.NodeProto.input"]
        names = [name for node in nodes for name in (*node.input, *node.output)] or ["x"]
        if nodes:
            chosen = rng.choice(nodes)
            ends = chosen.input if rng.random() < 0.7 or not chosen.output else chosen.output
            ends[rng.randrange(len(ends))] = rng.choice(names)
    else:
        _change(message, field, donor, rng)
    return bytes(model.SerializeToString())


def _places(model: ModelProto) -> Any:
    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            yield message, field
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                waiting.extend((value,) if isinstance(value, Message) else value)


def _change(message: Any, field: Any, donor: ModelProto, rng: Random) -> None:
    value = getattr(message, field.name)
    single = isinstance(value, (Message, str, bytes, int, float))
    if rng.random() < 0.25:
        message.ClearField(field.name)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if single:
            rival = [getattr(m, f.name) for m, f in _places(donor) if f.full_name == field.full_name]
            if rival:
                value.CopyFrom(rng.choice(rival))
            return
        index = rng.randrange(len(value))
        if rng.random() < 0.4:
            value.append(value[index])
        elif rng.random() < 0.5:
            del value[index]
        else:
            rival = [one for m, f in _places(donor) if f.full_name == field.full_name for one in getattr(m, f.name)]
            value.append(rng.choice(rival or list(value)))
    elif single:
        setattr(message, field.name, _scalar(value, field, rng))
    else:
        index = rng.randrange(len(value))
        edit = rng.random()
        if edit < 0.6:
            value[index] = _scalar(value[index], field, rng)
        elif edit < 0.8:
            del value[index]
        else:
            value.append(value[index])


def _scalar(value: Any, field: Any, rng: Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([item.number for item in field.enum_type.values])
    if isinstance(value, str):
        return rng.choice(TEXTS)
    if isinstance(value, bytes):
        return rng.choice(
            (b"", value[: len(value) // 2], value + b"\xff\xfe", b"\xff" * len(value), b"\x00" * len(value))
        )
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    number = rng.choice((*NUMBERS, value + 1, value - 1, value * 2))
    wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    low, high = (-(2**63), 2**63 - 1) if wide else (-(2**31), 2**31 - 1)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
        low = 0
    return min(max(number, low), high)


def _metadata(data: bytes, other: bytes, rng: Random) -> bytes:
    """Damages the JSON of one property of ours."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # damaged already
        return _bytes(data, other, rng)
    ours = [prop for prop in model.metadata_props if isinstance(prop.key, str) and prop.key.startswith("laurel.")]
    if not ours:
        return _messages(data, other, rng)
    prop = rng.choice(ours)
    try:
        value = json.loads(prop.value)
    except (ValueError, RecursionError, TypeError):
        return _messages(data, other, rng)
    if rng.random() < 0.2:
        prop.value = rng.choice((*TEXTS, prop.value[:-3], prop.value[:10], prop.value * 2))
    else:
        prop.value = json.dumps(_junk(value, rng))
    return bytes(model.SerializeToString())


def _junk(value: Any, rng: Random) -> Any:
    """Returns *value* with one thing in it replaced, dropped or doubled."""
    edits: list[Callable[[], Any]] = [lambda: rng.choice(JUNK)]
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        edits += [lambda: {**value, key: _junk(value[key], rng)}] * 8
        edits += [lambda: {k: v for k, v in value.items() if k != key}, lambda: {**value, "further": 1}]
    if isinstance(value, list) and value:
        index = rng.randrange(len(value))
        edits += [lambda: [*value[:index], _junk(value[index], rng), *value[index + 1 :]]] * 8
        edits += [lambda: value[:index] + value[index + 1 :], lambda: [*value, value[index]]]
    if isinstance(value, str) and value:
        edits += [lambda: value[:-1], lambda: rng.choice(TEXTS)]
    return rng.choice(edits)()
