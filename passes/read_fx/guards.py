"""What a trace assumes about the sizes of open axes, and which of that holds for a size of one as well.

Code that asks whether a size is 1 (torch's own attention does) leaves a guard against 1 behind, though it then
computes the same thing. Such a guard is dropped where a second trace, at a size of one, gives the same graph, or where
program and module give the same values for it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from laurel_graph.errors import ModelError

_SIZE = r"(L(?:\[[^\]]+\])+)\.size\(\)\[(\d+)\]"
_NOT_ONE = re.compile(rf"^\(?(?:(\d+)\*)?{_SIZE}\)? != (\d+)$")
_EQUAL_SIZES = re.compile(rf"^{_SIZE} == {_SIZE}$")
_OPERATORS: dict[type[ast.AST], Callable[[int, int], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
}
_SIZES = (2, 3, 4, 5, 7, 8, 11, 16)
"""Sizes of which a guard that holds for all of them shuts none out that a trace takes."""
Trace = Callable[[Sequence[Any], Mapping[str, Any]], ExportedProgram]
Place = tuple[int, int]
"""A tensor among the example inputs, by its number, and an axis of it."""


def guards(program: ExportedProgram) -> list[str]:
    """Returns what must hold of the sizes of the inputs, as Python expressions."""
    return list(getattr(program, "_guards_code", ()))


def pins(program: ExportedProgram) -> bool:
    """Whether an open axis takes but some sizes: it equals a number, or a part of it must come out even."""
    return any(_pins(guard) for guard in guards(program))


def _pins(guard: str) -> bool:
    if " == " not in guard or _EQUAL_SIZES.match(guard):
        return False
    text, sizes = re.subn(_SIZE, "size", guard), {match[0] for match in re.finditer(_SIZE, guard)}
    if len(sizes) != 1:
        return True
    try:
        tree = ast.parse(text[0], mode="eval").body
        return not all(_worth(tree, size) for size in _SIZES)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return True


def _worth(tree: ast.AST, size: int) -> int:
    """Returns the value of an expression of whole numbers and ``size``; raises KeyError where there is more in it."""
    if isinstance(tree, ast.Name) and tree.id == "size":
        return size
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_worth(tree.operand, size)
    if isinstance(tree, ast.BinOp):
        return int(_OPERATORS[type(tree.op)](_worth(tree.left, size), _worth(tree.right, size)))
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
        return int(_OPERATORS[type(tree.ops[0])](_worth(tree.left, size), _worth(tree.comparators[0], size)))
    raise KeyError(type(tree))


def refuses_one(program: ExportedProgram) -> bool:
    """Whether a size of one is shut out of an axis that is open."""
    return any(_against_one(guard) for guard in guards(program))


def symbol(size: Any) -> Any:
    """Returns the expression of a size that is open, ``None`` for a known one."""
    return size.node.expr if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None else None


def open_places(program: ExportedProgram) -> dict[Place, Any]:
    """Returns the open axes of the example tensors with the expressions of their sizes."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return {
        (i, axis): expression
        for i, name in enumerate(program.graph_signature.user_inputs)
        if isinstance(value := values.get(str(name)), torch.Tensor)
        for axis, size in enumerate(value.shape)
        if (expression := symbol(size)) is not None
    }


def admit_one(
    program: ExportedProgram, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], trace: Trace
) -> None:
    """Drops the guards of *program* against a size of one that the module does not need, in place.

    Args:
        program: traced at sizes of at least two.
        module: what it was traced from.
        args: the inputs that it was traced with.
        kwargs: those by name.
        trace: traces the module with the same axes open.
    """
    found = guards(program)
    places = open_places(program)
    sources = _sources(module, args, kwargs)
    good: dict[Any, bool] = {}
    kept = []
    for guard in found:
        match = _against_one(guard)
        size = places.get((sources.get(match[2], -1), int(match[3]))) if match else None
        if size is not None and size not in good:
            along = {place for place, other in places.items() if other == size}
            whole = len(along) == sum(size in other.free_symbols for other in places.values())
            good[size] = whole and _same_at_one(program, module, args, kwargs, along, trace)
        if size is None or not good[size]:
            kept.append(guard)
    if len(kept) < len(found):
        program._guards_code = kept


def refuse_one_as(program: ExportedProgram, other: ExportedProgram) -> None:
    """Lets *program* refuse a size of one where *other*, traced from the same module, does, in place."""
    kept = [guard for guard in guards(program) if not _against_one(guard)]
    program._guards_code = kept + [guard for guard in guards(other) if _against_one(guard)]


def _against_one(guard: str) -> re.Match[str] | None:
    match = _NOT_ONE.match(guard)
    return match if match and (match[1] or "1") == match[4] else None


def _sources(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of each example tensor by the name that guards have for it."""
    numbers = {id(leaf): i for i, leaf in enumerate(tree_leaves((tuple(args), dict(kwargs))))}
    given = dict(signature(module.forward).bind(*args, **kwargs).arguments)
    pairs = tree_flatten_with_path(given)[0]
    return {f"L{keystr(path)}": numbers[id(leaf)] for path, leaf in pairs if id(leaf) in numbers}


def _same_at_one(
    program: ExportedProgram,
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    along: set[Place],
    trace: Trace,
) -> bool:
    """Whether the module computes at a size of one what *program* does."""
    try:
        one_args, one_kwargs = _cut(args, kwargs, along, 0)
        if _same_graph(program, trace(one_args, one_kwargs)):
            return True
        return all(_same_values(program, module, *_cut(args, kwargs, along, index)) for index in (0, -1))
    except Exception:  # the module's own code runs here; what it refuses, its trace refuses too
        return False


def _cut(
    args: Sequence[Any], kwargs: Mapping[str, Any], along: set[Place], index: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the inputs with one entry, the first (0) or the last (-1), along those axes."""
    pairs, spec = tree_flatten_with_path((tuple(args), dict(kwargs)))
    leaves = [leaf for _, leaf in pairs]
    for i, axis in along:
        leaves[i] = leaves[i].narrow(axis, index % leaves[i].shape[axis], 1)
    cut: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(leaves, spec)
    return cut


def _same_graph(a: ExportedProgram, b: ExportedProgram) -> bool:
    return _written(a) == _written(b) and a.graph_signature.output_specs == b.graph_signature.output_specs


def _written(program: ExportedProgram) -> list[tuple[str, str, str]]:
    """Returns the nodes with their operands, each by its number."""
    numbers = {node: f"%{i}" for i, node in enumerate(program.graph.nodes)}

    def operands(node: torch.fx.Node) -> str:
        return str(torch.fx.map_arg((node.args, node.kwargs), lambda other: numbers[other]))

    return [(node.op, str(node.target), operands(node)) for node in program.graph.nodes]


def _same_values(program: ExportedProgram, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether program and module give the same for some inputs; buffers and random numbers are as before afterwards."""
    known = dict(module.state_dict(keep_vars=True))
    if any(tensor.is_meta for tensor in known.values() if isinstance(tensor, torch.Tensor)):
        return False
    results = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed = torch.initial_seed()
        runs: tuple[nn.Module, ...] = (module, program.module(check_guards=False))
        for run in runs:
            run_state = {name: buffer.clone() for name, buffer in run.named_buffers()}
            torch.manual_seed(seed)
            results.append(tree_leaves(torch.func.functional_call(run, run_state, args, dict(kwargs))))
    if len(results[0]) != len(results[1]):
        return False
    for expected, found in zip(*results, strict=True):
        if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
            if expected != found:
                return False
        elif expected.shape != found.shape or expected.dtype != found.dtype:
            return False
        else:
            torch.testing.assert_close(found, expected, equal_nan=True)
    return True


class SizeGuards(nn.Module):
    """Runs the checks of a trace on the sizes of its inputs, and says in a sentence which one failed."""

    _is_impure = True  # nobody reads what it makes, and it must stay in the graph all the same

    def __init__(self, checks: nn.Module, advice: str) -> None:
        super().__init__()
        self.checks, self.advice = checks, advice

    def forward(self, *args: Any) -> None:
        """Checks the sizes of the inputs.

        Raises:
            ModelError: the graph does not hold for them.
        """
        try:
            self.checks(*args)
        except AssertionError as error:
            told = str(error).removeprefix("Guard failed: ")
            raise ModelError(f"the module was captured for inputs of which {told} holds. {self.advice}") from error


def advice_for(module: nn.Module) -> str:
    """Returns what to do where an input has a size that the trace of *module* does not take."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if any(isinstance(layer, norms) and layer.training for layer in module.modules()):
        return (
            "It was captured in training mode, and batch norm in training needs more than one value per channel: call "
            "eval() before, or leave out a last batch of one (drop_last=True)."
        )
    return (
        "Give inputs of such sizes, or capture it with other example inputs or with dynamic_shapes= for the axes that "
        "must be open."
    )
