"""``python -m laurel_graph.tools.robustness.random_networks [--count 200] [--seed 1] [--kind float16] [--json]``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from laurel_graph.tools.console import note, print_json, print_table, say

from .check import Outcome, check
from .generate import KINDS

VERDICTS = ("right", "kept", "refused", "skipped", "wrong", "crashed")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a deployment was wrong or crashed."""
    parser = argparse.ArgumentParser(prog="random_networks", description="Deploys random networks, checks every value.")
    parser.add_argument("--count", type=int, default=200, help="how many networks")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first one")
    parser.add_argument("--kind", choices=sorted(set(KINDS)), help="element type, or quantised; drawn by default")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    outcomes: list[Outcome] = []
    for seed in range(options.seed, options.seed + options.count):
        found = check(seed, options.kind)
        outcomes += found
        for o in found:
            if o.verdict in ("wrong", "crashed"):
                note(f"seed {seed} portable={o.portable}: {o.verdict} {o.detail} ({o.worst:.3g} of what is allowed)")
    counts = Counter(outcome.verdict for outcome in outcomes)
    if options.json:
        print_json({"counts": {v: counts[v] for v in VERDICTS}, "outcomes": [asdict(o) for o in outcomes]})
    else:
        print_table("deployments of random networks", VERDICTS, [tuple(counts[v] for v in VERDICTS)])
        _print_reasons(outcomes)
    return int(bool(counts["wrong"] or counts["crashed"]))


def _print_reasons(outcomes: Sequence[Outcome]) -> None:
    seeds: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        if outcome.verdict in ("refused", "skipped", "crashed"):
            seeds.setdefault((outcome.verdict, outcome.detail), []).append(outcome.seed)
    for (verdict, detail), found in sorted(seeds.items(), key=lambda item: -len(item[1])):
        say(f"{len(found):5d} {verdict} (seed {found[0]}): {detail}")


if __name__ == "__main__":
    sys.exit(main())
