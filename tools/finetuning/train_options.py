"""How to train: the options of the training loop, light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from laurel_graph.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("no", "bf16")
USUAL_RATES = (1e-6, 0.1)
"""Learning rates of AdamW outside of which a note says so."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: passes over the data.
        batch_size: samples per step, over all processes together.
        lr: the highest learning rate of AdamW.
        schedule: ``constant``, ``linear`` (to zero) or ``cosine`` (to zero), after the warm-up.
        warmup: share of the steps in which the rate rises from zero.
        weight_decay: of tensors that are no LAuReL parameters (a head); those have none.
        clip: largest norm of the gradient, 0 for no limit.
        seed: of the order of the samples and of every random number.
        patience: epochs without a better validation metric before it stops; by default it runs them all.
        dropout: whether dropout layers are active; everything else stays in evaluation mode.
        precision: ``no`` or ``bf16`` (autocast).
        checkpoint: file of the run's state; by default none.
        checkpoint_every: steps between two checkpoints; the end of an epoch always writes one.
        resume: continue from the checkpoint if it is there.
        tensorboard: folder to which loss, learning rate, gradient and metric go as TensorBoard scalars; needs
            tensorboard.
        quiet: no progress on stderr.

    Raises:
        ConfigError: naming the field, the value and the valid ones.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    patience: int | None = None
    dropout: bool = False
    precision: str = "no"
    checkpoint: Path | None = None
    checkpoint_every: int = 100
    resume: bool = False
    tensorboard: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        def check(name: str, valid: bool, expected: str) -> None:
            if not valid:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is not valid: expected {expected}.")

        for name in ("epochs", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            check(name, isinstance(value, int) and value >= 1, "an integer of at least 1")
        check("patience", self.patience is None or self.patience >= 1, "an integer of at least 1")
        check("seed", isinstance(self.seed, int) and self.seed >= 0, "an integer of at least 0")
        check("lr", math.isfinite(self.lr) and self.lr > 0, "a number above 0")
        check("warmup", 0 <= self.warmup < 1, "a share of at least 0 and below 1")
        check("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "a number of at least 0")
        check("clip", math.isfinite(self.clip) and self.clip >= 0, "a number of at least 0")
        check("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        check("resume", not self.resume or self.checkpoint is not None, "a checkpoint file to resume from")

    def identity(self) -> dict[str, str]:
        """Returns the options that decide about the result, as text: what a checkpoint must agree with."""
        free = ("checkpoint", "checkpoint_every", "resume", "tensorboard", "quiet")
        return {f.name: repr(getattr(self, f.name)) for f in fields(TrainOptions) if f.name not in free}

    def odd_rate(self) -> str | None:
        """Returns a sentence where the learning rate is far from what AdamW trains such tensors with."""
        low, high = USUAL_RATES
        if low <= self.lr <= high:
            return None
        effect = "training may diverge" if self.lr > high else "hardly anything may be learned"
        return f"--lr {self.lr:g} is far from the usual {low:g} to {high:g}: {effect}."

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of *step* (from 0) out of *steps*."""
        warmup = round(self.warmup * steps)
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(steps - warmup, 1)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        return self.lr
