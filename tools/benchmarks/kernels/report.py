"""What bench_kernels says of its rows: means and worst points of each variant, and a roofline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .points import RESNET50_JOINS
from .timing import Row

_LARGE = 64 << 10
"""Elements from which a plain residual is bound by memory."""


def summary(rows: Sequence[Row]) -> list[str]:
    """Returns a line on the machine, and lines for each variant, layout and dtype among *rows*."""
    copied, computed = [row.copy_gb_s for row in rows], [row.gflop_s for row in rows]
    lines = [
        f"copy {min(copied):.1f} to {max(copied):.1f} GB/s, "
        f"multiply-adds {min(computed):.0f} to {max(computed):.0f} GFLOP/s beside the points"
    ]
    for kind in dict.fromkeys((row.variant, row.layout, row.dtype) for row in rows):
        chosen = [row for row in rows if (row.variant, row.layout, row.dtype) == kind]
        lines += [f"{' '.join(kind)}, {line}" for line in _lines(chosen)]
    return lines


def _mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    for label, belongs in (
        ("rows <= 16", lambda row: row.rows <= 16),
        ("rows >= 64, r <= 32", lambda row: row.rows >= 64 and row.rank <= 32),
        ("rows >= 64, r >= 64", lambda row: row.rows >= 64 and row.rank >= 64),
    ):
        yield from _spread(f"{label}: body/fused", filter(belongs, rows), lambda row: row.body_over_fused)
    yield from _resnet50(rows)
    many = [row for row in rows if row.rows >= 256 and row.rank]
    yield from _spread("rows >= 256: share of the bound", many, lambda row: row.bound_us / row.fused_us)
    if rows[0].variant == "rw":
        yield from _beside_add(rows)
    yield from _spread(
        "rows >= 64: fused residual + ONNX Runtime's norm over norm-fused",
        [row for row in rows if row.rows >= 64],
        lambda row: row.separate_over_fused,
    )
    skips = [row.fused_over_skip_norm for row in rows if row.rank == 4 and row.fused_over_skip_norm is not None]
    if skips:
        yield f"r = 4: norm-fused over ONNX Runtime's skip norm at most {max(skips):.2f}"
    yield from _spread(
        f"rows >= 1024: one thread over {rows[0].threads}",
        [row for row in rows if row.rows >= 1024],
        lambda row: row.one_thread_over_fused,
    )


def _spread(label: str, rows: Iterable[Row], value: Callable[[Row], float | None]) -> Iterator[str]:
    found = [(v, row) for row in rows if (v := value(row)) is not None]
    if found:
        least, row = min(found, key=lambda pair: pair[0])
        at = f"{row.rows}x{row.D}" + (f" r = {row.rank}" if row.rank else "")
        yield f"{label} geometric mean {_mean([v for v, _ in found]):.2f}, least {least:.2f} ({at})"


def _resnet50(rows: Sequence[Row]) -> Iterator[str]:
    """One figure for the network: each shape counts as often as it has joins."""
    counts = {(positions, channels): count for positions, channels, count in RESNET50_JOINS}
    for rank in dict.fromkeys(row.rank for row in rows):
        found = {(row.rows, row.D): row.body_over_fused for row in rows if row.rank == rank}
        if rows[0].layout == "2d" and counts.keys() <= found.keys():
            ratios = [found[shape] for shape, count in counts.items() for _ in range(count)]
            yield f"r = {rank}: ResNet-50's {len(ratios)} joins, body/fused geometric mean {_mean(ratios):.2f}"


def _beside_add(rows: Sequence[Row]) -> Iterator[str]:
    large = [row.fused_over_add for row in rows if row.rows * row.D >= _LARGE]
    small = [row.fused_us - row.add_us for row in rows if row.rows * row.D < _LARGE]
    if large:
        yield f"rows x D >= 64 k: fused/Add geometric mean {_mean(large):.2f}, at most {max(large):.2f}"
    if small:
        yield f"rows x D < 64 k: fused - Add median {statistics.median(small):.2f} µs, at most {max(small):.2f} µs"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rates of all low-rank rows under the machine's highest roofline to a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    low_rank = [row for row in rows if row.rank]
    flops = [row.floor(math.inf, 1.0) for row in low_rank]
    intensity = [f / row.floor(1.0, math.inf) for f, row in zip(flops, low_rank, strict=True)]
    edge = np.geomspace(min(intensity, default=1) / 2, max(intensity, default=100) * 2, 100)
    roof = np.minimum(edge * max(row.copy_gb_s for row in rows), max(row.gflop_s for row in rows))
    axes.plot(edge, roof, color="black", label="bound")
    for name, color in (("body", "tab:orange"), ("fused", "tab:blue")):
        rates = [f / getattr(row, f"{name}_us") / 1e3 for f, row in zip(flops, low_rank, strict=True)]
        axes.scatter(intensity, rates, s=14, color=color, label=name, alpha=0.7)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
