"""The training loop: any module of which some parameters train, named arrays, one loss; one process or many.

The run is a function of its options, its data and its seed: the order of the samples comes from (seed, epoch), the
random numbers of a step from (seed, step), the learning rate from the step. A checkpoint therefore holds only tensors
and counters, and a run that continues from one computes the same bits as a run that never stopped (same machine, same
number of threads and processes).

Several processes (torchrun, accelerate launch) share each batch; what they add up in one reduction a step is the
gradient of the sum over samples, and the mean is taken afterwards, so the effective batch is that of one process.
"""

from __future__ import annotations

import hashlib
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laurel_graph.errors import DependencyError, TrainingError, VerificationError
from laurel_graph.module import parameter_groups, trainable_parameters

from .checkpoint import read_checkpoint, write_checkpoint
from .data import Data
from .nonfinite import first_parameter, first_value, is_finite
from .progress import TrainingProgress
from .task import Task
from .train_options import TrainOptions

DIVERGED = 100.0
"""A smoothed loss this many times the largest of the first :data:`WINDOW` steps counts as divergence."""
WINDOW = 10
EXPLODED = 1e6
"""A loss this many times the first one counts as divergence within those steps."""


class Interrupted(TrainingError):
    """Training was stopped by Ctrl-C, after its checkpoint was written."""

    exit_code = 130


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
class _State:
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


def frozen_digest(module: nn.Module) -> str:
    """Returns a SHA-256 over the bits of every parameter that does not train and every buffer of *module*."""
    digest = hashlib.sha256()
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        bits = tensor.detach().cpu().contiguous()
        digest.update(bits.flatten().view(torch.uint8).numpy().tobytes() if bits.numel() else b"")
    return digest.hexdigest()


def train(
    module: nn.Module, task: Task, data: Data, validation: Data | None = None, options: TrainOptions | None = None
) -> TrainResult:
    """Trains the parameters of *module* that require gradients, in place; every other tensor keeps its bits.

    With validation data the parameters of the best epoch are the ones left in *module*.

    Args:
        module: moved to the accelerator's device; runs in evaluation mode (see :attr:`TrainOptions.dropout`).
        task: inputs, output, loss and metric.
        data: training data.
        validation: data for the metric, or ``None``.
        options: see :class:`TrainOptions`.

    Raises:
        TrainingError: nothing trains or receives a gradient, a value is not finite (the message names the step and the
            tensor), or the loss diverges.
        Interrupted: Ctrl-C; the checkpoint holds the last step.
        DependencyError: accelerate is not installed.
        VerificationError: a frozen tensor changed.
    """
    return _Run(module, task, data, validation, options or TrainOptions()).go()


class _Run:
    def __init__(
        self, module: nn.Module, task: Task, data: Data, validation: Data | None, options: TrainOptions
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise DependencyError("fine-tuning needs accelerate: pip install laurel-graph[finetune].") from error
        self.task, self.data, self.validation, self.options = task, data, validation, options
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.device: torch.device = self.accelerator.device
        self.module = module.to(self.device).eval()
        if options.dropout:
            for child in module.modules():
                if isinstance(child, nn.modules.dropout._DropoutNd):
                    child.train()
        self.parameters: dict[str, nn.Parameter] = trainable_parameters(module)
        if not self.parameters:
            raise TrainingError("no parameter of the model trains; transform it first, or name initializers to train.")
        groups = parameter_groups(module, options.weight_decay)
        self.optimizer = self.accelerator.prepare_optimizer(torch.optim.AdamW(groups, lr=options.lr))
        self.steps_per_epoch = math.ceil(len(data) / options.batch_size)
        self.steps = self.steps_per_epoch * options.epochs
        self.state = _State()
        self.best = self._parameters()
        self.interrupted = False
        self.order: tuple[int, np.ndarray[Any, Any]] = (-1, np.empty(0, np.int64))

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _identity(self) -> dict[str, str]:
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        digest = hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:16]
        identity = self.options.identity()
        identity |= {"training data": self.data.fingerprint(), "trained tensors": digest, "base": self.frozen[:16]}
        if self.validation is not None:
            identity["validation data"] = self.validation.fingerprint()
        return identity

    def go(self) -> TrainResult:
        options, state = self.options, self.state
        self.frozen = frozen_digest(self.module)
        self.identity = self._identity()
        resumed = options.resume and options.checkpoint is not None and options.checkpoint.exists()
        if resumed:
            self._load()
        elif self.validation is not None:
            state.before = state.best = list(self.evaluate())
        quiet = options.quiet or not self.accelerator.is_main_process
        began = time.perf_counter()
        with TrainingProgress(self.steps, state.step, options.batch_size, quiet) as progress, self._interrupts():
            if options.resume:
                where = f"continuing at step {state.step}" if resumed else "no checkpoint: starting from the beginning"
                progress.say(f"{options.checkpoint}: {where}")
            start = state.step
            self._loop(progress)
            rate = progress.rate(state.step) if state.step > start else 0.0
        seconds = time.perf_counter() - began
        if self.validation is not None:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(self.best[name])
        if frozen_digest(self.module) != self.frozen:
            raise VerificationError("a tensor that does not train has changed; nothing was written.")
        return TrainResult(
            steps=state.step,
            epochs=len(state.history),
            metric=self.task.metric.name,
            before=_pair(state.before),
            after=_pair(state.best),
            best_epoch=state.best_epoch if self.validation is not None else len(state.history),
            history=tuple(state.history),
            seconds=seconds,
            samples_per_second=rate,
            peak_memory=peak_memory(self.device),
            frozen=self.frozen,
            notes=tuple(state.notes),
        )

    def _loop(self, progress: TrainingProgress) -> None:
        state, options = self.state, self.options
        while state.step < self.steps and not self._out_of_patience():
            stop = self._step(self._next_indices())
            progress.step(state.step, state.smooth)
            if state.step % self.steps_per_epoch == 0:
                self._end_epoch(progress)
                self._save()
            elif stop or state.step % options.checkpoint_every == 0:
                self._save()
            if stop:
                advice = "" if options.checkpoint is None else f"; continue from {options.checkpoint} with --resume"
                raise Interrupted(f"stopped at step {state.step} of {self.steps}{advice}.")

    def _next_indices(self) -> np.ndarray[Any, Any]:
        """Returns the samples of the next step, over all processes."""
        epoch, place = divmod(self.state.step, self.steps_per_epoch)
        if self.order[0] != epoch:
            rng = np.random.default_rng([self.options.seed, 0, epoch])
            self.order = (epoch, rng.permutation(len(self.data)))
        size = self.options.batch_size
        return self.order[1][place * size : (place + 1) * size]

    def _out_of_patience(self) -> bool:
        patience = self.options.patience
        return (
            patience is not None
            and self.validation is not None
            and len(self.state.history) - self.state.best_epoch >= patience
        )

    def _share(self, indices: np.ndarray[Any, Any]) -> dict[str, Tensor] | None:
        """Returns this process's share of a batch, or ``None`` if there is nothing left for it."""
        share = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        if not len(share):
            return None
        return {name: torch.from_numpy(a).to(self.device) for name, a in self.data.batch(share).items()}

    def _step(self, indices: np.ndarray[Any, Any]) -> bool:
        """Makes one optimizer step; returns whether a process was asked to stop."""
        state, options = self.state, self.options
        torch.manual_seed(_mix(options.seed, state.step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(state.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        batch = self._share(indices)
        total = weight = torch.zeros((), device=self.device)
        if batch is not None:
            with self.accelerator.autocast():
                total, weight = self.task.loss(self.task.forward(self.module, batch), batch)
            if not total.requires_grad:
                raise TrainingError("the output does not depend on any parameter that trains; choose another output.")
            if math.isfinite(float(total.detach())):
                self.accelerator.backward(total)
        if state.step == 0:
            self._note_unused()
        loss, norm, weights, stop = self._reduce(total, weight)
        if not math.isfinite(loss):
            raise TrainingError(self._blame(batch))
        if not math.isfinite(norm):
            name = first_parameter(self.module, gradients=True) or "a gradient of another process"
            raise TrainingError(
                f"step {state.step + 1}: the gradient of {name!r} is not finite. Nothing of this step was applied; "
                "lower --lr or check the data."
            )
        if state.step == 0 and norm == 0:
            raise TrainingError(
                "step 1: every gradient is zero, so nothing would be learned. A model that is distilled from itself "
                "already equals its teacher: give another teacher."
            )
        self.optimizer.step()
        state.step += 1
        state.total, state.weight = state.total + loss * weights, state.weight + weights
        self._watch(loss)
        return stop

    def _reduce(self, total: Tensor, weight: Tensor) -> tuple[float, float, float, bool]:
        """Adds gradients, loss and weight up over the processes; leaves the mean's clipped gradient in place.

        Returns the mean loss, the norm of the gradient before clipping, the weight and whether to stop.
        """
        parameters = list(self.parameters.values())
        parts = [torch.zeros_like(p).float() if p.grad is None else p.grad.float() for p in parameters]
        tail = torch.stack([total.detach().float(), weight.float(), torch.full_like(weight, self.interrupted).float()])
        flat = torch.cat([*(part.flatten() for part in parts), tail])
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat, reduction="sum")
        loss_sum, weights, stop = flat[-3:].tolist()
        gradient = flat[:-3] / max(weights, 1e-30)
        norm = float(gradient.norm())
        if self.options.clip and norm > self.options.clip:
            gradient = gradient * (self.options.clip / norm)
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            if p.grad is not None or self.accelerator.num_processes > 1:
                p.grad = part.view(p.shape).to(p.dtype)
        return loss_sum / max(weights, 1e-30), norm, weights, stop > 0

    def _note_unused(self) -> None:
        if not self.accelerator.is_main_process:
            return
        unused = [name for name, p in self.parameters.items() if p.grad is None]
        if unused and len(unused) < len(self.parameters):
            self.state.notes.append(
                f"{len(unused)} of {len(self.parameters)} trained tensors do not reach this output and stay as they "
                f"are: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}."
            )

    def _blame(self, batch: Mapping[str, Tensor] | None) -> str:
        """Says which tensor made the loss of this step NaN or infinite."""
        where, advice = f"step {self.state.step + 1}: the loss is not finite", "Nothing of this step was applied"
        if batch is None:
            return f"{where} in another process. {advice}."
        for name, tensor in batch.items():
            if not is_finite(tensor):
                return f"{where}: the data array {name!r} holds NaN or infinity in this batch. {advice}."
        if parameter := first_parameter(self.module):
            return f"{where}: the parameter {parameter!r} is not finite. {advice}; lower --lr."
        inputs = tuple(batch[name] for name in self.task.inputs)
        with torch.no_grad(), self.accelerator.autocast():
            value = first_value(self.module, *self.task.arguments(inputs))
        if value:
            return f"{where}: {value!r} is the first value that is not finite. {advice}; lower --lr or check the data."
        return f"{where}, though the output is; check the targets and the loss function. {advice}."

    def _watch(self, loss: float) -> None:
        """Stops a run whose loss explodes, naming the parameter that moved most."""
        state = self.state
        state.smooth = loss if state.step == 1 else 0.9 * state.smooth + 0.1 * loss
        if len(state.first_losses) < WINDOW:
            state.first_losses.append(abs(loss))
            diverges = loss > EXPLODED * max(1.0, state.first_losses[0])
        else:
            diverges = state.smooth > DIVERGED * max(1.0, *state.first_losses)
        if diverges:
            name = max(self.parameters, key=lambda key: float(self.parameters[key].detach().abs().max()))
            largest = float(self.parameters[name].detach().abs().max())
            raise TrainingError(
                f"step {state.step}: the loss diverges ({loss:.3g}, started at {state.first_losses[0]:.3g}); "
                f"{name!r} has grown to {largest:.3g}. Lower --lr."
            )

    def _end_epoch(self, progress: TrainingProgress) -> None:
        state = self.state
        entry = {"epoch": float(len(state.history) + 1), "loss": state.total / max(state.weight, 1e-30)}
        state.total = state.weight = 0.0
        line = f"epoch {len(state.history) + 1}/{self.options.epochs}  loss {entry['loss']:.4g}"
        if self.validation is not None:
            value, error = self.evaluate()
            entry["metric"] = value
            line += f"  validation {self.task.metric.name} {value:.4g}"
            if state.best is None or self.task.metric.better(value, state.best[0]) or not math.isfinite(state.best[0]):
                state.best, state.best_epoch, self.best = [value, error], len(state.history) + 1, self._parameters()
        state.history.append(entry)
        progress.epoch(line, state.step)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Returns the metric on the validation data and its standard error."""
        assert self.validation is not None
        rank, world, size = self.accelerator.process_index, self.accelerator.num_processes, self.options.batch_size
        mine = np.arange(len(self.validation))[rank::world]
        sums: Tensor | None = None
        share = max(1, size // world)
        for start in range(0, max(len(mine), 1), share):
            indices = mine[start : start + share]
            batch = self.validation.batch(indices if len(indices) else [0])
            tensors = {name: torch.from_numpy(a).to(self.device) for name, a in batch.items()}
            with self.accelerator.autocast():
                part = self.task.metric.sums(self.task.forward(self.module, tensors), tensors)
            part = part if len(indices) else torch.zeros_like(part)
            sums = part if sums is None else sums + part
        if world > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        assert sums is not None
        return self.task.metric.value(sums)

    def _save(self) -> None:
        if self.options.checkpoint is None or not self.accelerator.is_main_process:
            return
        state = {
            "state": dict(vars(self.state)),
            "parameters": {name: t.cpu() for name, t in self._parameters().items()},
            "best": {name: t.cpu() for name, t in self.best.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(self.options.checkpoint, state, self.identity)

    def _load(self) -> None:
        assert self.options.checkpoint is not None
        held = read_checkpoint(self.options.checkpoint, self.identity)
        for name, value in held["state"].items():
            setattr(self.state, name, value)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(held["parameters"][name])
        self.best = {name: tensor.to(self.device) for name, tensor in held["best"].items()}
        self.optimizer.load_state_dict(held["optimizer"])

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Turns the first Ctrl-C into a stop after the current step; the second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _mix(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, 2, step, process]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def peak_memory(device: torch.device) -> int:
    """Returns bytes: the largest resident set of this process so far, or what was allocated on a CUDA device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
