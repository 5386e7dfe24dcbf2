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
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laurel_graph.errors import TrainingError, VerificationError
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.task import Task
from laurel_graph.tools.finetuning.train_options import TrainOptions
from laurel_graph.torch_residual.module import parameter_groups, trainable_parameters

from .checkpoint import read_checkpoint, write_checkpoint
from .interrupts import Interrupted, Interrupts
from .nonfinite import explained, first_parameter
from .processes import Processes
from .progress import TrainingProgress
from .scalars import Scalars, check_tensorboard
from .state import TrainResult, TrainState, frozen_digest, peak_memory


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
        self.task, self.data, self.validation, self.options = task, data, validation, options
        self.processes = Processes(options.precision)
        self.module = module.to(self.processes.device).eval()
        if options.dropout:
            for child in module.modules():
                if isinstance(child, nn.modules.dropout._DropoutNd):
                    child.train()
        self.parameters: dict[str, nn.Parameter] = trainable_parameters(module)
        if not self.parameters:
            raise TrainingError("no parameter of the model trains; transform it first, or name initializers to train.")
        groups = parameter_groups(module, options.weight_decay)
        self.optimizer = self.processes.accelerator.prepare_optimizer(torch.optim.AdamW(groups, lr=options.lr))
        self.steps_per_epoch = math.ceil(len(data) / options.batch_size)
        self.steps = self.steps_per_epoch * options.epochs
        self.state = TrainState()
        self.best = self._parameters()
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
        quiet = options.quiet or not self.processes.is_main
        folder = options.tensorboard if self.processes.is_main else None
        check_tensorboard(folder)
        self.scalars = Scalars(folder, state.step)
        batch = min(options.batch_size, len(self.data))
        with TrainingProgress(self.steps, state.step, batch, quiet) as progress, self.scalars:
            if options.resume:
                where = f"continuing at step {state.step}" if resumed else "no checkpoint: starting from the beginning"
                progress.say(f"{options.checkpoint}: {where}")
            if not resumed and self.validation is not None:
                self._evaluate_before(progress)
            began, start = time.perf_counter(), state.step
            with Interrupts() as self.interrupts:
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
            peak_memory=peak_memory(self.processes.device),
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

    def _step(self, indices: np.ndarray[Any, Any]) -> bool:
        """Makes one optimizer step; returns whether a process was asked to stop."""
        state, options = self.state, self.options
        torch.manual_seed(_mix(options.seed, state.step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(state.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.processes.share(self.data, indices)
        total = weight = torch.zeros((), device=self.processes.device)
        if batch is not None:
            with self.processes.autocast():
                total, weight = self.task.loss(self.task.forward(self.module, batch), batch)
            if not total.requires_grad:
                raise TrainingError("the output does not depend on any parameter that trains; choose another output.")
            if math.isfinite(float(total.detach())):
                self.processes.accelerator.backward(total)
        if state.step == 0:
            self._note_unused()
        parameters, asked = list(self.parameters.values()), self.interrupts.asked
        loss, norm, weights, stop = self.processes.reduce(parameters, total, weight, asked, options.clip)
        if not math.isfinite(loss):
            reason = explained(self.module, self.task, batch, self.processes.autocast())
            raise TrainingError(f"step {state.step + 1}: {reason}")
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
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.scalars.add(state.step + 1, train__loss=loss, train__gradient_norm=float(norm), train__learning_rate=rate)
        if state.add(loss, weights):
            raise TrainingError(self._divergence(loss))
        return stop

    def _divergence(self, loss: float) -> str:
        """Says that the loss explodes, and names the parameter that moved most."""
        name = max(self.parameters, key=lambda key: float(self.parameters[key].detach().abs().max()))
        largest = float(self.parameters[name].detach().abs().max())
        return (
            f"step {self.state.step}: the loss diverges ({loss:.3g}, started at {self.state.first_losses[0]:.3g}); "
            f"{name!r} has grown to {largest:.3g}. Lower --lr."
        )

    def _evaluate(self) -> tuple[float, float]:
        """Returns the metric on the validation data and its standard error."""
        assert self.validation is not None
        return self.processes.evaluate(self.module, self.task, self.validation, self.options.batch_size)

    def _note_unused(self) -> None:
        if not self.processes.is_main:
            return
        unused = [name for name, p in self.parameters.items() if p.grad is None]
        if unused and len(unused) < len(self.parameters):
            self.state.notes.append(
                f"{len(unused)} of {len(self.parameters)} trained tensors do not reach this output and stay as they "
                f"are: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}."
            )

    def _evaluate_before(self, progress: TrainingProgress) -> None:
        assert self.validation is not None
        name = self.task.metric.name
        progress.say(f"validation {name} of {len(self.validation)} samples before training ...")
        self.state.before = self.state.best = list(self._evaluate())
        self.scalars.add(0, validation__metric=self.state.before[0])
        progress.say(f"{name} {self.state.before[0]:.4g}")
        progress.begin()

    def _end_epoch(self, progress: TrainingProgress) -> None:
        state = self.state
        entry = {"epoch": float(len(state.history) + 1), "loss": state.total / max(state.weight, 1e-30)}
        state.total = state.weight = 0.0
        line = f"epoch {len(state.history) + 1}/{self.options.epochs}  loss {entry['loss']:.4g}"
        if self.validation is not None:
            value, error = self._evaluate()
            entry["metric"] = value
            self.scalars.add(state.step, validation__metric=value)
            line += f"  validation {self.task.metric.name} {value:.4g}"
            if state.best is None or self.task.metric.better(value, state.best[0]) or not math.isfinite(state.best[0]):
                state.best, state.best_epoch, self.best = [value, error], len(state.history) + 1, self._parameters()
        state.history.append(entry)
        self.scalars.add(state.step, train__epoch_loss=entry["loss"])
        progress.epoch(line, state.step)

    def _save(self) -> None:
        if self.options.checkpoint is None or not self.processes.is_main:
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
        self.best = {name: tensor.to(self.processes.device) for name, tensor in held["best"].items()}
        self.optimizer.load_state_dict(held["optimizer"])


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _mix(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, 2, step, process]).generate_state(1, np.uint64)[0] >> np.uint64(1))
