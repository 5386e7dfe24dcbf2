"""Folds what folds exactly into the weights of a live model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from laurel_graph.errors import ModelError, RewriteError
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.prepare import example_inputs, set_mode
from laurel_graph.torch_residual.module import LaurelResidual

from .attach import inputs_of
from .capture import look
from .plan import Planner
from .record import MERGED, Part, Record, put_in, records, take_out, undo

TOLERANCE = 2e-5
"""Largest difference of a merged model's values, as a share of the largest value."""

_ATEN = torch.ops.aten
_OUTPUTS = {
    _ATEN.linear.default: (1, 2, 0, -1),
    _ATEN.addmm.default: (2, 0, 1, -1),
    **{op: (1, 2, 0, 1) for name in ("conv1d", "conv2d", "conv3d") for op in (getattr(_ATEN, name).default,)},
}
"""Operator to the places of weight and bias, the weight's axis of outputs, and the feature axis of the result."""

_SAME = (_ATEN.dropout.default, _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.alias.default)
_MOVED = (_ATEN.view.default, _ATEN.reshape.default, _ATEN.transpose.int, _ATEN.permute.default,
          _ATEN.unsqueeze.default, _ATEN.squeeze.dim, _ATEN.flatten.using_ints)  # fmt: skip


@dataclass(frozen=True)
class MergeReport:
    """What :func:`merge` did.

    Attributes:
        folded: site to the weight that took its α.
        remains: site to what its residual still does, and why.
        gone: the sites that have no residual any more.
        error: largest difference of an output or a site's sum on the inputs, as a share of its largest value.
    """

    folded: Mapping[str, str]
    remains: Mapping[str, str]
    gone: tuple[str, ...]
    error: float

    def __str__(self) -> str:
        """One line for each site."""
        lines = [f"{site}: α is in {weight}" for site, weight in self.folded.items()]
        lines += [f"{site}: nothing remains" for site in self.gone]
        lines += [f"{site}: {text}" for site, text in self.remains.items()]
        return "\n".join([*lines, f"the values differ by {self.error:.2g} of their scale"])


@dataclass(frozen=True)
class _Target:
    """The weight and bias that make a branch, the names of both, and the weight's axis of outputs."""

    weight: str
    bias: str | None
    axis: int


def merge(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> MergeReport:
    """Folds the α of each residual into the layer that makes its branch, where that is exact; changes *model* in place.

    That is so where the branch is the output of a Linear or a convolution that runs once, is read by the join alone,
    and whose weights nothing else has. β, LR and PA stay in the residual, because everything that reads the stream
    would have to carry them. A residual with nothing left is taken out; with none left the model is detached.

    The base's weights change, so what is left is neither the base nor an adapter of it: ``detach``, ``disabled``,
    ``save_adapter`` and ``load_adapter`` refuse a merged model. Save it with its ``state_dict``.

    Args:
        model: an attached model with one adapter, of 32 or 64 bits.
        args: inputs on which the values before and after are compared; by default random ones of the shapes that
            it was attached with.
        kwargs: by name.

    Returns:
        What was folded, and what remains.

    Raises:
        ModelError: nothing is attached, there are several adapters, or the model is of 16 bits.
        RewriteError: the merged model would compute other values; it is as it was.
    """
    found = records(model, "merge")
    holder, record = found[0]
    if len(found) > 1 or len(record.adapters) > 1:
        raise ModelError(
            f"{type(model).__name__} holds several adapters, and weights can take one: merge a model that has one."
        )
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in holder.parameters()):
        raise ModelError("a weight of 16 bits would be rounded once more by merge: call model.float() first.")
    has_inputs = bool(kwargs) or not isinstance(args, (tuple, list)) or len(args) > 0
    given = example_inputs(holder, args, kwargs) if has_inputs else _random(record, holder)
    before = _values(holder, given)
    targets = _targets(holder, record, given)
    changed = _Changed(record)
    try:
        report = _folded(holder, record, targets, changed)
        error = _difference(before, _values(holder, given))
        if not error <= TOLERANCE:
            raise RewriteError(
                f"the merged {type(holder).__name__} would compute other values (by {error:.2g} of their scale, "
                f"{TOLERANCE:.0e} is allowed); it is as it was."
            )
    except BaseException:
        with _without(holder, record):
            changed.back()
        raise
    if report.folded:
        holder.__dict__[MERGED] = True
    with _without(holder, record):
        record.adapter.parts = [part for part in record.adapter.parts if _is_needed(part)]
    if not any(part.residuals for part in record.adapter.parts):
        undo(holder, record)
    return replace(report, error=error)


@contextmanager
def _without(model: nn.Module, record: Record) -> Iterator[None]:
    """Takes the residuals out inside; what was learned stays in the modules that train, too."""
    modes = {id(part.block): part.block.training for part in record.adapter.parts}
    take_out(model, record, learned=True)
    try:
        yield
    finally:
        put_in(model, record)
        for part in record.adapter.parts:
            part.block.training = modes[id(part.block)]


class _Changed:
    """Remembers what merge changes."""

    def __init__(self, record: Record) -> None:
        self.parts = [(part, dict(part.residuals)) for part in record.adapter.parts]
        self.values: list[tuple[torch.Tensor, torch.Tensor]] = []

    def scale(self, parameter: nn.Parameter, factor: torch.Tensor) -> None:
        """Multiplies a parameter, in float64."""
        old = parameter.detach().clone()
        self.values.append((parameter, old))
        with torch.no_grad():
            parameter.copy_((old.double() * factor).to(old.dtype))

    def back(self) -> None:
        """Undoes everything."""
        for part, residuals in self.parts:
            part.residuals.clear()
            part.residuals.update(residuals)
        with torch.no_grad():
            for parameter, old in reversed(self.values):
                parameter.copy_(old)


# Where α goes ---------------------------------------------------------------------------------------------------------


def _targets(model: nn.Module, record: Record, inputs: Any) -> dict[str, _Target | str]:
    """For each site the weights that take its α, or why none do."""
    with _without(model, record):
        seen = look(model, *inputs)
    planner = Planner(seen, replace(detect(seen.view), model=type(model).__name__))
    return {
        residual.spec.site: _target(planner, residual, model, record)
        for part in record.adapter.parts
        for residual in part.residuals.values()
    }


def _target(planner: Planner, residual: LaurelResidual, model: nn.Module, record: Record) -> _Target | str:
    site = residual.spec.site
    seen = planner.by_site.get(site)
    if seen is None or site not in planner.joins:
        return "the join is not found on these inputs"
    if site in planner.merged:
        return "one residual serves several connections"
    if len(seen.joins) != 1:
        return "several branches meet there"
    node, join = planner.nodes[seen.joins[0]], planner.joins[site][0]
    operands = [*node.args[:2], *(node.kwargs[key] for key in ("other",) if key in node.kwargs)]
    value = operands[0 if join.swapped else 1]
    moved = False
    while True:
        if not isinstance(value, fx.Node) or len(value.users) != 1:
            return "its branch is read elsewhere, too"
        if value.target in _OUTPUTS:
            break
        if value.target not in (*_SAME, *_MOVED):
            return f"its branch is made by {getattr(value.target, '__name__', value.op)}, not by a Linear or Conv"
        moved = moved or not _keeps_features(value)
        value = value.args[0]
    return _weights(value, residual, moved, model, record)


def _keeps_features(node: fx.Node) -> bool:
    """Tells whether the last axis stays what it is, row by row."""
    if node.target in _SAME:
        return True
    if node.target not in (_ATEN.view.default, _ATEN.reshape.default):
        return False
    shapes = [n.meta["val"].shape for n in (node, node.args[0]) if isinstance(n, fx.Node) and "val" in n.meta]
    return len(shapes) == 2 and all(shapes) and shapes[0][-1] == shapes[1][-1]


def _weights(node: fx.Node, residual: LaurelResidual, moved: bool, model: nn.Module, record: Record) -> _Target | str:
    places = _OUTPUTS[node.target]
    args = [*node.args, None, None]
    if node.kwargs:
        return "the layer behind its branch is called in an unusual way"
    if residual.spec.per_channel and (moved or places[3] != residual.spec.axis):
        return "between layer and join the features move to another axis"
    names: list[str | None] = []
    for place in places[:2]:
        one = args[place]
        if one is None:
            names.append(None)
            continue
        if not isinstance(one, fx.Node) or one.op != "get_attr" or len(one.users) != 1:
            return "the weights of the layer behind its branch are computed, or used more than once"
        if reason := _refused(model, str(one.target), record):
            return reason
        names.append(str(one.target))
    return _Target(str(names[0]), names[1], places[2])


def _refused(model: nn.Module, name: str, record: Record) -> str:
    """Why a tensor of the model cannot be changed, or ""."""
    own = dict(model.named_parameters(remove_duplicate=False))
    parameter = own.get(name)
    if parameter is None or not parameter.is_floating_point():
        return f"{name} is no floating-point parameter"
    place = parameter.untyped_storage().data_ptr()
    if sum(p.untyped_storage().data_ptr() == place for p in own.values()) != 1:
        return f"{name} is shared"
    owner = model.get_submodule(name.rpartition(".")[0])
    if owner._forward_hooks or owner._forward_pre_hooks:
        return f"somebody looks at what {name.rpartition('.')[0]} computes (hooks)"
    return f"{name} trains itself" if name in record.adapter.saved else ""


# What is done ---------------------------------------------------------------------------------------------------------


def _folded(model: nn.Module, record: Record, targets: Mapping[str, _Target | str], changed: _Changed) -> MergeReport:
    own = dict(model.named_parameters(remove_duplicate=False))
    folded: dict[str, str] = {}
    remains: dict[str, str] = {}
    gone: list[str] = []
    with _without(model, record):
        for part in record.adapter.parts:
            for name, residual in list(part.residuals.items()):
                site, target = residual.spec.site, targets[residual.spec.site]
                why = ""
                if residual.spec.has_rw and not _is_one(residual, 0):
                    if not residual.is_fused or isinstance(target, str):
                        why = target if isinstance(target, str) else "its variant has terms of its own"
                    else:
                        residual = part.residuals[name] = _without_alpha(residual, target, own, changed.scale)
                        folded[site] = target.weight
                left = _left(residual)
                if left:
                    remains[site] = f"{', '.join(left)} stay" + (f": {why}" if why else "")
                else:
                    del part.residuals[name]
                    gone.append(site)
    return MergeReport(folded, remains, tuple(gone), 0.0)


def _without_alpha(
    residual: LaurelResidual, target: _Target, own: Mapping[str, nn.Parameter],
    scale: Callable[[nn.Parameter, torch.Tensor], None],
) -> LaurelResidual:  # fmt: skip
    """Scales the weights by α; returns the residual without it."""
    with torch.no_grad():
        alpha, beta = (value.double().flatten() for value in residual._resolved_weights())
        weight = own[target.weight]
        shape = [1] * weight.ndim
        shape[target.axis] = -1
        scale(weight, alpha.view(shape))
        if target.bias is not None:
            scale(own[target.bias], alpha)
        new = LaurelResidual(
            replace(residual.spec, weights="free"), device=weight.device, dtype=next(residual.parameters()).dtype
        )
        for name, parameter in new.named_parameters():
            if name == "alpha":
                parameter.fill_(1)
            elif name == "beta":
                parameter.copy_(beta.view(parameter.shape))
            else:
                parameter.copy_(getattr(residual, name))
    return new.train(residual.training)


def _is_one(residual: LaurelResidual, place: int) -> bool:
    with torch.no_grad():
        return bool((residual._resolved_weights()[place] == 1).all())


def _left(residual: LaurelResidual) -> list[str]:
    """What a residual still does."""
    spec = residual.spec
    if not residual.is_fused:
        return [spec.variant]
    left = [name for place, name in enumerate("αβ") if spec.has_rw and not _is_one(residual, place)]
    if spec.has_lr and residual.A.any() and residual.B.any():
        left.append("LR")
    if spec.has_pa and residual.gamma.any():
        left.append("PA")
    return left


def _is_needed(part: Part) -> bool:
    entries = [entry for point in part.points for entry in point.entries if entry is not None]
    return bool(part.residuals) or any(entry.slot >= 0 for entry in entries)


# What is compared -----------------------------------------------------------------------------------------------------


def _random(record: Record, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def value(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        return torch.randn(t.shape, generator=generator).to(t.dtype)

    return example_inputs(model, *tree_map_only(torch.Tensor, value, inputs_of(record)))


def _values(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, list[torch.Tensor]]:
    """The outputs, and the sum at each site that has a residual."""
    values: dict[str, list[torch.Tensor]] = {}

    def note(residual: LaurelResidual, _: Any, y: torch.Tensor) -> None:
        values.setdefault(residual.spec.site, []).append(y.detach().clone())

    found = [m for m in model.modules() if isinstance(m, LaurelResidual)]
    hooks = [m.register_forward_hook(note) for m in found]
    try:
        with set_mode(model), torch.no_grad():
            torch.manual_seed(0)
            result = model(*inputs[0], **inputs[1])
    finally:
        for hook in hooks:
            hook.remove()
    values[""] = [t.clone() for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return values


def _difference(before: Mapping[str, list[torch.Tensor]], after: Mapping[str, list[torch.Tensor]]) -> float:
    """The largest difference as a share of the largest value; infinite where values are missing or not finite."""
    worst = 0.0
    for name, values in after.items():
        old = before.get(name, [])
        if len(old) != len(values) or not values:
            return math.inf
        for one, two in zip(old, values, strict=True):
            if not two.numel():
                continue
            scale = float(one.abs().max())
            error = float((one - two).abs().max())
            if math.isnan(error):
                return math.inf
            if error:
                worst = max(worst, error / scale if scale else math.inf)
    return worst
