"""Puts a call in the place of an add, in the compiled code of a copy of a Python function.

The function's own instructions are the truth: no source is read (it may be gone, changed since, decorated or made in a
notebook) and no text is compiled. The copy takes one more keyword, ``laurel_call``, and where an add stood it calls it.
Assembling (jumps, exception table, lines) is torch's own, which does the same for every compiled model.
"""

from __future__ import annotations

import dis
import hashlib
import sys
import types
from bisect import bisect_right
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

CALL = "laurel_call"
"""The keyword by which a rewritten function gets the :class:`~.joins.Call` it runs in."""

ADDS = (0, 13)
"""Arguments of ``BINARY_OP``: ``+`` and ``+=``."""

_CALLS = ("CALL", "CALL_FUNCTION_EX", "CALL_KW")
_BEFORE_CALL = ("PRECALL", "KW_NAMES")


class UnrewritableError(Exception):
    """The code has a form that is not rewritten; the message says which."""


@dataclass(frozen=True)
class Node:
    """What is replaced in one function.

    Attributes:
        code: :func:`digest` of its code.
        points: ``(offset, number, callee)``: the instruction and the number of the join, or of the link where *callee*
            is what it calls.
    """

    code: str
    points: tuple[tuple[int, int, Node | None], ...]
    handed: bool = False
    fresh: bool = False


def digest(code: types.CodeType) -> str:
    """Returns a fingerprint of *code*: same instructions, names and constants in the same version of Python."""
    consts = [const if isinstance(const, (int, str, float, bytes, type(None))) else type(const).__name__
              for const in code.co_consts]  # fmt: skip
    parts = (sys.version_info[:2], code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
             code.co_name, consts)  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@cache
def _instructions(code: types.CodeType) -> tuple[list[int], list[dis.Instruction]]:
    found = list(dis.get_instructions(code))
    return [one.offset for one in found], found


def running(code: types.CodeType, last: int) -> dis.Instruction:
    """Returns the instruction that a frame runs whose last one is at *last*.

    The interpreter may have moved on to the instruction's cache, or be in what comes before a call.
    """
    offsets, found = _instructions(code)
    place = bisect_right(offsets, last) - 1
    while found[place].opname in _BEFORE_CALL:
        place += 1
    return found[place]


def rewritten(function: types.FunctionType, node: Node) -> types.FunctionType:
    """Returns a copy of *function* with the calls of *node* in it, which takes the keyword :data:`CALL`.

    Raises:
        UnrewritableError: the code has a form that is not rewritten, or is not that of *node*.
    """
    if digest(function.__code__) != node.code:
        raise UnrewritableError(f"{function.__qualname__} is not the code that was looked at")
    code = rewritten_code(function.__code__, node.points)
    new = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return new


@cache
def rewritten_code(code: types.CodeType, points: tuple[tuple[int, int, Node | None], ...]) -> types.CodeType:
    """Returns *code* with a call at each of *points*, and the keyword argument that it needs."""
    from torch._dynamo.bytecode_transformation import transform_code_object

    if CALL in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
        raise UnrewritableError(f"{code.co_name} has a variable named {CALL}")

    def transform(instructions: list[Any], options: dict[str, Any]) -> None:
        offsets = [one.offset for one in dis.get_instructions(code) if one.opname != "EXTENDED_ARG"]
        if len(offsets) != len(instructions):
            raise UnrewritableError(f"{code.co_name} does not decode as expected in this version of Python")
        places = {offset: place for place, offset in enumerate(offsets)}
        edits: list[tuple[int, list[Any]]] = []
        for offset, number, callee in points:
            if offset not in places:
                raise UnrewritableError(f"{code.co_name} has no instruction at {offset}")
            edits.append(_edit(instructions, places[offset], number, callee))
        if len({place for place, _ in edits}) != len(edits):
            raise UnrewritableError(f"{code.co_name} calls two things through one instruction")
        for place, new in sorted(edits, key=lambda edit: -edit[0]):
            old = instructions[place]
            for one in new:
                one.positions, one.starts_line, one.exn_tab_entry = (
                    old.positions,
                    old.starts_line,
                    copy(old.exn_tab_entry),
                )
            _replace(instructions, place, new)
        before = options["co_argcount"] + options["co_kwonlyargcount"]
        names = options["co_varnames"]
        options["co_varnames"] = (*names[:before], CALL, *names[before:])
        options["co_kwonlyargcount"] += 1

    try:
        new, _ = transform_code_object(code, transform, safe=True)
    except UnrewritableError:
        raise
    except Exception as error:  # torch's private assembler, on a Python it may not know
        raise UnrewritableError(f"{code.co_name} cannot be assembled: {type(error).__name__}: {error}") from error
    return new


def _replace(instructions: list[Any], place: int, new: list[Any]) -> None:
    """Puts *new* in the place of one instruction; jumps and exception ranges that name it name the new ones."""
    old, first, last = instructions[place], new[0], new[-1]
    instructions[place : place + 1] = new
    for one in instructions:
        if one.target is old:
            one.target = first
        entry = one.exn_tab_entry
        if entry is not None:
            if entry.start is old:
                entry.start = first
            if entry.end is old:
                entry.end = last
            if entry.target is old:
                entry.target = first


def _edit(instructions: list[Any], place: int, number: int, callee: Node | None) -> tuple[int, list[Any]]:
    """Returns which instruction goes, and what comes there."""
    from torch._dynamo.bytecode_transformation import create_instruction, create_load_const, create_rot_n

    one = instructions[place]
    if one.opname == "BINARY_OP" and one.arg in ADDS and callee is None:
        # left, right -> join, left, right, number
        name = "join" if one.arg == ADDS[0] else "join_in_place"
        return place, [*_bound(name), *create_rot_n(3), create_load_const(number), *_call(3)]
    if one.opname not in _CALLS:
        raise UnrewritableError(f"{one.opname} is neither an add nor a call")
    found = _callee(instructions, place)
    load = instructions[found]
    if load.opname == "GET_ITER":
        raise UnrewritableError("the add stands in a comprehension")
    is_method = load.opname == "LOAD_METHOD" or (
        load.opname in ("LOAD_ATTR", "LOAD_SUPER_ATTR") and sys.version_info >= (3, 12) and bool(load.arg & 1)
    )
    if callee is None and is_method and load.opname != "LOAD_SUPER_ATTR":
        # owner -> method, owner, name, number
        seen = [*_bound("method"), *create_rot_n(2), create_load_const(load.argval), create_load_const(number),
                *_call(3)]  # fmt: skip
        return found, [*seen, *_null_after()]
    if load.opname == "LOAD_METHOD" and _is_super(instructions, found):
        # super object -> above, super object, name, number
        above = [
            *_bound("above"),
            *create_rot_n(2),
            create_load_const(load.argval),
            create_load_const(number),
            *_call(3),
        ]
        return found, [*above, *_null_after()]
    # callee -> link, callee, number
    through = [
        *_bound("function" if callee is None else "link"),
        *create_rot_n(2),
        create_load_const(number),
        *_call(2),
    ]
    if load.opname == "PUSH_NULL" and sys.version_info >= (3, 13):
        return found, [*through, load]
    if load.opname == "LOAD_METHOD":
        return found, [create_instruction("LOAD_ATTR", argval=load.argval), *through, *_null_after()]
    if is_method:
        plain = create_instruction(load.opname, arg=load.arg & ~1, argval=load.argval)
        return found, [plain, *through, *_null_after()]
    if load.opname == "LOAD_GLOBAL" and load.arg & 1:
        plain = create_instruction("LOAD_GLOBAL", arg=load.arg & ~1, argval=load.argval)
        return found, [plain, *through, *_null_after()]
    return found, [load, *through]


def _is_super(instructions: list[Any], place: int) -> bool:
    """Tells whether the instruction at *place* takes an attribute of what ``super()`` returned."""
    made = instructions[place - 1]
    return bool(made.opname == "CALL" and instructions[_callee(instructions, place - 1)].argval == "super")


def _bound(name: str) -> list[Any]:
    """Loads the method *name* of the call that runs."""
    from torch._dynamo.bytecode_transformation import create_instruction

    return [create_instruction("LOAD_FAST", argval=CALL), create_instruction("LOAD_ATTR", argval=name)]


def _call(count: int) -> list[Any]:
    """Calls what lies under *count* arguments."""
    from torch._dynamo.bytecode_transformation import create_call_function

    return create_call_function(count, True)


def _null_after() -> list[Any]:
    """Makes a callable on the stack the pair that a CALL expects."""
    from torch._dynamo.bytecode_transformation import create_instruction, create_rot_n

    null = [create_instruction("PUSH_NULL")]
    return null if sys.version_info >= (3, 13) else [*null, *create_rot_n(2)]


def _callee(instructions: list[Any], place: int) -> int:
    """Returns the last instruction that makes what the call at *place* calls.

    It is the last one in front of the call that leaves the stack as high as the callee lies; arguments are above.
    """
    call = instructions[place]
    above = call.arg
    if call.opname == "CALL_FUNCTION_EX":
        above = 2 if sys.version_info >= (3, 14) else 1 + (call.arg & 1)
    elif call.opname == "CALL_KW":
        above = call.arg + 1
    while instructions[place - 1].opname in _BEFORE_CALL:
        place -= 1
    depths = _depths(instructions)
    height = depths.get(place, -1) - above
    for after in range(place, 0, -1):
        if depths.get(after) == height:
            if any(one.target is instructions[after] for one in instructions):
                raise UnrewritableError("what is called is chosen on the spot")
            return after - 1
    raise UnrewritableError("what a call calls is not found on the stack")


def _depths(instructions: list[Any]) -> dict[int, int]:
    """Returns the depth of the stack before each instruction that can be reached."""
    places = {id(one): place for place, one in enumerate(instructions)}
    depths: dict[int, int] = {}
    todo = [(0, 0)]
    while todo:
        place, depth = todo.pop()
        while place < len(instructions) and place not in depths:
            depths[place] = depth
            one = instructions[place]
            arg = one.arg if one.opcode >= dis.HAVE_ARGUMENT else None
            if one.target is not None:
                todo.append((places[id(one.target)], depth + dis.stack_effect(one.opcode, arg, jump=True)))
            if (entry := one.exn_tab_entry) is not None:
                todo.append((places[id(entry.target)], entry.depth + 1 + entry.lasti))
            if one.opname in _ENDS:
                break
            depth += dis.stack_effect(one.opcode, arg, jump=False)
            place += 1
    return depths


_ENDS = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD",
         "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")  # fmt: skip
"""Instructions behind which the next one does not follow."""
