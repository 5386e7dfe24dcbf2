"""What an attached model remembers, and how blocks are changed and changed back."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from laurel_graph.errors import ModelError, RewriteError
from laurel_graph.torch_residual.module import LaurelResidual

from .bytecode import UnrewritableError, rewritten_code
from .classes import Recipe, base_class, live_class
from .joins import ATTRIBUTE, Block, Point, State, forget, forget_after
from .plan import REWRITTEN, WATCHED, BlockPlan
from .watch import code_of

RECORD = f"{ATTRIBUTE}_record"
"""The attribute of an attached model that holds its :class:`Record`."""


MERGED = f"{ATTRIBUTE}_merged"
"""The attribute of a model whose weights have taken an α in."""


@dataclass
class Part:
    """What one adapter does to one block.

    Attributes:
        block: the module.
        own: its class.
        recipe: what makes its live class.
        points: what its adds stand for.
        residuals: the new submodules by name.
        home: the module that gets them: the block itself, unless its code runs whatever submodules it has.
    """

    block: nn.Module
    own: type[nn.Module]
    recipe: Recipe
    points: tuple[Point, ...]
    residuals: dict[str, LaurelResidual]
    home: nn.Module


@dataclass
class Adapter:
    """One set of residuals.

    Attributes:
        parts: what it does to each block.
        config: the JSON form of its config.
        saved: the parameters that are saved with it (``modules_to_save``): name to value while it is not active.
        base: what these were before, by name.
    """

    parts: list[Part]
    config: str
    saved: dict[str, torch.Tensor | None] = field(default_factory=dict)
    base: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def has_memory(self) -> bool:
        """Whether a join reads what earlier ones computed."""
        return any(r.spec.has_pa for part in self.parts for r in part.residuals.values())


@dataclass
class Record:
    """What an attached model remembers, to be the same again after ``detach``.

    Attributes:
        state: what its blocks share.
        adapters: all sets of residuals by name.
        active: the name of the one that is in place.
        attributes: what else was changed: module, name, value before.
        trained: names of the parameters that trained before.
        inputs: the example inputs without their values.
    """

    state: State
    adapters: dict[str, Adapter]
    active: str
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    trained: tuple[str, ...] = ()
    inputs: Any = ((), {})

    @property
    def adapter(self) -> Adapter:
        """The set of residuals that is in place."""
        return self.adapters[self.active]


def records(model: nn.Module, what: str) -> list[tuple[nn.Module, Record]]:
    """Returns the attached models inside *model*.

    Raises:
        ModelError: there is none to *what*.
    """
    found = [(module, record) for module in model.modules() if (record := module.__dict__.get(RECORD)) is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} has no LAuReL attached, so there is nothing to {what}: attach first.")
    return found


def refuse_merged(model: nn.Module, what: str) -> None:
    """Makes sure that no weights of *model* have taken an α in: they are neither its base nor the tuned model alone.

    Raises:
        ModelError: ``lg.merge`` has folded something; *what* is what cannot be done any more.
    """
    if any(MERGED in module.__dict__ for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} was merged: part of what its residuals learned is in its own weights, so {what}. "
            "Save the whole with its state_dict; for the base or the adapter alone make the model anew, or save the "
            "adapter before merge."
        )


def part_of(plan: BlockPlan, residuals: dict[str, LaurelResidual]) -> tuple[Part, str]:
    """Returns what is done to one block, and the way in which its adds are reached."""
    own = base_class(type(plan.block))
    way, recipe = REWRITTEN, Recipe(plan.node())
    try:
        _assemble(plan)
        live_class(own, recipe)
    except UnrewritableError as error:
        way, recipe = f"{WATCHED}: {error}", _watching(plan)
    return Part(plan.block, own, recipe, tuple(plan.points), residuals, plan.home), way


def watch(record: Record, plan: BlockPlan) -> None:
    """Lets a block in place find its adds while it runs."""
    for part in record.adapter.parts:
        if part.block is plan.block:
            part.recipe = _watching(plan)
            part.block.__class__ = live_class(part.own, part.recipe)


def _watching(plan: BlockPlan) -> Recipe:
    paths = tuple((path, number) for number, path in enumerate(plan.paths))
    return Recipe(replace(plan.node(), points=()), paths)


def _assemble(plan: BlockPlan) -> None:
    """Tries to rewrite every function on the way, so that none fails when it is first called."""
    nodes = [plan.node()]
    while nodes:
        node = nodes.pop()
        rewritten_code(code_of(node.code), node.points)
        nodes += [callee for _, _, callee in node.points if callee is not None]


def put_in(model: nn.Module, record: Record) -> None:
    """Puts the active adapter in place."""
    adapter = record.adapter
    for part in adapter.parts:
        block = part.block
        _own_forward(block, record)
        device, dtype = place_of(block, model)
        for name, residual in part.residuals.items():
            part.home.add_module(name, residual.to(device, dtype).train(block.training))
            residual.requires_grad_(True)
        block.__dict__[ATTRIBUTE] = Block(part.points, record.state, None if part.home is block else part.home)
        block.__class__ = live_class(part.own, part.recipe)
        _follow(block)
        _avoid_fast_paths(model, block, record)
    if adapter.has_memory and forget not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(forget)
        model.register_forward_hook(forget_after, always_call=True)
    names = dict(model.named_parameters())
    for name, value in adapter.saved.items():
        parameter = names[name]
        adapter.base.setdefault(name, parameter.detach().clone())
        if value is not None:
            with torch.no_grad():
                parameter.copy_(value)
            adapter.saved[name] = None
        parameter.requires_grad_(parameter.is_floating_point())


def take_out(model: nn.Module, record: Record, *, learned: bool = False) -> None:
    """Takes the active adapter out of its place; it keeps its values.

    The parameters that are saved with it are those of the base again, unless they are to stay as *learned*.
    """
    adapter = record.adapter
    for part in adapter.parts:
        if base_class(type(part.block)) is not part.own:
            live = type(part.block)
            raise ModelError(
                f"a {part.own.__name__} has another class since attach ({live.__module__}.{live.__name__}, perhaps by "
                "fully_shard or parametrize): undo that first."
            )
    for part in adapter.parts:
        block, live = part.block, type(part.block)
        block.__class__ = part.own
        _follow(block)
        block.__dict__.pop(ATTRIBUTE, None)
        for name in part.residuals:
            part.home._modules.pop(name, None)
        if getattr(vars(block).get("forward"), "__func__", None) is live.forward:  # laid on the object meanwhile
            del vars(block)["forward"]
    for module, name, value in reversed(record.attributes):
        setattr(module, name, value)
    record.attributes.clear()
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is forget]:
        del model._forward_pre_hooks[key]
    for key in [key for key, hook in model._forward_hooks.items() if hook is forget_after]:
        del model._forward_hooks[key]
        model._forward_hooks_always_called.pop(key, None)
    record.state.values.clear()
    names = dict(model.named_parameters())
    for name in adapter.saved:
        adapter.saved[name] = names[name].detach().clone()
        names[name].requires_grad_(False)
        if not learned and name in adapter.base:
            names[name].copy_(adapter.base[name])


def undo(model: nn.Module, record: Record) -> None:
    """Makes *model* what it was before it was attached to."""
    take_out(model, record, learned=True)
    names = dict(model.named_parameters())
    for name in record.trained:
        if name in names:
            names[name].requires_grad_(True)
    model.__dict__.pop(RECORD, None)


def place_of(block: nn.Module, model: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Where the residuals of a block live, and of what type they are: as its parameters, or the model's.

    Residuals have values, so they are never on the meta device.
    """
    hooked = getattr(vars(block).get("_hf_hook"), "execution_device", None)
    for owner in (block, model):
        found = [p for p in owner.parameters() if p.is_floating_point() and not _is_ours(p, owner)]
        if found:
            dtypes = [p.dtype for p in found]
            device = found[0].device if hooked is None else torch.device(hooked)
            return (None if device.type == "meta" else device), max(dict.fromkeys(dtypes), key=dtypes.count)
    return None, None


def _is_ours(parameter: nn.Parameter, owner: nn.Module) -> bool:
    return any(parameter is p for m in owner.modules() if isinstance(m, LaurelResidual) for p in m.parameters())


_BENEATH = "_old_forward"
"""Where accelerate keeps the forward that its hook goes around, which moves weights and inputs between devices."""


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Takes the forwards that accelerate laid on modules away for a while; what they go around runs by itself.

    Weights that such a hook keeps elsewhere are on the meta device meanwhile.
    """
    held = [vars(module) for module in model.modules() if "_hf_hook" in vars(module) and _BENEATH in vars(module)]
    laid = [(values, values.pop("forward")) for values in held if "forward" in values]
    try:
        yield
    finally:
        for values, forward in laid:
            values["forward"] = forward


def _follow(block: nn.Module) -> None:
    """Lets a hook of accelerate around *block* go around the forward of the class that the block has now."""
    beneath = vars(block).get(_BENEATH)
    if getattr(beneath, "__self__", None) is block:
        vars(block)[_BENEATH] = types.MethodType(type(block).forward, block)


def _own_forward(block: nn.Module, record: Record) -> None:
    """A forward that lies on the object itself hides the class's: one that is the class's own is taken away."""
    hooked = _BENEATH in vars(block)
    own = vars(block).get(_BENEATH if hooked else "forward")
    if own is None:
        return
    if getattr(own, "__self__", None) is block and getattr(own, "__func__", None) is type(block).forward:
        if hooked:
            return
        record.attributes.append((block, "forward", own))
        del vars(block)["forward"]
        return
    who = getattr(own, "__module__", type(own).__name__)
    raise RewriteError(
        f"the forward of a {type(block).__name__} was replaced on the object itself, by {who}: attach before "
        "that, then do it again."
    )


def _avoid_fast_paths(model: nn.Module, block: nn.Module, record: Record) -> None:
    """Keeps torch's transformer layers from their fused shortcut, in which there is no add."""
    if not isinstance(block, nn.TransformerEncoderLayer):
        return
    found: list[tuple[nn.Module, str, Any]] = [(block, "activation_relu_or_gelu", 0)]
    found += [
        (module, "use_nested_tensor", False)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder) and block in module.layers and module.use_nested_tensor
    ]
    for module, name, value in found:
        record.attributes.append((module, name, getattr(module, name)))
        setattr(module, name, value)
