"""What is trained: how a batch runs through a module, and what its output is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from laurel_graph.errors import ConfigError, LaurelError
from laurel_graph.tools.failures import model_failed

from .losses import PAIR, Loss, Metric


@dataclass(frozen=True)
class Task:
    """What is trained: how a batch runs through the module and what the output is held against.

    Attributes:
        inputs: names of the arrays that the module takes, in the order of its arguments.
        loss: see :mod:`laurel_graph.tools.finetuning.losses`.
        metric: what is measured on the validation data, before and after.
        output: which output to train on: an index of a tuple, a key or attribute, or ``None`` for the only one.
        keywords: pass the inputs by name.
        pairs: run the module on ``NAME`` and ``NAME.2`` and stack the two outputs to ``(N, 2, ...)``.
        fixed_batch: batch size that the module is built for; batches are cut and padded to it.
    """

    inputs: tuple[str, ...]
    loss: Loss
    metric: Metric
    output: int | str | None = None
    keywords: bool = False
    pairs: bool = False
    fixed_batch: int | None = None

    def forward(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the output for *batch*, ``(N, ...)``, or ``(N, 2, ...)`` for pairs."""
        sides = [tuple(batch[name] for name in self.inputs)]
        if self.pairs:
            sides.append(tuple(batch[name + PAIR] for name in self.inputs))
            if all(a.shape == b.shape for a, b in zip(*sides, strict=True)):  # one pass over both sides is faster
                both = self._run(module, tuple(torch.cat(two) for two in zip(*sides, strict=True)))
                stacked: Tensor = both.unflatten(0, (2, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]
                return stacked
        outputs = [self._run(module, side) for side in sides]
        return torch.stack(outputs, 1) if self.pairs else outputs[0]

    def _run(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        size, count = self.fixed_batch, len(inputs[0])
        if size is None or count == size:
            return self._call(module, inputs)
        padded = count + -count % size
        index = torch.arange(padded, device=inputs[0].device).clamp(max=count - 1)
        parts = [self._call(module, tuple(x[rows] for x in inputs)) for rows in index.split(size)]
        return torch.cat(parts)[:count]

    def _call(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        args, kwargs = self.arguments(inputs)
        # Without the call of fx.GraphModule itself, which prints a traceback of its own.
        run = partial(nn.Module.__call__, module) if isinstance(module, fx.GraphModule) else module
        try:
            result = run(*args, **kwargs)
        except LaurelError:
            raise
        except Exception as error:  # whatever the operators raise on data that does not fit
            raise model_failed(module, args, kwargs, error) from error
        return self.pick(result)

    def arguments(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Returns *inputs* as the positional and keyword arguments of the module."""
        return ((), dict(zip(self.inputs, inputs, strict=True))) if self.keywords else (inputs, {})

    def pick(self, result: Any) -> Tensor:
        """Returns the tensor that is trained on, out of what the module returned."""
        if self.output is None:
            value = result[0] if isinstance(result, (tuple, list)) and len(result) == 1 else result
        elif isinstance(self.output, int):
            items = result if isinstance(result, (tuple, list)) else (result,)
            value = items[self.output] if -len(items) <= self.output < len(items) else None
        else:
            value = result.get(self.output) if isinstance(result, Mapping) else getattr(result, self.output, None)
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"output = {self.output!r} picks no tensor out of the {type(result).__name__} that the model returned, "
                f"but {type(value).__name__}."
            )
        return value
