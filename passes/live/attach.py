"""Puts LAuReL into a live torch model, in place, and takes it out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn

from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.detection import Detection, SitePlan
from laurel_graph.errors import ModelError, RewriteError, SelectorError, near
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.prepare import example_inputs
from laurel_graph.torch_residual.module import LaurelResidual

from .bytecode import UnrewritableError, rewritten_code
from .capture import Seen, look
from .check import Trace, traced
from .classes import Recipe, base_class, live_class
from .joins import ATTRIBUTE, CHECK, OFF, ON, Block, State, forget, forget_after
from .plan import REWRITTEN, WATCHED, BlockPlan, Plan, Planner
from .watch import code_of

RECORD = f"{ATTRIBUTE}_record"
"""The attribute of an attached model that holds its :class:`Record`."""


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did.

    Attributes:
        detection: every join with its verdict.
        plans: one plan for each residual that was put in.
        skipped: ``(site, reason)`` of the residual connections that got none of their own.
        base_parameters: number of parameters of the model before.
        ways: site to the way in which its add is reached: ``rewritten``, or ``watched: why``.
        notes: sentences for the user.
    """

    detection: Detection
    plans: tuple[SitePlan, ...]
    skipped: tuple[tuple[str, str], ...]
    base_parameters: int
    ways: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of new, trainable parameters."""
        return sum(plan.spec.parameter_count() for plan in self.plans)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        return {
            "sites": [
                {**plan.spec.to_dict(), "parameters": plan.spec.parameter_count(), "way": self.ways[plan.spec.site]}
                for plan in self.plans
            ],
            "skipped": [{"site": site, "reason": reason} for site, reason in self.skipped],
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "notes": list(self.notes),
        }

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


@dataclass
class Record:
    """What an attached model remembers, to be the same again after :func:`detach`.

    Attributes:
        state: what its blocks share.
        blocks: each changed block, its own class, and the names of its residuals.
        attributes: what else was changed: module, name, value before.
        trained: names of the parameters that trained before.
        saved: names of the parameters that train and are saved with the residuals (``modules_to_save``).
        config: the JSON form of the config.
        adapter: name of the adapter that is active.
        others: the adapters that are not, by name: path of a residual to its module.
    """

    state: State
    blocks: list[tuple[nn.Module, type[nn.Module], tuple[str, ...]]] = field(default_factory=list)
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    trained: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    config: str = ""
    adapter: str = "default"
    others: dict[str, Any] = field(default_factory=dict)


def attach(
    model: nn.Module,
    config: LaurelConfig | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    modules_to_save: Sequence[str] = (),
    adapter: str = "default",
) -> AttachReport:
    """Puts LAuReL residuals into *model* itself, which computes the same bits as before until they are trained.

    The model stays what it is: the same object of a class of the same name, with its methods, config, dropout, control
    flow and state_dict names; each block with residuals gets submodules ``laurel_0``, ``laurel_1``, ... and nothing else
    is new. The base is frozen. One residual serves all calls of a block that is shared, and all steps of a recurrence.

    Args:
        model: any ``nn.Module`` whose forward is Python; its weights may be on the ``meta`` device.
        config: what to put in; by default ``LaurelConfig()``.
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
        ConfigError: a rank does not fit a site.
        RewriteError: LAuReL is there already, or the model would not compute what it did.
    """
    _refuse_other(model)
    config = config or LaurelConfig()
    saved = _saved(model, modules_to_save)
    values, named = example_inputs(model, args, kwargs)
    seen = look(model, values, named)
    detection = detect(seen.view)
    plan = Planner(seen, replace(detection, model=type(model).__name__)).plan(config)
    base = sum(parameter.numel() for parameter in model.parameters())
    notes = list(plan.detection.notes)
    before = traced(model, values, named)
    record = Record(State(), config=config.to_json(), saved=saved, adapter=adapter)
    ways: dict[str, str] = {}
    try:
        for block in plan.blocks:
            ways |= _install(model, block, record)
        _freeze(model, record)
        model.__dict__[RECORD] = record
        if any(p.spec.has_pa for p in plan.plans):
            model.register_forward_pre_hook(forget)
            model.register_forward_hook(forget_after, always_call=True)
        if before is None:
            notes.append("not checked against the model before: its forward does not run without values.")
        else:
            notes += Proof(model, record, plan, seen, (values, named)).of(before, ways)
    except BaseException:
        _undo(model, record)
        raise
    return AttachReport(plan.detection, plan.plans, plan.skipped, base, ways, tuple(notes))


def detach(model: nn.Module) -> nn.Module:
    """Takes LAuReL out of *model*, in place: class, names, hooks and what trained are as before :func:`attach`.

    Modules of ``modules_to_save`` keep what they learned.

    Args:
        model: an attached model, or anything that holds one (a peft model, a wrapper).

    Returns:
        *model*.

    Raises:
        ModelError: nothing is attached.
    """
    for holder, record in records(model, "detach"):
        _undo(holder, record)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Runs the base inside: the attached model without its residuals, for teachers, KL terms and comparisons.

    Raises:
        ModelError: nothing is attached.
    """
    found = records(model, "disable")
    before = [record.state.mode for _, record in found]
    try:
        for _, record in found:
            record.state.mode = OFF
        yield model
    finally:
        for (_, record), mode in zip(found, before, strict=True):
            record.state.mode = mode


def records(model: nn.Module, what: str) -> list[tuple[nn.Module, Record]]:
    """Returns the attached models inside *model*.

    Raises:
        ModelError: there is none to *what*.
    """
    found = [(module, record) for module in model.modules() if (record := module.__dict__.get(RECORD)) is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} has no LAuReL attached, so there is nothing to {what}: attach first.")
    return found


def _refuse_other(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a live nn.Module, found {type(model).__name__}; lg.transform takes other forms.")
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule)) or type(model).__name__ == "OptimizedModule":
        raise ModelError(
            f"{type(model).__name__} is compiled or traced already: attach to the nn.Module that it was made from "
            "(lg.transform takes GraphModules)."
        )
    if any(isinstance(module, LaurelResidual) for module in model.modules()):
        raise RewriteError(
            f"{type(model).__name__} holds LAuReL residuals already: detach them first, or load another set beside them "
            "with load_adapter(..., adapter=NAME)."
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
    return tuple(
        name for name, _ in model.named_parameters() if any(name.startswith(f"{path}.") for path in found)
    )


# Putting in and taking out --------------------------------------------------------------------------------------------


def _install(model: nn.Module, plan: BlockPlan, record: Record) -> dict[str, str]:
    """Changes one block; returns the way of each of its sites."""
    block = plan.block
    own = type(block)
    _own_forward(block, record)
    way = REWRITTEN
    try:
        _assemble(plan)
        kind = live_class(own, Recipe(plan.node()))
    except UnrewritableError as error:
        way = f"{WATCHED}: {error}"
        kind = live_class(own, _watching(plan))
    for name, site in plan.residuals.items():
        spec = _with_dtype(site.spec, block, model)
        residual = LaurelResidual(spec, device=_device(block, model))
        block.add_module(name, residual.train(block.training))
    record.blocks.append((block, own, tuple(plan.residuals)))
    block.__dict__[ATTRIBUTE] = Block(tuple(plan.points), record.state)
    block.__class__ = kind
    for module, name, value in _fast_paths(model, block):
        record.attributes.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    return dict.fromkeys((site.spec.site for site in plan.residuals.values()), way)


def _watching(plan: BlockPlan) -> Recipe:
    paths = tuple((path, number) for number, path in enumerate(plan.paths))
    return Recipe(replace(plan.node(), points=()), paths)


def _own_forward(block: nn.Module, record: Record) -> None:
    """A forward that lies on the object itself hides the class's: one that is the class's own is taken away."""
    own = vars(block).get("forward")
    if own is None:
        return
    if getattr(own, "__self__", None) is block and getattr(own, "__func__", None) is type(block).forward:
        record.attributes.append((block, "forward", own))
        del vars(block)["forward"]
        return
    raise RewriteError(
        f"the forward of a {type(block).__name__} was replaced on the object itself, by {getattr(own, '__module__', own)}: "
        "attach before that (before accelerate's dispatch_model or device_map), then do it again."
    )


def _assemble(plan: BlockPlan) -> None:
    """Tries to rewrite every function on the way, so that none fails when it is first called."""
    nodes = [plan.node()]
    while nodes:
        node = nodes.pop()
        rewritten_code(code_of(node.code), node.points)
        nodes += [callee for _, _, callee in node.points if callee is not None]


def _fast_paths(model: nn.Module, block: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """What keeps torch's transformer layers from their fused shortcut, in which there is no add."""
    if isinstance(block, nn.TransformerEncoderLayer):
        yield block, "activation_relu_or_gelu", 0
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and block in module.layers and module.use_nested_tensor:
                yield module, "use_nested_tensor", False


def _with_dtype(spec: SiteSpec, block: nn.Module, model: nn.Module) -> SiteSpec:
    """The spec in an element type of the block's or model's own parameters: its join's, else the most frequent one."""
    for owner in (block, model):
        dtypes = [str(p.dtype).removeprefix("torch.") for p in owner.parameters() if p.dtype.is_floating_point]
        if dtypes:
            return spec if spec.dtype in dtypes else spec.with_dtype(max(set(dtypes), key=dtypes.count))
    return spec


def _device(block: nn.Module, model: nn.Module) -> torch.device | None:
    """Where the block's parameters are; residuals have values, so never on the meta device."""
    found = next((p.device for owner in (block, model) for p in owner.parameters()), None)
    return None if found is None or found.type == "meta" else found


def _freeze(model: nn.Module, record: Record) -> None:
    """Freezes the base; what peft put there goes on as it is."""
    new = {id(p) for block, _, names in record.blocks for name in names for p in block.get_submodule(name).parameters()}
    base = {name: p for name, p in model.named_parameters() if id(p) not in new}
    record.trained = tuple(name for name, p in base.items() if p.requires_grad)
    if not any(type(module).__module__.startswith("peft.") for module in model.modules()):
        for p in base.values():
            p.requires_grad_(False)
    for name in record.saved:
        base[name].requires_grad_(base[name].is_floating_point())


def _undo(model: nn.Module, record: Record) -> None:
    for block, own, names in record.blocks:
        live = type(block)
        if base_class(live) is not own:
            raise ModelError(
                f"a {own.__name__} has another class since attach ({live.__module__}.{live.__name__}, perhaps by "
                "fully_shard or parametrize): undo that first."
            )
    for block, own, names in record.blocks:
        live = type(block)
        block.__class__ = own
        block.__dict__.pop(ATTRIBUTE, None)
        for name in names:
            block._modules.pop(name, None)
        forward = vars(block).get("forward")
        if getattr(forward, "__func__", None) is live.forward:  # somebody laid the live one on the object
            del vars(block)["forward"]
    for module, name, value in reversed(record.attributes):
        setattr(module, name, value)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (forget, forget_after)]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    names = set(record.trained)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
        elif name in record.saved:
            parameter.requires_grad_(False)
    model.__dict__.pop(RECORD, None)


# Proof ----------------------------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """Shows that an attached model does what it did, and that every add which should call a residual does."""

    model: nn.Module
    record: Record
    plan: Plan
    seen: Seen
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]]

    def of(self, before: Trace, ways: dict[str, str]) -> list[str]:
        """Holds the attached model with its residuals off against the model before, operator by operator.

        In-place adds become adds that leave their memory alone; where something else reads that memory they write it.
        A block whose rewritten code misses an add is watched instead, which *ways* says then.

        Returns:
            What the user should know.

        Raises:
            RewriteError: the model would not compute what it did, or an add cannot be reached.
        """
        name = type(self.model).__name__
        now = self.run()
        difference = before.difference(now)
        if difference:
            for plan in self.plan.blocks:
                live: Block = plan.block.__dict__[ATTRIBUTE]
                live.points = tuple(replace(point, kept=True) for point in live.points)
            now = self.run()
            difference = before.difference(now)
        if now is None or difference:
            raise RewriteError(f"{name} would not compute what it did ({difference}); it is as it was.")
        if missed := self.missed(now):
            for plan in missed:
                plan.block.__class__ = live_class(base_class(type(plan.block)), _watching(plan))
                why = "what runs is not the code that was rewritten"
                ways |= {site.spec.site: f"{WATCHED}: {why}" for site in plan.residuals.values()}
            now = self.run()
            lost = plan.blocks if now is None else self.missed(now)
            if lost:
                raise RewriteError(
                    f"an add of a {base_class(type(lost[0].block)).__name__} (sites {', '.join(lost[0].sites)}) ran while "
                    f"{name} was looked at, and is not reached any more: leave these sites out (overrides=, off=True)."
                )
        return self.elsewhere()

    def run(self, training: bool = False) -> Trace | None:
        """The trace of the attached model with its residuals off."""
        self.record.state.mode = CHECK
        try:
            return traced(self.model, *self.inputs, self.record.state, training)
        finally:
            self.record.state.mode = ON

    def missed(self, now: Trace) -> list[BlockPlan]:
        """The blocks of which an add did not call as often as it ran when the model was looked at."""
        ran = Counter((id(event.block), event.path) for event in self.seen.order)
        return [
            plan
            for plan in self.plan.blocks
            if any(now.hits.get((id(plan.block), n), 0) != ran[id(plan.block), p] for n, p in enumerate(plan.paths))
        ]

    def elsewhere(self) -> list[str]:
        """Names the sites that the code does not pass in training mode."""
        now = self.run(training=True)
        if now is None:
            return []
        idle = [
            site
            for plan in self.plan.blocks
            if any((id(plan.block), number) not in now.hits for number in range(len(plan.paths)))
            for site in plan.sites
        ]
        return [f"in training mode the code takes another way and passes by {', '.join(idle)}."] if idle else []
