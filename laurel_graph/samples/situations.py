"""The situations in which a model is run: sizes for everything that its graph leaves open."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from ..errors import ModelError
from .graph import Input, Walk
from .sizes import Dim, Sizes, Sum, plus, symbol, symbols_of

BATCH = 1
SEQUENCE = 16
SIGNAL = 512
IMAGE = 224
"""Sizes of dims that nothing says anything about: by role."""

PAST = 12
"""How much a cache holds in a step, where a window asks for no more."""

_WINDOW = 1024
"""Attention windows up to this size are run past their end."""

BEYOND = 3
"""How far behind the end of a window."""

_LENGTHS = (8, 4, 2, 1, 32, 64, 256, 1024, 4096, 16384)
"""What a sequence is tried at when the preferred length does not fit the graph."""

_SIDES = (256, 128, 64, 32, 28, 16, 8, 512, 299)
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
_SEQUENCE = re.compile(r"seq|length|time|token|frame", re.IGNORECASE)
_LENGTH = re.compile(r"len(gth)?s?$", re.IGNORECASE)
_OF_CACHE = re.compile(r"past|total|cache|max|min", re.IGNORECASE)
_BATCH = re.compile(r"batch", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)


@dataclass(frozen=True)
class Situation:
    """One way to run a model.

    Attributes:
        name: ``plain`` for a model without a cache; else ``prompt``, ``step``, or ``window`` (a step behind a cache
            that is longer than the attention's window).
        batch: the batch size that was asked for.
        ragged: masks end in zeros.
        values: symbolic dim to its size; a dim without a name is ``input:axis``.
        shapes: input to its shape.
    """

    name: str
    batch: int
    ragged: bool
    values: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Sizes = field(repr=False, compare=False)

    @property
    def shapes_key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The shapes of all inputs, to compare situations by."""
        return tuple(self.shapes.items())

    @property
    def rows(self) -> int:
        """The first dim of the first input."""
        shape = next(iter(self.shapes.values()), ())
        return shape[0] if shape and shape[0] else 1

    def __str__(self) -> str:
        """As errors call it."""
        named = ", ".join(f"{name} = {size}" for name, size in self.values.items())
        what = f"{self.name}{', padded' if self.ragged else ''}, batch {self.batch}"
        return f"{what} ({named})" if named else what


def roles(walk: Walk) -> dict[str, str]:
    """Returns what each free symbol counts: ``batch``, ``past``, ``image``, ``signal`` or ``sequence``."""
    found: dict[str, str] = {}
    for value in walk.inputs.values():
        for axis, stated in enumerate(value.shape):
            for name in symbols_of(stated):
                found.setdefault(name, _role(walk, value, axis, name, alone=stated == symbol(name)))
    found |= dict.fromkeys(walk.sizes.batch & set(found), "batch")
    return found | dict.fromkeys(walk.sizes.past, "past")


def _role(walk: Walk, value: Input, axis: int, name: str, *, alone: bool) -> str:
    rank, floating = len(value.shape), value.dtype in _FLOATS
    stated = "" if name.startswith(f"{value.name}:") else name
    if _PAST.search(stated):
        return "past"
    if _BATCH.search(stated) or (axis == 0 and alone and not _SEQUENCE.search(stated)):
        return "batch"
    if floating and rank == 4 and "past" not in value.uses and not _SEQUENCE.search(stated):
        return "image"
    return "signal" if floating and rank == 2 and not _SEQUENCE.search(stated) else "sequence"


def situation(
    walk: Walk, kind: str, batch: int, *, ragged: bool = False, length: int = SEQUENCE, past: int = PAST
) -> Situation:
    """Returns sizes for one situation.

    Args:
        walk: the model.
        kind: ``plain``, ``prompt``, ``step`` or ``window``.
        batch: the batch size.
        ragged: masks are to end in zeros.
        length: preferred length of sequences.
        past: preferred length of caches, in all but a prompt.

    Raises:
        ModelError: some dim has no size.
    """
    found = roles(walk)
    step = kind in ("step", "window")
    past = 0 if kind == "prompt" else past
    if walk.rolling:
        full = max(walk.rolling) + BEYOND
        past, length = (past, max(length, full)) if kind == "prompt" else (max(past, full), length)
    if kind == "window":
        past = max(size for size in walk.windows if size <= _WINDOW) + BEYOND
    sizes, steps = None, new_symbols(walk) if step else set()
    for new, held, side in _tries(found, 1 if step else length, past, step):
        chosen = walk.sizes.copy()
        _wish_spans(walk, chosen, new, 0 if kind == "prompt" else held)
        for wanted in (("batch", batch), ("past", held), ("sequence", new), ("signal", SIGNAL), ("image", side)):
            for name in chosen.free(list(found)):
                if found[name] == wanted[0]:
                    chosen.wish(name, length if step and found[name] == "sequence" and name not in steps else wanted[1])
        sizes = sizes or chosen
        if chosen.holds():
            sizes = chosen
            break
    assert sizes is not None
    shapes = {value.name: tuple(_size(sizes, dim, value) for dim in value.shape) for value in walk.inputs.values()}
    values = {name: sizes.value(symbol(name)) for name in walk.sizes.order}
    return Situation(kind, batch, ragged, {n: v for n, v in values.items() if v is not None}, shapes, sizes)


def _wish_spans(walk: Walk, chosen: Sizes, new: int, passed: int) -> None:
    """Says how much attention has met whose cache does not show it."""
    for met, fresh in walk.spans:
        for name in symbols_of(chosen.now(fresh)):
            chosen.wish(name, new)
        chosen.equal(met, plus(fresh, passed))


def _tries(found: Mapping[str, str], new: int, held: int, step: bool) -> Iterator[tuple[int, int, int]]:
    """Lengths of what is new and of caches, and sides of images, the preferred ones first."""
    yield new, held, IMAGE
    if "image" in found.values():
        for side in _SIDES:
            yield new, held, side
    if step:
        for other in _LENGTHS:
            if other < held:
                yield new, other, IMAGE
    for other in _LENGTHS:
        yield other, held, IMAGE


def new_symbols(walk: Walk) -> set[str]:
    """Returns the symbols of what a model is fed anew in each step: not of caches, masks, or what an encoder made."""
    found: set[str] = set()
    for value in walk.inputs.values():
        if not value.uses & {"past"} and len(value.shape) < 4 and not is_mask(value) and not _is_aside(value):
            for dim in value.shape[1:] or value.shape:
                found |= set(symbols_of(walk.sizes.now(dim)))
    return found - walk.sizes.past


def _is_aside(value: Input) -> bool:
    """Whether an input comes from an encoder."""
    name = value.name.lower().replace("decoder", "")
    return "encoder" in name or "cross" in name


def is_mask(value: Input) -> bool:
    """Whether an input says what counts and what does not."""
    return value.dtype == onnx.TensorProto.BOOL or "mask" in value.name.lower()


def is_length(value: Input) -> bool:
    """Whether an input says, in one whole number, how long each row is."""
    if value.dtype in _FLOATS or len(value.shape) > 2 or (len(value.shape) == 2 and value.shape[1] != 1):
        return False
    return "lengths" in value.uses or bool(_LENGTH.search(value.name) and not _OF_CACHE.search(value.name))


def read_meanings(walk: Walk) -> None:
    """Adds what inputs of a decoder mean by their names: a mask spans cache and tokens, positions end in a table."""
    past = sorted((name for name in walk.sizes.free() if name in walk.sizes.past), key=walk.sizes.order.__getitem__)
    held: Dim = symbol(past[0]) if past else 0
    new = new_symbols(walk)
    for value in walk.inputs.values():
        if not value.shape:
            continue
        last = walk.sizes.now(value.shape[-1])
        if past and is_mask(value) and not _is_aside(value) and last in [symbol(n) for n in walk.sizes.free()]:
            tokens = [n for n in walk.sizes.free() if n in new and _role(walk, value, 1, n, alone=False) == "sequence"]
            if tokens and last != symbol(tokens[0]):
                walk.sizes.equal(last, plus(held, symbol(tokens[0])), firm=False)
        if is_position(value):
            for bound in value.bounds:
                walk.sizes.limit(plus(held, last), bound)
    walk.sizes.solve()


def is_position(value: Input) -> bool:
    """Whether an input counts the places of tokens."""
    return value.dtype not in _FLOATS and ("position" in value.uses or "position" in value.name.lower())


def _size(sizes: Sizes, dim: Dim, value: Input) -> int:
    size = sizes.value(dim)
    if size is None or size < 0:
        text = " + ".join(symbols_of(dim)) if isinstance(dim, Sum) else "?"
        raise ModelError(
            f"input {value.name!r} has a dim {text!r} to which no size can be given that fits the rest ({size}); give "
            "sizes (--size NAME=N) or the data to run on (--data)."
        )
    return size


def kinds(walk: Walk) -> list[str]:
    """Returns the situations that a model knows, the one to take first where only one is wanted first."""
    if not any("past" in value.uses for value in walk.inputs.values()) and not walk.sizes.past:
        return ["plain"]
    if walk.rolling:  # anything less leaves part of the buffer as it was found in memory
        return ["prompt", "step"] if max(walk.rolling) <= _WINDOW else ["step"]
    found = ["prompt", "step"] if set(walk.sizes.free()) & new_symbols(walk) else ["step", "prompt"]
    if any(size <= _WINDOW for size in walk.windows):
        found.append("window")
    return found


def distinct(situations: Sequence[Situation]) -> list[Situation]:
    """Returns the situations without those that are as an earlier one."""
    seen, kept = set(), []
    for one in situations:
        key = (one.shapes_key, one.ragged, one.name in ("prompt", "plain"))
        if key not in seen:
            seen.add(key)
            kept.append(one)
    return kept
