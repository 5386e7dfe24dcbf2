"""What a page tells about a model: its sites in numbers, what they learned by depth, what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laurel_graph.config import SiteSpec
from laurel_graph.detection import Residual
from laurel_graph.errors import DataError

Tensors = Mapping[SiteSpec, Mapping[str, Any]]


@dataclass(frozen=True)
class SiteRow:
    """The learned tensors of one site in numbers.

    Attributes:
        site: its name.
        variant: its variant.
        width: D.
        rank: r, or 0.
        parameters: how many it has.
        multiplications: for one row of D features, beside those of the original.
        alpha: α, or mean ± standard deviation over the channels; "" without RW.
        beta: β likewise.
        gamma: the k values of γ; "" without PA.
        product: ‖AB‖_F / sqrt(D); "" without LR.
        others: the tensors of other terms, each as its number or mean ± standard deviation.
    """

    site: str
    variant: str
    width: int
    rank: int
    parameters: int
    multiplications: int
    alpha: str
    beta: str
    gamma: str
    product: str
    others: str = ""


def site_row(spec: SiteSpec, tensors: Mapping[str, Any]) -> SiteRow:
    """Returns one site in numbers."""

    def spread(name: str) -> str:
        if name not in tensors:
            return ""
        values = np.asarray(tensors[name], np.float64)
        return f"{values:.4g}" if values.ndim == 0 else f"{values.mean():.4g} ± {values.std():.2g}"

    gamma = ", ".join(f"{value:.3g}" for value in np.asarray(tensors.get("gamma", ()), np.float64))
    further = [name for one in spec.terms if not one.has_kernels for name in one.tensors]
    return SiteRow(
        spec.site,
        spec.variant,
        spec.width,
        spec.rank,
        spec.parameter_count(),
        _multiplications(spec),
        spread("alpha"),
        spread("beta"),
        gamma,
        f"{product_size(spec, tensors):.3g}" if spec.has_lr else "",
        ", ".join(f"{name} {spread(name)}" for name in further),
    )


def product_size(spec: SiteSpec, tensors: Mapping[str, Any]) -> float:
    """Returns ‖AB‖_F / sqrt(D): the length of (xA)B for a random x of unit variance, per unit of x."""
    a, b = (np.asarray(tensors[name], np.float64) for name in "AB")
    return float(np.sqrt(np.sum((a.T @ a) * (b @ b.T)) / spec.width))  # the trace, without the product itself


def _multiplications(spec: SiteSpec) -> int:
    """Multiplications for one row: two for each low-rank factor's element, one for each feature that is scaled."""
    low_rank = 2 * spec.rank * spec.width
    earlier = spec.previous * (low_rank if spec.previous_map == "low-rank" else 0) + spec.previous * spec.width
    return 2 * spec.width * spec.has_rw + low_rank * spec.has_lr + earlier * spec.has_pa


@dataclass(frozen=True)
class Curve:
    """One learned quantity by depth.

    Attributes:
        name: what it is.
        start: where it starts.
        points: (depth, value, spread over the channels) of each site that has it.
    """

    name: str
    start: float
    points: tuple[tuple[int, float, float], ...]

    @property
    def furthest(self) -> float:
        """The largest distance from the start."""
        return max(abs(value - self.start) for _, value, _ in self.points)

    @property
    def mean(self) -> float:
        """The mean distance from the start."""
        return sum(abs(value - self.start) for _, value, _ in self.points) / len(self.points)

    @property
    def furthest_at(self) -> int:
        """The depth of the site that is furthest from the start."""
        return max(self.points, key=lambda point: abs(point[1] - self.start))[0]


def learned(tensors: Tensors) -> list[Curve]:
    """Returns each quantity that the sites learned, in depth order."""
    found: dict[str, tuple[float, list[tuple[int, float, float]]]] = {}

    def add(name: str, start: float, depth: int, value: Any) -> None:
        array = np.asarray(value, np.float64)
        found.setdefault(name, (start, []))[1].append((depth, float(array.mean()), float(array.std())))

    for depth, (spec, held) in enumerate(tensors.items()):
        for name, symbol in (("alpha", "α"), ("beta", "β")):
            if name in held:
                add(symbol, 1.0, depth, held[name])
        if spec.has_lr:
            add("size of AB", 0.0, depth, product_size(spec, held))
        start = 1.0 if spec.previous_map == "low-rank" else 0.0
        for j, value in enumerate(np.asarray(held.get("gamma", ()), np.float64)):
            add(f"γ{j + 1}", start, depth, value)
    return [Curve(name, start, tuple(points)) for name, (start, points) in found.items()]


@dataclass(frozen=True)
class Training:
    """How a training went, as ``laurel finetune --json`` printed it.

    Attributes:
        summary: one line.
        loss: the loss of each epoch.
        metric: the metric of each epoch; empty without validation data.
        name: what the metric is.
        before: the metric before training; ``None`` without validation data.
        after: the metric of the epoch that was kept; likewise.
        files: what was written: the tuned file, the adapter.
    """

    summary: str
    loss: tuple[float, ...]
    metric: tuple[float, ...]
    name: str
    before: float | None = None
    after: float | None = None
    files: tuple[str, ...] = ()


def read_training(path: str | Path) -> Training:
    """Reads what ``laurel finetune --json`` printed.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        printed = json.loads(Path(path).read_text(encoding="utf-8"))
        training = printed["training"]
        ends: tuple[float | None, float | None] = (None, None)
        files = tuple(str(printed[key]) for key in ("tuned", "adapter") if printed.get(key) is not None)
        history = training["history"]
        loss = tuple(float(each["loss"]) for each in history)
        metric = tuple(float(each["metric"]) for each in history if each.get("metric") is not None)
        name = str(training["metric"])
        summary = f"{int(training['steps']):,} steps in {int(training['epochs'])} epochs"
        if training["before"] and training["after"]:
            (before, _), (after, error) = training["before"], training["after"]
            ends = (float(before), float(after))
            summary += f"; {name} {ends[0]:.4g} before and {ends[1]:.4g} after"
            if error is not None:
                summary += f" (standard error {float(error):.2g})"
            summary += f", of epoch {int(training['best_epoch'])}"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected what `laurel finetune --json` printed.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: expected the JSON object that `laurel finetune --json` printed.") from error
    return Training(f"{summary}.", loss, metric, name, *ends, files)


def by_stream(residuals: Sequence[Residual]) -> dict[int, list[Residual]]:
    """Returns stream to its residual connections, in order."""
    streams: dict[int, list[Residual]] = {}
    for residual in residuals:
        streams.setdefault(residual.stream, []).append(residual)
    return streams
