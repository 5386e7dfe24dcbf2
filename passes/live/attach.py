"""Puts LAuReL into a live torch model, in place, and takes it out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only

from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.errors import ModelError, RewriteError, SelectorError, check_order, near
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.prepare import example_inputs
from laurel_graph.passes.results import TransformReport
from laurel_graph.torch_residual.module import LaurelResidual

from .capture import look
from .check import traced
from .joins import OFF, State
from .plan import BlockPlan, Plan, Planner
from .proof import Proof
from .record import (
    MERGED,
    RECORD,
    Adapter,
    Part,
    Record,
    part_of,
    place_of,
    put_in,
    records,
    refuse_merged,
    take_out,
    undo,
    unhooked,
)


@dataclass(frozen=True, repr=False)
class AttachReport(TransformReport):
    """What :func:`attach` did.

    Attributes:
        ways: site to the way in which its add is reached: ``rewritten``, or ``watched: why``.
    """

    ways: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        report = super().to_dict()
        return {**report, "sites": [{**site, "way": self.ways[site["site"]]} for site in report["sites"]]}

    def __str__(self) -> str:
        """One line for each residual connection."""
        lines = [
            f"{plan.spec.site}: {plan.spec.variant}, D = {plan.spec.width}"
            + (f", r = {plan.spec.rank}" if plan.spec.rank else "")
            + f", {plan.residual.source or 'no source line'}, {self.ways[plan.spec.site]}"
            for plan in self.plans
        ]
        lines += [f"{site}: left alone, {reason}" for site, reason in self.skipped]
        share = 100 * self.parameters / max(1, self.base_parameters)
        total = f"{len(self.plans)} residuals, {self.parameters:,} new parameters ({share:.3g} % of the base)"
        return "\n".join([*lines, total, *self.notes])


def attach(
    model: nn.Module,
    config: LaurelConfig | str | Mapping[str, Any] | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    modules_to_save: Sequence[str] = (),
    adapter: str = "default",
) -> AttachReport:
    """Puts LAuReL residuals into *model* itself, which computes the same bits as before until they are trained.

    The model stays what it is: the same object of a class of the same name, with its methods, config, dropout, control
    flow and state_dict names; each block with residuals gets submodules ``laurel_0``, ``laurel_1``, ... and that
    is all. The base is frozen. One residual serves all calls of a block that is shared, and all steps of a recurrence.

    Args:
        model: any ``nn.Module`` whose forward is Python; its weights may be on the ``meta`` device.
        config: what to put in, or its variant; by default ``LaurelConfig()``.
        args: example inputs: one tensor, a tuple of positional inputs, or a mapping of names. Nothing is computed with
            them. Hugging Face models need none.
        kwargs: example inputs by name.
        modules_to_save: names or globs of modules that train, too, and are saved with the adapter (a new head).
        adapter: the name of this set of residuals, for :func:`set_adapter`.

    Returns:
        Every join, what it got and which way, or why it was left alone.

    Raises:
        ModelError: the model cannot be looked at, or is no live module.
        NoResidualError: nothing to rewrite was found; lists the nearest misses.
        SelectorError: a site selector, or a name of *modules_to_save*, matched nothing.
        ConfigError: a rank does not fit a site, or *config* is something else.
        RewriteError: LAuReL is there already, or the model would not compute what it did.
    """
    check_order("attach(model, config, ...)", model, config, ("module", "config"))
    config = LaurelConfig.of(config)
    _refuse_other(model)
    saved = _saved(model, modules_to_save)
    values, named = example_inputs(model, args, kwargs)
    report = attached(model, lambda planner: planner.plan(config), config.to_json(), (values, named), saved, adapter)
    model.__dict__.pop(MERGED, None)  # a base of its own from now on
    return report


def attached(
    model: nn.Module,
    choose: Callable[[Planner], Plan],
    config: str,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    saved: Sequence[str],
    adapter: str,
    record: Record | None = None,
) -> AttachReport:
    """Attaches what *choose* plans; see :func:`attach`.

    Args:
        model: the model, with nothing in place.
        choose: gives the plan.
        config: kept with the adapter.
        inputs: positional and named example inputs.
        saved: names of the parameters that are saved with the adapter.
        adapter: its name.
        record: of a model that holds other adapters.
    """
    with unhooked(model):
        seen = look(model, *inputs)
        plan = choose(Planner(seen, replace(detect(seen.view), model=type(model).__name__)))
        base = sum(parameter.numel() for parameter in model.parameters())
        before = traced(model, *inputs)
        made = [_part(model, block) for block in plan.blocks]
        ways: dict[str, str] = {}
        for (_, way), block in zip(made, plan.blocks, strict=True):
            ways |= {site.spec.site: way for site in block.residuals.values()}
        new = Adapter([part for part, _ in made], config, dict.fromkeys(saved))
        fresh = record is None
        if record is None:
            record = Record(State(), {}, adapter, inputs=_without_values(inputs))
            record.trained = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        active, record.adapters[adapter], record.active = record.active, new, adapter
        notes = list(plan.detection.notes)
        try:
            if fresh and not any(type(module).__module__.startswith("peft.") for module in model.modules()):
                model.requires_grad_(False)
            model.__dict__[RECORD] = record
            put_in(model, record)
            if before is None:
                notes.append("not checked against the model before: its forward does not run without values.")
            else:
                notes += Proof(model, record, plan, seen, inputs).of(before, ways)
        except BaseException:
            if fresh:
                undo(model, record)
            else:
                take_out(model, record)
                del record.adapters[adapter]
                record.active = active
            raise
        return AttachReport(plan.detection, plan.plans, plan.skipped, base, tuple(notes), ways)


def _part(model: nn.Module, plan: BlockPlan) -> tuple[Part, str]:
    """What is done to one block, with new residuals in the element type that the block's joins or parameters have."""
    device, _ = place_of(plan.block, model)
    residuals = {}
    for name, site in plan.residuals.items():
        residuals[name] = LaurelResidual(_with_dtype(site.spec, plan.block, model), device=device)
    return part_of(plan, residuals)


def _with_dtype(spec: SiteSpec, block: nn.Module, model: nn.Module) -> SiteSpec:
    """The spec in the element type of the block's, or model's, parameters."""
    _, dtype = place_of(block, model)
    return spec if dtype is None else spec.with_dtype(str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class _Shape:
    """An example input without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _without_values(inputs: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: _Shape(tuple(t.shape), t.dtype), inputs)


def inputs_of(record: Record) -> Any:
    """The example inputs that a model was attached with, as zeros."""
    return tree_map_only(_Shape, lambda s: torch.zeros(s.shape, dtype=s.dtype), record.inputs)


def detach(model: nn.Module) -> nn.Module:
    """Takes LAuReL out of *model*, in place: class, names, hooks and what trained are as before :func:`attach`.

    Modules of ``modules_to_save`` keep what they learned.

    Args:
        model: an attached model, or anything that holds one (a peft model, a wrapper).

    Returns:
        *model*.

    Raises:
        ModelError: nothing is attached, or the model was merged.
    """
    found = records(model, "detach")
    refuse_merged(model, "detach would give back neither the base nor the tuned model")
    for holder, record in found:
        undo(holder, record)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Runs the base inside: the attached model without its residuals, for teachers, KL terms and comparisons.

    Raises:
        ModelError: nothing is attached.
    """
    found = records(model, "disable")
    refuse_merged(model, "its base cannot run")
    before = [record.state.mode for _, record in found]
    try:
        for _, record in found:
            record.state.mode = OFF
        yield model
    finally:
        for (_, record), mode in zip(found, before, strict=True):
            record.state.mode = mode


def _refuse_other(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a live nn.Module, found {type(model).__name__}; lg.transform takes other forms.")
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule)) or type(model).__name__ == "OptimizedModule":
        raise ModelError(
            f"{type(model).__name__} is compiled or traced already: attach to the nn.Module that it was made from "
            "(lg.transform takes GraphModules)."
        )
    if any(hasattr(module, "_get_fsdp_state") for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} is sharded already: attach to the whole model, then call fully_shard on it."
        )
    if any(isinstance(module, LaurelResidual) for module in model.modules()):
        raise RewriteError(
            f"{type(model).__name__} holds LAuReL residuals already: detach them first, or load another set beside "
            "them with load_adapter(..., adapter=NAME)."
        )


def _saved(model: nn.Module, globs: Sequence[str]) -> tuple[str, ...]:
    """The parameters of the modules that *globs* name, by their whole path or its end."""
    globs = (globs,) if isinstance(globs, str) else globs
    paths = [path for path, module in model.named_modules() if path and any(True for _ in module.parameters())]
    found: list[str] = []
    for glob in globs:
        hits = [path for path in paths if fnmatchcase(path, glob) or fnmatchcase(path, f"*.{glob}")]
        if not hits:
            raise SelectorError(f"modules_to_save {glob!r} matches no module with parameters.{near(glob, paths)}")
        found += hits
    return tuple(name for name, _ in model.named_parameters() if any(name.startswith(f"{path}.") for path in found))
