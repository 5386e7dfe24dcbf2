"""What each form of a site costs, from a table of measurements (``python -m laurel_graph.tools.benchmarks.forms``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laurel_graph.errors import ConfigError

TABLE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class SiteSizes:
    """What the cost of a site depends on.

    Attributes:
        channels: channels on axis 1; else the last axis.
        rows: positions of one sample: pixels or tokens.
        width: D.
        branch: the number of features that the branch's last linear map reads; 0 where it cannot be widened.
        rank: r; 0 without a low-rank part.
        previous: k of PA.
        norm: a norm stands behind the join.
        rw: α and β could not be folded.
    """

    channels: bool
    rows: int
    width: int
    branch: int = 0
    rank: int = 0
    previous: int = 0
    norm: bool = False
    rw: bool = False

    def distance(self, other: SiteSizes) -> float:
        """Returns how far another place is: the logarithms of the sizes side by side; kinds weigh more."""
        kinds = (self.norm != other.norm) + (self.rw != other.rw) + (bool(self.rank) != bool(other.rank))
        kinds += (bool(self.previous) != bool(other.previous)) + 100 * (self.channels != other.channels)
        sizes = ((self.rows, other.rows), (self.width, other.width), (self.previous, other.previous))
        far = sum(abs(math.log2((a + 1) / (b + 1))) for a, b in sizes)
        ratios = [math.log2((p.branch or p.width) / p.width) for p in (self, other)]
        return 20 * kinds + far + abs(ratios[0] - ratios[1])


@dataclass(frozen=True)
class CostModel:
    """A table of measured places.

    Attributes:
        rows: each measured place with form to µs more than the plain residual.
        block: channels per block in the runtime's convolution layout on this processor.
    """

    rows: tuple[tuple[SiteSizes, Mapping[str, float]], ...]
    block: int = 8

    def cost(self, form: str, place: SiteSizes) -> float:
        """Returns the µs that *form* adds at the nearest measured place, scaled by its size.

        A form that is not measured costs infinity, but what is absorbed costs nothing: the graph is the plain one.
        """
        known = [(row, costs[form]) for row, costs in self.rows if form in costs]
        if not known:
            return 0.0 if form == "absorbed" else math.inf
        nearest, cost = min(known, key=lambda item: place.distance(item[0]))
        return cost * (place.rows * place.width) / (nearest.rows * nearest.width)

    @classmethod
    def only(cls, form: str) -> CostModel:
        """Returns a model by which *form* is the cheapest wherever it is possible."""
        forms = ("absorbed", "operator", "widened", "chained")
        costs = {name: float(name != form) for name in forms}
        return cls(tuple((SiteSizes(channels, 1, 1), costs) for channels in (True, False)), channel_block())

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> CostModel:
        """Reads rows as :meth:`to_rows` writes them."""
        read = []
        for row in rows:
            fields = {k: v for k, v in row.items() if k != "us"}
            read.append((SiteSizes(**fields), dict(row["us"])))
        return cls(tuple(read), channel_block())

    def to_rows(self) -> list[dict[str, Any]]:
        """Returns JSON-ready rows."""
        return [{**asdict(place), "us": dict(costs)} for place, costs in self.rows]


_ADDED: list[Mapping[str, Any]] = []
"""Rows that a person added, the latest first."""


def add_costs(rows: Iterable[Mapping[str, Any]]) -> None:
    """See :func:`laurel_graph.passes.extend.add_costs`.

    Raises:
        ConfigError: a row is none.
    """
    rows = list(rows)
    try:
        CostModel.from_rows(rows)
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"a row of costs is not valid ({error}): expected fields of SiteSizes and us={{form: µs}}."
        ) from None
    _ADDED[:0] = rows


def default_costs() -> CostModel:
    """Returns the table that comes with the package, behind what a person added."""
    return CostModel((*CostModel.from_rows(_ADDED).rows, *_own_costs().rows), channel_block())


@cache
def _own_costs() -> CostModel:
    return CostModel.from_rows(json.loads(TABLE.read_text()))


@cache
def channel_block() -> int:
    """Returns how many channels ONNX Runtime's CPU convolutions keep side by side: 16 with AVX-512, else 8."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return 8
    return 16 if "avx512f" in flags else 8
