"""Which sites of an ONNX model get what: detection, what a run of the model shows, selection.

A model that was transformed before is looked at as it was then, so that rewriting some sites and then others gives
the network that rewriting them all gives, and rewriting twice what rewriting once does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from laurel_graph import soundness
from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.detection import Detection, Residual, SitePlan
from laurel_graph.errors import ModelError
from laurel_graph.foreign_names import around
from laurel_graph.onnx_model.bodies import scopes_of
from laurel_graph.onnx_model.hidden_adds import HIDDEN_ADDS
from laurel_graph.onnx_model.shape_rules import Types
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.schema import DOMAIN, PREFIX, read_specs
from laurel_graph.opset.undo import read_undo
from laurel_graph.passes.detect import rule
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.passes.select import Selection, select
from laurel_graph.steps import tell

from .restore import remove
from .sessions import Seen
from .trial import Trial


def detect_onnx(
    model: ModelProto, seen: Types | None = None, known: tuple[dict[str, Any], str] | None = None
) -> Detection:
    """Returns the verdict on every add of *model*; sites of ours are of kind ``laurel``, and their skip is their x.

    Args:
        model: the model; it stays as it is.
        seen: shapes and element types of values, where something knows them better than inference.
        known: what ``tensor_types`` says of *model*, where that is known.
    """
    before = _as_it_was(model)
    if before is None:
        return rule.detect(view_of(model, known=known, seen=seen))
    found = rule.detect(view_of(before, seen=seen))
    specs, carried = read_specs(model), _carried(model)

    def there(r: Residual) -> Residual:
        skip = r.skip if r.skip in r.joins else carried[r.body, r.site]
        return replace(r, kind="laurel", rank=specs[r.site].rank, skip=skip, copies=tuple(map(there, r.copies)))

    residuals = tuple(
        there(r) if r.site in specs and all((each.body, r.site) in carried for each in (r, *r.copies)) else r
        for r in found.residuals
    )
    if {r.site for r in residuals if r.kind == "laurel"} < set(specs):  # sites that the graph of today alone explains
        return rule.detect(view_of(model, known=known, seen=seen))
    return replace(found, residuals=residuals)


def _as_it_was(model: ModelProto) -> ModelProto | None:
    """The model before its sites were rewritten, ``None`` if it was not, or was changed since."""
    try:
        if read_undo(model) is None:
            return None
        copy = copy_of(model)
        remove(copy, compare=False)
        soundness.check(copy)  # what was there comes from the file
    except ModelError:  # deployed or edited since then, or never so
        return None
    return copy


def _carried(model: ModelProto) -> dict[tuple[str, str], str]:
    """Path of a body and site to the x of its operator there."""
    found: dict[tuple[str, str], str] = {}
    graphs = scopes_of(model)
    seen = {
        path + name
        for path, graph in graphs.items()
        for name in (*(value.name for value in graph.input), *(name for node in graph.node for name in node.output))
    }
    for path, graph in graphs.items():
        for node in graph.node:
            if node.domain == DOMAIN and len(node.input) > 2:
                ours = next((name for name in node.input[2:] if name.startswith(f"{PREFIX}.")), "")
                site = ours.removeprefix(f"{PREFIX}.").rpartition(".")[0]
                home = path
                while home and home + node.input[0] not in seen:
                    home = around(home)
                found.setdefault((path, site), home + node.input[0])
    return found


@dataclass
class Placement:
    """What will be put where.

    Attributes:
        detection: every join with its verdict.
        selection: what is rewritten and what not.
        trial: the model on ONNX Runtime, or ``None`` where it is not to be run.
        fused: sites whose add is hidden in an operator that comes apart.
        notes: sentences for the user; :meth:`check` adds to them.
    """

    detection: Detection
    selection: Selection
    trial: Trial | None
    fused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def check(self, rewritten: ModelProto | Path) -> None:
        """Opens and runs what was made, in memory or as a file, where the model may be run.

        Raises:
            VerificationError: see :meth:`Trial.check`.
        """
        if self.trial is not None:
            tell("running the rewritten model", 1, 2)
            note = self.trial.check(rewritten, self.fused)
            self.notes += (note,) if note else ()


def place(
    model: ModelProto, name: str, config: LaurelConfig, folder: Path | None, *, run: bool, keep_fused: bool
) -> Placement:
    """Finds the sites of *model* and decides what each gets; changes nothing.

    Shapes and types come from inference, then from weights and schemas, then from a run on one sample, which also
    overrules what a file merely states.

    Args:
        model: the model.
        name: what messages call it.
        config: what is asked for.
        folder: where its external weights lie.
        run: whether the model may be run.
        keep_fused: leave sites alone whose add is hidden in an operator that would have to come apart.

    Raises:
        NoResidualError, SelectorError, ConfigError: see :func:`~laurel_graph.passes.select.select`.
    """
    detection = replace(detect_onnx(model), model=name)
    hidden = _hidden(model, detection.residuals)
    tell("running the model once", 0, 2)
    trial = Trial(model, folder, _values(detection.residuals)) if run and detection.residuals else None
    if trial is not None and trial.seen and (known := _news(detection.residuals, trial)):
        detection = replace(detect_onnx(model, known), model=name)
    refusals: dict[str, str] = {}
    for residual in detection.residuals:
        if keep_fused and residual.site in hidden:
            refusals[residual.site] = f"its add is hidden in {hidden[residual.site]}, which is to be kept"
    selection = select(detection, config, refusals=refusals)
    if trial is not None and trial.seen:
        wrong = {plan.spec.site: reason for plan in selection.plans if (reason := _misfit(plan, trial.seen))}
        if wrong:
            selection = select(detection, config, refusals={**refusals, **wrong})
    fused = tuple(plan.spec.site for plan in selection.plans if plan.spec.site in hidden)
    notes = (*detection.notes, *selection.notes)
    if trial is not None:
        notes += (trial.note,) if trial.note else ()
        trial.release()
    return Placement(detection, selection, trial, fused, notes)


def _hidden(model: ModelProto, residuals: Iterable[Residual]) -> dict[str, str]:
    """Site to the operator that hides its add, for those where one does."""
    kinds = {
        path + next((o for o in node.output if o), ""): node.op_type
        for path, graph in scopes_of(model).items()
        for node in graph.node
    }
    found: dict[str, str] = {}
    for residual in residuals:
        for key in _joins(residual) if residual.kind != "laurel" else ():
            if (kind := kinds.get(key)) in HIDDEN_ADDS:
                found.setdefault(residual.site, kind)
    return found


def _joins(residual: Residual) -> list[str]:
    return [key for each in (residual, *residual.copies) for key in each.joins]


def _values(residuals: Iterable[Residual]) -> list[str]:
    """What a run has to show: the operands and the sum of every join."""
    every = (each for residual in residuals for each in (residual, *residual.copies))
    names = [name for r in every for name in (r.skip, *r.branches, *r.joins)]
    return list(dict.fromkeys(names))


def _news(residuals: Iterable[Residual], trial: Trial) -> Types:
    """What the run knows and the detection did not, or knew wrongly; nothing if there is no such thing."""
    for residual in residuals:
        for each in (residual, *residual.copies):
            seen = trial.seen.get(each.skip)
            if seen is not None and not _agrees(each, seen):
                return trial.known()
    return {}


def _agrees(residual: Residual, seen: Seen) -> bool:
    shape = residual.shape
    if shape is None or residual.width is None or residual.dtype is None or len(shape) != len(seen.shape):
        return False
    same = all(not isinstance(d, int) or d == s for d, s in zip(shape, seen.shape, strict=True))
    return same and seen.dtype == residual.dtype and seen.shape[residual.axis] == residual.width


def _misfit(plan: SitePlan, seen: Mapping[str, Seen]) -> str:
    """Why a plan does not fit the values that a run showed, or ""."""
    return next((why for each in (plan.residual, *plan.residual.copies) if (why := _unfit(each, plan.spec, seen))), "")


def _unfit(residual: Residual, spec: SiteSpec, seen: Mapping[str, Seen]) -> str:
    shown = [(name, seen[name]) for name in (residual.skip, *residual.branches) if name in seen]
    for name, value in shown:
        if value.dtype != spec.dtype:
            return f"{name} is {value.dtype} when the model runs; {spec.dtype} expected"
        if len(value.shape) != spec.ndim or value.shape[spec.axis] != spec.width:
            wanted = f"{spec.width} features on axis {spec.axis} of {spec.ndim}"
            return f"{name} has the shape {value.shape} when the model runs; expected {wanted}"
    shapes = {value.shape for _, value in shown}
    if len(shapes) > 1:
        return f"skip and branch have the shapes {' and '.join(map(str, sorted(shapes)))} when the model runs"
    return ""
