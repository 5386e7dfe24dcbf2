"""What the processes of a run do together: each takes a share of every batch; sums over samples are added up."""

from __future__ import annotations

import atexit
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laurel_graph.tools.dependencies import missing
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.task import Task


def _leave() -> None:
    """Leaves the group, and lets its threads drop the last tensors that they reduced.

    One that does so while the interpreter is being taken down aborts the process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.2)


class Processes:
    """This process and the others of the run; often there are none.

    Attributes:
        accelerator: accelerate's object, which knows them.
        device: where this process computes.
        rank: number of this process.
        count: number of processes.

    Args:
        precision: accelerate's name of the mixed precision, "no" for none.

    Raises:
        DependencyError: accelerate is not installed.
    """

    def __init__(self, precision: str) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise missing("fine-tuning", "accelerate") from error
        self.accelerator = Accelerator(mixed_precision=precision)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        if self.count > 1:
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return bool(self.accelerator.is_main_process)

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model runs in the chosen precision."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def share(self, data: Data, indices: NDArray[np.int64]) -> dict[str, Tensor] | None:
        """Returns this process's share of a batch, or ``None`` if there is nothing left for it."""
        mine = indices[self.rank :: self.count]
        return self._tensors(data.batch(mine)) if len(mine) else None

    def _tensors(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}

    def reduce(
        self, parameters: list[nn.Parameter], total: Tensor, weight: Tensor, stop: bool, clip: float
    ) -> tuple[float, float, float, bool]:
        """Adds gradients, loss and weight up over the processes; leaves the mean's clipped gradient in place.

        Args:
            parameters: what trains.
            total: the loss of this process's share, summed over its samples.
            weight: what that sum counts as.
            stop: whether this process was asked to stop.
            clip: largest norm of the gradient, 0 for no limit.

        Returns:
            The mean loss, the norm of the gradient before clipping, the weight and whether any process is to stop.
        """
        parts = [torch.zeros_like(p).float() if p.grad is None else p.grad.float() for p in parameters]
        tail = torch.stack([total.detach().float(), weight.float(), torch.full_like(weight, stop).float()])
        flat = torch.cat([*(part.flatten() for part in parts), tail])
        if self.count > 1:
            flat = self.accelerator.reduce(flat, reduction="sum")
        loss_sum, weights, stops = flat[-3:].tolist()
        gradient = flat[:-3] / max(weights, 1e-30)
        norm = float(gradient.norm())
        if clip and norm > clip:
            gradient = gradient * (clip / norm)
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            if p.grad is not None or self.count > 1:
                p.grad = part.view(p.shape).to(p.dtype)
        return loss_sum / max(weights, 1e-30), norm, weights, stops > 0

    @torch.no_grad()
    def evaluate(self, module: nn.Module, task: Task, data: Data, batch_size: int) -> tuple[float, float]:
        """Returns the metric on *data* and its standard error."""
        mine = np.arange(len(data))[self.rank :: self.count]
        sums: Tensor | None = None
        share = max(1, batch_size // self.count)
        for start in range(0, max(len(mine), 1), share):
            indices = mine[start : start + share]
            batch = self._tensors(data.batch(indices if len(indices) else [0]))
            with self.autocast():
                part = task.metric.sums(task.forward(module, batch), batch)
            part = part if len(indices) else torch.zeros_like(part)
            sums = part if sums is None else sums + part
        if self.count > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        assert sums is not None
        return task.metric.value(sums)
