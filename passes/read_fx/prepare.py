"""What a model must not do while its graph is taken: keep caches, take fused shortcuts, train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def set_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Puts *model* into eval (or training) mode; every layer has its own mode back afterwards."""
    modes = {layer: layer.training for layer in model.modules()}
    try:
        for layer in modes:  # the modules of torch.export refuse eval() and need none
            layer.training = training
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Gives every module of *model* its attributes back: a forward pass without values must leave nothing behind.

    Some models keep what they computed (position tables, masks), which would be a tensor without values.
    """
    before = [
        (layer, {key: (value, _copied(value)) for key, value in vars(layer).items()}) for layer in model.modules()
    ]
    try:
        yield
    finally:
        for layer, attributes in before:
            own = vars(layer)
            for key in [key for key in own if key not in attributes]:
                del own[key]
            for key, (value, copy) in attributes.items():
                own[key] = value
                if copy is not None:
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(copy)


def _copied(value: Any) -> Any:
    """A shallow copy of a container, ``None`` for anything else."""
    return value.copy() if isinstance(value, (dict, list, set)) else None


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Lets *model* compute its outputs alone, by its own code.

    Hugging Face models keep and return no key/value cache (whose class neither torch.export nor a graph knows), and
    torch's transformer layers take no fused shortcut, in which no add can be seen. All is as before afterwards.
    """
    configs = {id(config): config for config in _configs(model)}.values()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for config in configs:
            config.use_cache = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config in configs:
            config.use_cache = True


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yields the configurations of the parts of *model* that ask for a cache."""
    for layer in model.modules():
        config = getattr(layer, "config", None)
        if not isinstance(config, (str, Mapping)) and getattr(config, "use_cache", None) is True:
            yield config


def example_inputs(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and named example inputs, on the device of the model's parameters.

    Args:
        model: the model; where nothing is given and it has ``dummy_inputs`` (as those of Hugging Face), they are taken.
        args: one value, a tuple or list of them, or a mapping of names (what a tokenizer returns).
        kwargs: by name.
    """
    named = dict(kwargs or {})
    if isinstance(args, Mapping):
        named, args = {**args, **named}, ()
    values = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    if not values and not named and isinstance(given := getattr(model, "dummy_inputs", None), Mapping):
        named = dict(given)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1:
        device = devices.pop()
        values, named = _moved(values, device), _moved(named, device)
    return values, named


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return {key: _moved(item, device) for key, item in value.items()} if type(value) is dict else value
