"""What a training run is while it goes on, and what is known of it when it ends."""

from __future__ import annotations

import hashlib
import resource
import sys
from dataclasses import dataclass, field

import torch
from torch import nn

DIVERGED = 100.0
"""A smoothed loss this many times the largest of the first :data:`WINDOW` steps counts as divergence."""
WINDOW = 10
EXPLODED = 1e6
"""A loss this many times the first one counts as divergence within those steps."""


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        steps: optimizer steps made.
        epochs: passes over the data made.
        metric: name of the metric.
        before: (value, standard error) on the validation data before the first step; ``None`` without such data.
        after: the same with the parameters that were kept.
        best_epoch: the epoch (from 1) whose parameters were kept; 0 where the start was best.
        history: per epoch: ``epoch``, ``loss`` (mean over the epoch) and, with validation data, ``metric``.
        seconds: wall time of the steps of this process, without earlier parts of a resumed run.
        samples_per_second: rate of training.
        peak_memory: bytes: largest resident set of the process, or what was allocated on an accelerator.
        frozen: digest of every tensor that does not train, the same before and after.
        notes: sentences for the user.
    """

    steps: int
    epochs: int
    metric: str
    before: tuple[float, float] | None
    after: tuple[float, float] | None
    best_epoch: int
    history: tuple[dict[str, float], ...]
    seconds: float
    samples_per_second: float
    peak_memory: int
    frozen: str
    notes: tuple[str, ...] = ()


@dataclass
class TrainState:
    """What changes while training; a checkpoint is this and the tensors."""

    step: int = 0
    total: float = 0.0
    weight: float = 0.0
    first_losses: list[float] = field(default_factory=list)
    smooth: float = 0.0
    before: list[float] | None = None
    best: list[float] | None = None
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, loss: float, weight: float) -> bool:
        """Counts a step of mean *loss* over samples of total *weight*; returns whether the loss has exploded."""
        self.step += 1
        self.total, self.weight = self.total + loss * weight, self.weight + weight
        self.smooth = loss if self.step == 1 else 0.9 * self.smooth + 0.1 * loss
        if len(self.first_losses) < WINDOW:
            self.first_losses.append(abs(loss))
            return loss > EXPLODED * max(1.0, self.first_losses[0])
        return self.smooth > DIVERGED * max(1.0, *self.first_losses)


def frozen_digest(module: nn.Module) -> str:
    """Returns a SHA-256 over the bits of every parameter that does not train and every buffer of *module*."""
    digest = hashlib.sha256()
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        bits = tensor.detach().cpu().contiguous()
        digest.update(bits.flatten().view(torch.uint8).numpy().tobytes() if bits.numel() else b"")
    return digest.hexdigest()


def peak_memory(device: torch.device) -> int:
    """Returns bytes: the largest resident set of this process so far, or what was allocated on a CUDA device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
