"""How faithful the importer is: ONNX's own single-node cases, and whole models forward and backward.

    python -m laurel_graph.tools.conformance [--json] [--ops GLOB ...]           the single-node cases
    python -m laurel_graph.tools.conformance --models A.onnx B.onnx [--json]     whole models against ONNX Runtime

A case *passes* if every output has the expected values, is *refused* if the importer says why it does not take it, and
is *wrong* otherwise: other values, or an error that is no refusal. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from laurel_graph.onnx_model.walk import RANDOM

PASSED, REFUSED, WRONG = "passed", "refused", "wrong"

HALF_TOLERANCE: dict[int, float] = {10: 2e-3, 16: 1.6e-2}
"""Relative tolerance of FLOAT16 and BFLOAT16 outputs, which the importer computes in float32."""


SCALE_TOLERANCE = 1e-6
"""Allowed difference relative to the largest expected value: sums that cancel leave that much in float32."""


@dataclass(frozen=True)
class Outcome:
    """What one case came to.

    Attributes:
        case: the case's name.
        op: the operator it is about.
        status: ``passed``, ``refused`` or ``wrong``.
        detail: why it was refused, or what differs.
    """

    case: str
    op: str
    status: str
    detail: str = ""


def node_cases(expanded: bool = True) -> list[Any]:
    """Returns ONNX's single-node cases; without the variants that are function bodies if not *expanded*."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return [case for case in cases if expanded or not case.name.endswith(("_expanded", "_expanded_ver18"))]


def case_operator(case: Any) -> str:
    """Returns the operator a case is about: of an expanded one, the first that is no constant."""
    nodes = [node for node in case.model.graph.node if node.op_type != "Constant"] or list(case.model.graph.node)
    return f"{nodes[0].domain}::{nodes[0].op_type}" if nodes[0].domain else str(nodes[0].op_type)


def run_case(case: Any) -> Outcome:
    """Imports the model of one case, runs it on each of its data sets and compares."""
    import torch

    from laurel_graph.errors import UnsupportedOperatorError
    from laurel_graph.importer import import_onnx

    op = case_operator(case)
    try:
        module = import_onnx(case.model)
        types = [o.type for o in case.model.graph.output]
        for inputs, outputs in case.data_sets:
            given = [to_torch(value, i.type) for value, i in zip(inputs, case.model.graph.input, strict=False)]
            with torch.no_grad():
                found = module(*given)
            found = found if isinstance(found, tuple) else (found,)
            if len(found) != len(outputs):
                return Outcome(case.name, op, WRONG, f"{len(found)} outputs instead of {len(outputs)}")
            for i, (one, expected) in enumerate(zip(found, outputs, strict=True)):
                # of what is drawn at random, shape and type alone are compared
                values = op not in RANDOM and not ("Dropout" in op and "training" in case.name)
                if detail := _difference(one, expected, types[i], case.rtol, case.atol, values):
                    return Outcome(case.name, op, WRONG, f"output {i}: {detail}")
    except UnsupportedOperatorError as error:
        return Outcome(case.name, op, REFUSED, str(error).splitlines()[-1].strip())
    except Exception as error:
        return Outcome(case.name, op, WRONG, f"{type(error).__name__}: {error}".splitlines()[0][:300])
    return Outcome(case.name, op, PASSED)


def to_torch(value: Any, type_proto: Any) -> Any:
    """Returns an array, list of arrays or ``None`` of an ONNX type as torch tensors in storage types."""
    from onnx import TensorProto, numpy_helper

    from laurel_graph.importer.elements import array_to_torch

    if value is None:
        return None
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if type_proto.HasField("optional_type"):
        return to_torch(value, type_proto.optional_type.elem_type)
    if type_proto.HasField("sequence_type"):
        return [to_torch(item, type_proto.sequence_type.elem_type) for item in value]
    return array_to_torch(np.asarray(value), type_proto.tensor_type.elem_type)


def _difference(found: Any, expected: Any, type_proto: Any, rtol: float, atol: float, values: bool) -> str:
    """Returns what is different, or nothing."""
    import torch
    from onnx import TensorProto, numpy_helper

    from laurel_graph.importer.elements import FLOATS, STORAGE

    if type_proto.HasField("optional_type"):
        if expected is None:
            return "" if found is None else "a value instead of none"
        return _difference(found, expected, type_proto.optional_type.elem_type, rtol, atol, values)
    if type_proto.HasField("sequence_type"):
        if len(found) != len(expected):
            return f"{len(found)} elements instead of {len(expected)}"
        inner = type_proto.sequence_type.elem_type
        pairs = zip(found, expected, strict=True)
        return next((d for f, e in pairs if (d := _difference(f, e, inner, rtol, atol, values))), "")
    elem_type = type_proto.tensor_type.elem_type
    if isinstance(expected, TensorProto):
        expected = numpy_helper.to_array(expected)
    rtol = max(rtol, HALF_TOLERANCE.get(elem_type, 0))
    wanted = torch.float32 if elem_type in FLOATS else STORAGE.get(elem_type)
    expected = np.asarray(expected)
    if found.dtype != wanted:
        return f"type {found.dtype} instead of {wanted}"
    if tuple(found.shape) != expected.shape:
        return f"shape {tuple(found.shape)} instead of {expected.shape}"
    if not values:
        return ""
    if elem_type in FLOATS and STORAGE[elem_type] != torch.float32:
        found = found.to(STORAGE[elem_type])
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    if found.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz):
        found = found.float()
    if found.dtype == torch.bfloat16:
        found = found.float()
    if expected.dtype.kind in "iub" and expected.dtype.itemsize == 8:
        return "" if np.array_equal(found.numpy(), expected) else "integers differ"
    with np.errstate(invalid="ignore"):
        actual, expected = found.numpy().astype(wide), expected.astype(wide)
    scale = np.max(np.abs(expected), initial=0, where=np.isfinite(expected))
    close = np.isclose(actual, expected, rtol=rtol, atol=max(atol, SCALE_TOLERANCE * scale), equal_nan=True)
    if close.all():
        return ""
    at = tuple(int(i) for i in np.argwhere(~close)[0])
    return f"{int((~close).sum())} of {close.size} values differ, at {at} {actual[at]} instead of {expected[at]}"


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the counts, and a row per operator."""

    def count(some: Sequence[Outcome]) -> dict[str, int]:
        return {"cases": len(some)} | {s: sum(o.status == s for o in some) for s in (PASSED, REFUSED, WRONG)}

    rows = []
    for op in sorted({o.op for o in outcomes}):
        mine = [o for o in outcomes if o.op == op]
        reasons = sorted({o.detail for o in mine if o.detail})
        rows.append({"op": op, **count(mine), "reasons": reasons})
    return {**count(outcomes), "ops": rows}


def _print_table(report: dict[str, Any], verbose: Sequence[Outcome]) -> None:
    write = sys.stdout.write
    write(f"{'operator':40} {'cases':>6} {'passed':>7} {'refused':>8} {'wrong':>6}\n")
    for row in report["ops"]:
        write(f"{row['op']:40} {row['cases']:6} {row['passed']:7} {row['refused']:8} {row['wrong']:6}\n")
    write(f"{'total':40} {report['cases']:6} {report['passed']:7} {report['refused']:8} {report['wrong']:6}\n")
    for outcome in verbose:
        write(f"{outcome.status}: {outcome.case}: {outcome.detail}\n")


def _run_models(paths: Sequence[Path], as_json: bool) -> int:
    from .models import run_model

    outcomes = [run_model(path) for path in paths]
    if as_json:
        sys.stdout.write(json.dumps({"models": [asdict(o) for o in outcomes]}) + "\n")
    else:
        sys.stdout.write(f"{'model':50} {'status':8} {'forward':>9} {'gradient':>9} {'onnx2fx':>9}\n")
        for o in outcomes:
            figures = " ".join(
                f"{'-' if v is None else format(v, '.1e'):>9}" for v in (o.forward, o.gradient, o.second)
            )
            sys.stdout.write(
                f"{o.model[-50:]:50} {o.status:8} {figures} {o.detail.splitlines()[0] if o.detail else ''}\n"
            )
    return int(any(o.status == WRONG for o in outcomes))


def _selected(cases: Sequence[Any], globs: Sequence[str]) -> Iterator[Any]:
    for case in cases:
        if not globs or any(fnmatchcase(case_operator(case), g) or fnmatchcase(case.name, g) for g in globs):
            yield case


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("--ops", nargs="*", default=[], metavar="GLOB", help="operators or cases to run")
    parser.add_argument("--models", nargs="*", default=[], type=Path, metavar="FILE", help="whole models instead")
    parser.add_argument("--no-expanded", action="store_true", help="leave out the cases that are function bodies")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--verbose", action="store_true", help="list every case that does not pass")
    options = parser.parse_args(arguments)
    if options.models:
        return _run_models(options.models, options.json)
    outcomes = [run_case(case) for case in _selected(node_cases(not options.no_expanded), options.ops)]
    report = summary(outcomes)
    if options.json:
        sys.stdout.write(json.dumps(report | {"failed": [asdict(o) for o in outcomes if o.status != PASSED]}) + "\n")
    else:
        _print_table(report, [o for o in outcomes if o.status == WRONG or (options.verbose and o.status == REFUSED)])
    return int(report[WRONG] > 0)
