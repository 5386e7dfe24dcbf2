"""The fused kernels beside their function bodies, a plain Add and the bound of the machine, point by point.

All forms of one point run in one process and take turns, so that whatever slows the machine down slows all of them.
Inputs and outputs are bound beforehand; where a node takes little time, a session has several of them, as a model
does. The bound is the larger of the bytes of x, f and y over the measured copy bandwidth and the operations of the
low-rank products over the measured rate of multiply-adds; both rates are measured before and after every point. With
several threads a session of one takes its turn too; a fused norm is compared with the fused residual followed by ONNX
Runtime's own norm, and with ONNX Runtime's fused norm of a plain residual. A summary ends the table.

    python -m laurel_graph.tools.benchmarks.kernels --rows 64 1024 --widths 768 --ranks 16 --variants rw+lr --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from laurel_graph import runtime

from .points import BYTES, RESNET50_JOINS, Point
from .report import plot, summary
from .timing import Machine, measure

ROWS = (1, 8, 16, 64, 256, 1024, 4096)
WIDTHS = (384, 768, 1024, 2048)
RANKS = (4, 16, 32, 64)


def _grid(args: argparse.Namespace) -> Iterator[Point]:
    for layout, dtype, variant in itertools.product(args.layouts, args.dtypes, args.variants):
        low_rank = any(part.startswith(("lr", "pal")) for part in variant.split("+"))
        ranks = args.ranks if low_rank else (0,)
        if args.resnet50:
            sizes: list[tuple[int, int]] = [(rows, width) for rows, width, _ in RESNET50_JOINS]
        else:
            sizes = list(itertools.product(args.rows, args.widths))
        for (rows, width), rank in itertools.product(sizes, ranks):
            yield Point(rows, width, rank, variant, layout, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench_kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--variants", nargs="+", default=["rw+lr"], help="rw, lr, rw+lr, rw+lr+pa3, lr+layernorm, ...")
    parser.add_argument("--layouts", nargs="+", default=["tokens"], choices=["tokens", "1d", "2d", "3d"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(BYTES))
    parser.add_argument("--resnet50", action="store_true", help="rows and widths of ResNet-50's joins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.25, help="time for one point")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument("--plot", type=Path, help="draw a roofline to this file")
    args = parser.parse_args(argv)

    machine = Machine(args.threads)
    rows = []
    head = f"{'rows':>6} {'D':>5} {'r':>3} {'variant':>12} {'layout':>6} {'dtype':>8}"
    head += f" {'fused µs':>10} {'body µs':>10} {'add µs':>10} {'bound µs':>10}"
    head += f" {'body/fused':>10} {'fused/add':>9} {'of bound':>8}"
    if not args.json:
        _say(f"{runtime.isa()}, {args.threads} threads")
        _say(head)
    for point in _grid(args):
        row = measure(point, machine, args.seconds)
        rows.append(row)
        if not args.json:
            _say(
                f"{row.rows:6} {row.D:5} {row.rank:3} {row.variant:>12} {row.layout:>6} {row.dtype:>8}"
                f" {row.fused_us:10.1f} {row.body_us:10.1f} {row.add_us:10.1f} {row.bound_us:10.1f}"
                f" {row.body_over_fused:10.2f} {row.fused_over_add:9.2f} {row.bound_us / row.fused_us:8.0%}"
            )
    if args.json:
        _say(json.dumps({"isa": runtime.isa(), "rows": [asdict(row) for row in rows], "summary": summary(rows)}))
    else:
        for line in summary(rows):
            _say(line)
    if args.plot:
        plot(rows, args.plot)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
