"""Attaches LAuReL to every architecture of a zoo file, live, and takes it out again.

``python -m laurel_graph.tools.zoo.live [FILE] [--only GLOB] [--part N/M] [--json] [--wrong]``

For each architecture: the output of the frozen model, of the attached one and of the detached one must be the same
bits; every join that the file knows must get a residual or share one; and the traced route must find the same joins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from laurel_graph.config import LaurelConfig
from laurel_graph.errors import LaurelError, NoResidualError
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.live.attach import AttachReport, attach, detach
from laurel_graph.tools.console import note, print_json, print_table

from .architectures import Entry, Specimen, arguments, chosen_entries, silence
from .detection import is_wanted, one_line


@dataclass
class Row:
    """One architecture, live.

    Attributes:
        name: the architecture.
        truth: residual joins that it has.
        attached: joins that got a residual, or share one.
        watched: residuals whose add is watched instead of rewritten.
        same: the attached model computes the bits of the frozen one.
        back: so does the detached one.
        traced: joins that the traced route finds; ``None`` where it makes no graph.
        reason: what is not as it should be, or "".
    """

    name: str
    truth: int
    attached: int = 0
    watched: int = 0
    same: bool = False
    back: bool = False
    traced: int | None = None
    reason: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the bits are the same and every join has its residual."""
        return self.same and self.back and self.attached >= self.truth


def measure(entry: Entry) -> Row:
    """Attaches to one architecture and detaches again."""
    row = Row(entry.name, entry.joins)
    try:
        with silence():
            specimen = Specimen(entry)
            specimen.module.requires_grad_(False)
            before = _output(specimen)
    except Exception as error:  # the architecture's own code ran
        row.reason = f"it does not run: {one_line(error)}"
        return row
    try:
        with silence():
            row.traced = len(detect(specimen.export()).residuals)
    except Exception:  # exporters run the architecture's own code
        row.traced = None
    try:
        with silence():
            report = attach(specimen.module, LaurelConfig(variant="rw+lr", rank=1), specimen.args, specimen.kwargs)
            row.attached = joins_of(report)
            row.watched = sum(way.startswith("watched") for way in report.ways.values())
            row.same = is_same(_output(specimen), before)
            detach(specimen.module)
    except NoResidualError as error:
        row.same = row.truth == 0
        row.reason = "" if row.same else one_line(error)
    except Exception as error:  # likewise
        row.reason = one_line(error)
    else:
        left = [f"{site}: {reason}" for site, reason in report.skipped if not _shares(reason)]
        row.reason = "; ".join(left)
    with silence(), suppress(Exception):
        row.back = is_same(_output(specimen), before)
    return row


def joins_of(report: AttachReport) -> int:
    """The joins of a report that have a residual of their own or share one."""
    return len(report.plans) + sum(_shares(reason) for _, reason in report.skipped)


def _shares(reason: str) -> bool:
    return reason.endswith("serves both")


def _output(specimen: Specimen) -> Any:
    import torch

    torch.manual_seed(0)  # for models that draw noise in eval mode too
    with torch.no_grad():
        return specimen.module(*specimen.args, **specimen.kwargs)


def is_same(one: Any, other: Any) -> bool:
    """Tells whether two outputs hold the same bits, NaN being NaN."""
    import torch
    from torch.utils._pytree import tree_leaves

    left, right = (
        [leaf for leaf in tree_leaves(_plain(value)) if isinstance(leaf, torch.Tensor)] for value in (one, other)
    )
    return (
        bool(left)
        and len(left) == len(right)
        and all(
            a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
            for a, b in zip(left, right, strict=True)
        )
    )


def _plain(value: Any) -> Any:
    """A value as plain containers: model outputs are mappings, caches are left out."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def rows(entries: Sequence[Entry], only: str) -> Iterator[Row]:
    """Yields one row per architecture."""
    for entry in entries:
        if is_wanted(entry.name, only):
            with suppress(BrokenPipeError):
                note(entry.name)
            yield measure(entry)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = arguments("zoo.live", __doc__)
    parser.add_argument("--wrong", action="store_true", help="print rows that are not right alone")
    options = parser.parse_args(argv)
    try:
        entries = chosen_entries(options)
    except (LaurelError, ValueError) as error:
        note(str(error))
        return 2
    found = list(rows(entries, options.only))
    if options.json:
        print_json({"rows": [asdict(row) for row in found]})
    else:
        _print(found, options.wrong)
    return 0 if all(row.is_right for row in found) else 1


def _print(found: Sequence[Row], wrong: bool) -> None:
    names = ("architecture", "joins", "attached", "watched", "same bits", "bits after detach", "traced", "reason")
    print_table(
        "architectures",
        names,
        [
            (
                row.name,
                row.truth,
                row.attached,
                row.watched,
                row.same,
                row.back,
                "-" if row.traced is None else row.traced,
                row.reason,
            )
            for row in found
            if not (wrong and row.is_right and row.traced in (None, row.attached) and not row.watched)
        ],
    )
    joins, attached = sum(row.truth for row in found), sum(min(row.truth, row.attached) for row in found)
    print_table(
        "all",
        ("architectures", "right", "same bits", "bits after detach", "joins", "attached"),
        [
            (
                len(found),
                sum(row.is_right for row in found),
                sum(row.same for row in found),
                sum(row.back for row in found),
                joins,
                attached,
            )
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
