"""``python -m`` this package ``[--count 200] [--seed 1] [--kind float16] [--route file]``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import onnxruntime

from laurel_graph.tools.console import note, print_json, print_table, say

from .check import ROUTES, Outcome, check
from .generate import KINDS

VERDICTS = ("right", "kept", "mistrusted", "refused", "skipped", "wrong", "crashed")
BAD = ("mistrusted", "wrong", "crashed")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a deployment was wrong, crashed, or refused though right."""
    parser = argparse.ArgumentParser(prog="random_networks", description="Deploys random networks, checks every value.")
    parser.add_argument("--count", type=int, default=200, help="how many networks")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first one")
    parser.add_argument("--kind", choices=sorted(set(KINDS)), help="element type, or quantised; drawn by default")
    parser.add_argument(
        "--route", choices=ROUTES, default="memory", help="deploy in memory or through files, or import the file"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    outcomes: list[Outcome] = []
    for seed in range(options.seed, options.seed + options.count):
        found = check(seed, options.kind, options.route)
        outcomes += found
        for o in found:
            if o.verdict in BAD:
                note(f"seed {seed} portable={o.portable}: {o.verdict} {o.detail} ({o.worst:.3g} of what is allowed)")
    counts = Counter(outcome.verdict for outcome in outcomes)
    if options.json:
        print_json({"counts": {v: counts[v] for v in VERDICTS}, "outcomes": [asdict(o) for o in outcomes]})
    else:
        print_table(f"random networks, route {options.route}", VERDICTS, [tuple(counts[v] for v in VERDICTS)])
        _print_reasons(outcomes)
    return int(any(counts[verdict] for verdict in BAD))


def _print_reasons(outcomes: Sequence[Outcome]) -> None:
    seeds: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        if outcome.verdict in ("refused", "mistrusted", "skipped", "crashed"):
            seeds.setdefault((outcome.verdict, outcome.detail), []).append(outcome.seed)
    for (verdict, detail), found in sorted(seeds.items(), key=lambda item: -len(item[1])):
        say(f"{len(found):5d} {verdict} (seed {found[0]}): {detail}")


if __name__ == "__main__":
    sys.exit(main())
