"""Losses and metrics of fine-tuning.

A loss returns its sum over a batch and the weight to divide by (``total / weight`` is the mean). Kept apart, a batch
can be spread unevenly over processes and still give the very mean that one process would compute. A metric likewise
is a vector of sums over samples and a function of that vector, so it is the same however the data is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from laurel_graph.errors import ConfigError, DataError, near
from laurel_graph.tools.callables import guarded, is_reference, load_callable

Batch = Mapping[str, Tensor]
Loss = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]

LOSSES = ("cross_entropy", "causal_lm", "mse", "l1", "bce", "cosine", "distill")
METRICS = ("accuracy", "pearson", "perplexity", "loss")
IGNORED = -100
"""Class index of targets that do not count, as in torch."""

PAIR = ".2"
"""Data arrays ``NAME`` and ``NAME.2`` hold the two sides of a pair for model input ``NAME``."""


def _same_shape(output: Tensor, target: Tensor) -> Tensor:
    """Returns *target* in the output's type; ``(N,)`` and ``(N, 1)`` count as one shape."""
    if target.numel() == output.numel() and output.squeeze().shape == target.squeeze().shape:
        target = target.reshape(output.shape)
    if target.shape != output.shape:
        raise DataError(
            f"the target has shape {tuple(target.shape)}, but the output has {tuple(output.shape)}; "
            "this loss compares them element by element."
        )
    return target.to(output.dtype)


def _classes(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits ``(M, C)`` and classes ``(M,)`` from any layout with C last, or on axis 1 as in torch."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise DataError(f"cross_entropy needs integer class numbers as target, found {target.dtype}.")
    if target.ndim == output.ndim and target.shape[-1] == 1:
        target = target.squeeze(-1)
    if output.shape[:-1] == target.shape:
        logits = output
    elif output.ndim > 2 and (output.shape[0], *output.shape[2:]) == tuple(target.shape):
        logits = output.movedim(1, -1)
    else:
        raise DataError(
            f"cross_entropy needs one class number per row of the output: the output has shape "
            f"{tuple(output.shape)}, the target {tuple(target.shape)}."
        )
    classes, target = logits.shape[-1], target.long()
    counted = target[target != IGNORED]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise DataError(
            f"the target has class numbers from {int(counted.min())} to {int(counted.max())}, but the output has "
            f"{classes} classes (0 to {classes - 1}): number the classes from 0, or give the model another head "
            "(--head, how many classes)."
        )
    return logits.reshape(-1, classes), target.reshape(-1)


def _count(number: float, like: Tensor) -> Tensor:
    return torch.tensor(float(number), device=like.device)


def _cross_entropy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits, classes = _classes(output, target)
    total = F.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="sum")
    return total, (classes != IGNORED).sum().float()


def _causal_lm(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of each token against the token after it."""
    if output.ndim != 3 or output.shape[:2] != target.shape:
        raise DataError(
            f"causal_lm needs logits (N, L, C) and labels (N, L), which it shifts itself; found {tuple(output.shape)} "
            f"and {tuple(target.shape)}."
        )
    return _cross_entropy(output[:, :-1], target[:, 1:])


def _mse(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target = _same_shape(output, target).float()
    return F.mse_loss(output.float(), target, reduction="sum"), _count(output.numel(), output)


def _l1(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target = _same_shape(output, target).float()
    return F.l1_loss(output.float(), target, reduction="sum"), _count(output.numel(), output)


def _bce(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target = _same_shape(output, target).float()
    if target.numel() and (float(target.min()) < 0 or float(target.max()) > 1):
        raise DataError("bce needs targets from 0 to 1.")
    return F.binary_cross_entropy_with_logits(output.float(), target, reduction="sum"), _count(output.numel(), output)


def pair_similarity(output: Tensor) -> Tensor:
    """Returns the cosine ``(N,)`` of the two sides of each pair in ``(N, 2, ...)``."""
    return F.cosine_similarity(output[:, 0].flatten(1).float(), output[:, 1].flatten(1).float(), dim=1)


def _cosine(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    aligned = F.cosine_similarity(output.float().flatten(1), _same_shape(output, target).float().flatten(1), dim=1)
    return (1 - aligned).sum(), _count(len(output), output)


def _pair_cosine(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return _mse(pair_similarity(output), target)


_BUILT_IN: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "cross_entropy": _cross_entropy,
    "causal_lm": _causal_lm,
    "mse": _mse,
    "l1": _l1,
    "bce": _bce,
    "cosine": _cosine,
    "distill": _mse,
}


def build_loss(name: str, target: str, pairs: bool = False) -> Loss:
    """Returns the loss *name*.

    ========================  =====================================================================================
    ``cross_entropy``         logits ``(N, ..., C)`` or ``(N, C, ...)``, class numbers ``(N, ...)``, -100 is ignored
    ``causal_lm``             logits ``(N, L, C)``, tokens ``(N, L)``: each is held against the logits before it
    ``mse``, ``l1``           target of the output's shape
    ``bce``                   logits, targets from 0 to 1 of the output's shape
    ``cosine``                1 - cos(output, target) per sample; with pairs (cos(first, second) - target)²
    ``distill``               squared distance to the output that a teacher gave on the same sample
    ``package.module:name``   ``name(output, batch)`` returning the mean over the batch
    ========================  =====================================================================================

    Args:
        name: one of :data:`LOSSES` or a function's reference.
        target: name of the target among the data's arrays.
        pairs: the output is ``(N, 2, ...)``: two sides that the loss ``cosine`` compares with each other.

    Raises:
        ConfigError: no such loss, or a loss that does not go with pairs.
    """
    if is_reference(name):
        return _user_loss(name)
    if name not in _BUILT_IN:
        valid = f"one of {', '.join(LOSSES)} or package.module:function"
        raise ConfigError(f"loss = {name!r} is not valid: expected {valid}.{near(name, LOSSES)}")
    if pairs and name != "cosine":
        raise ConfigError(f"loss = {name!r} does not go with pairs of inputs (arrays named NAME{PAIR}): use cosine.")
    function = _pair_cosine if pairs else _BUILT_IN[name]
    return lambda output, batch: function(output, batch[target])


def _user_loss(reference: str) -> Loss:
    function = guarded(load_callable(reference, "loss"), reference, "loss")

    def loss(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        mean = function(output, batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1:
            found = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            raise ConfigError(f"loss = {reference!r} must return one number as a tensor, found {found}.")
        weight = _count(len(output), output)
        return mean.reshape(()) * weight, weight

    return loss


@dataclass(frozen=True)
class Metric:
    """A figure of merit that is a function of sums over samples.

    Attributes:
        name: what it is called.
        higher_is_better: whether a larger value is better.
        sums: (output, batch) to a float64 vector that adds up over batches and processes.
        value: that vector, summed, to (value, standard error or NaN).
    """

    name: str
    higher_is_better: bool
    sums: Callable[[Tensor, Batch], Tensor]
    value: Callable[[Tensor], tuple[float, float]]

    def better(self, new: float, old: float) -> bool:
        """Returns whether *new* is strictly better than *old*."""
        return new > old if self.higher_is_better else new < old


def _ratio(sums: Tensor) -> tuple[float, float]:
    right, count = sums.tolist()
    share = right / max(count, 1)
    return share, float((share * (1 - share) / max(count, 1)) ** 0.5)


def _accuracy(target: str, binary: bool) -> Metric:
    def sums(output: Tensor, batch: Batch) -> Tensor:
        if binary:
            wanted = _same_shape(output, batch[target])
            right, counted = (output > 0) == (wanted > 0.5), torch.ones_like(wanted, dtype=torch.bool)
        else:
            logits, classes = _classes(output, batch[target])
            counted = classes != IGNORED
            right = (logits.argmax(-1) == classes) & counted
        return torch.stack([right.sum(), counted.sum()]).double()

    return Metric("accuracy", True, sums, _ratio)


def _pearson(target: str, pairs: bool) -> Metric:
    def sums(output: Tensor, batch: Batch) -> Tensor:
        x = pair_similarity(output) if pairs else output
        y = _same_shape(x, batch[target]).double().flatten()
        x = x.double().flatten()
        return torch.stack([torch.ones_like(x).sum(), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])

    def value(sums: Tensor) -> tuple[float, float]:
        n, x, y, xx, yy, xy = sums.tolist()
        spread = (n * xx - x * x) * (n * yy - y * y)
        r = (n * xy - x * y) / spread**0.5 if spread > 0 else float("nan")
        return r, (1 - r * r) / max(n - 1, 1) ** 0.5

    return Metric("pearson", True, sums, value)


def _weighted(total: Tensor, weight: Tensor) -> Tensor:
    """The sums of one batch of which :func:`_mean` makes a mean and how far it is to be trusted."""
    t, w = total.double(), weight.double()
    return torch.stack([t, w, t * t, t * w, w * w, torch.ones_like(w)])


def _mean(sums: Tensor) -> tuple[float, float]:
    """The weighted mean, and its standard error as the batches' means scatter around it; NaN of fewer than two."""
    total, weight, tt, tw, ww, batches = sums.tolist()
    mean = total / max(weight, 1e-300)
    if batches < 2:
        return mean, float("nan")
    spread = max(tt - 2 * mean * tw + mean * mean * ww, 0.0) * batches / (batches - 1)
    return mean, float(spread**0.5 / max(weight, 1e-300))


def _perplexity(loss: Loss) -> Metric:
    def value(sums: Tensor) -> tuple[float, float]:
        found, error = _mean(sums)
        return (math.exp(found), math.exp(found) * error) if found < 700 else (math.inf, float("nan"))

    return Metric("perplexity", False, _mean_loss(loss).sums, value)


def _mean_loss(loss: Loss) -> Metric:
    return Metric("loss", False, lambda output, batch: _weighted(*loss(output, batch)), _mean)


def _user_metric(reference: str) -> Metric:
    function = guarded(load_callable(reference, "metric"), reference, "metric")

    def sums(output: Tensor, batch: Batch) -> Tensor:
        found = function(output, batch)
        try:
            mean = torch.as_tensor(found, dtype=torch.float64, device=output.device).reshape(())
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"metric = {reference!r} must return one number, found {found!r:.80}.") from None
        return _weighted(mean * len(output), torch.ones_like(mean) * len(output))

    return Metric(reference.rpartition(":")[2], True, sums, _mean)


def build_metric(name: str | None, loss_name: str, loss: Loss, target: str, pairs: bool = False) -> Metric:
    """Returns the metric *name*, or the one that goes with the loss.

    Args:
        name: ``accuracy``, ``pearson``, ``perplexity``, ``loss``, ``package.module:function`` (called with
            (output, batch), returning the mean over the batch, higher is better), or ``None``: accuracy for
            cross_entropy and bce, perplexity for causal_lm, pearson for pairs, else the loss.
        loss_name: name of the loss.
        loss: the loss.
        target: name of the target among the data's arrays.
        pairs: the output is ``(N, 2, ...)``.

    Raises:
        ConfigError: no such metric.
    """
    if name is None:
        usual = {"cross_entropy": "accuracy", "bce": "accuracy", "causal_lm": "perplexity"}
        name = usual.get(loss_name, "pearson" if pairs else "loss")
    if name == "accuracy":
        return _accuracy(target, binary=loss_name == "bce")
    if name == "pearson":
        return _pearson(target, pairs)
    if name == "perplexity":
        return _perplexity(loss)
    if name == "loss":
        return _mean_loss(loss)
    if is_reference(name):
        return _user_metric(name)
    valid = f"one of {', '.join(METRICS)} or package.module:function"
    raise ConfigError(f"metric = {name!r} is not valid: expected {valid}.{near(name, METRICS)}")
