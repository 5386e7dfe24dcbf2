"""Which site of an adapter belongs to which site of a model whose exporter named them otherwise.

The same network has other module paths in torch, in optimum's files and in ONNX Runtime GenAI's. What stays is the
order in which its residual connections run, and what each of them is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..config import SiteSpec
from ..errors import ConfigError
from .file import Adapter

MATCHES = ("auto", "name", "place")

_KIND = ("variant", "axis", "width", "rank", "weights", "per_channel", "previous", "previous_map")
"""What has to agree at two sites that are taken for one."""


def moved(adapter: Adapter, specs: Mapping[str, SiteSpec], match: str) -> Adapter:
    """Returns *adapter* with the site names of a model; itself where they go by name.

    Args:
        adapter: the adapter; its sites are in the order in which they run.
        specs: the sites of the model, in the order in which they run.
        match: ``name``; ``place``: the first site is the first one, and so on; or ``auto``: by place where no name
            agrees and the places agree one to one, by name otherwise.

    Raises:
        ConfigError: *match* is something else, or ``place`` where the places do not agree; it names the first that
            does not.
    """
    if match not in MATCHES:
        raise ConfigError(f"match = {match!r} is not valid: expected one of {', '.join(MATCHES)}.")
    if match == "name" or list(adapter.specs) == list(specs):
        return adapter
    problem = _problem(adapter.specs, specs)
    if match == "auto" and (problem or set(adapter.specs) & set(specs)):
        return adapter
    if problem:
        raise ConfigError(f"the adapter cannot be matched by place: {problem}.")
    pairs = dict(zip(adapter.specs, specs, strict=True))
    return Adapter(
        {new: replace(adapter.specs[old], site=new) for old, new in pairs.items()},
        {f"{new}.{name}": value for old, new in pairs.items() for name, value in adapter.parameters(old).items()},
        adapter.base,
        adapter.config,
    )


def _problem(one: Mapping[str, SiteSpec], other: Mapping[str, SiteSpec]) -> str:
    """Why the places of two models do not agree one to one; empty where they do."""
    if len(one) != len(other):
        return f"it has {len(one)} sites, the model {len(other)}"
    for place, (a, b) in enumerate(zip(one.values(), other.values(), strict=True), 1):
        for field in _KIND:
            if getattr(a, field) != getattr(b, field):
                return (
                    f"site {place} is {a.site!r} with {field} {getattr(a, field)!r}, in the model {b.site!r} with "
                    f"{getattr(b, field)!r}"
                )
    return _disorder(one, other)


def _disorder(one: Mapping[str, SiteSpec], other: Mapping[str, SiteSpec]) -> str:
    """Says where the numbers of blocks, as both name them, run in another order."""
    before = (-1, -1)
    for a, b in zip(one, other, strict=True):
        first, second = _block(a), _block(b)
        if first is None or second is None:
            return ""
        if (first - before[0]) * (second - before[1]) < 0:
            return f"{a!r} and {b!r} run in another order than their numbers say"
        before = first, second
    return ""


def _block(site: str) -> int | None:
    """The first number in a name as a part of its own: the block's."""
    found = re.search(r"(?:^|[._])(\d+)(?=[._]|$)", site)
    return int(found[1]) if found else None
