"""The passes: read (torch.fx, ONNX), detect, select, rewrite, fold, deploy, verify; ``pipeline`` runs them in a row.

A pass takes a graph and returns what it changed, what it skipped and why: :mod:`.base` says how, :mod:`.standard` has
those of the package, :mod:`.registry` finds them by name. Arrows run one way: tools use passes, passes use
``laurel_graph``'s ground, never the other way round.

    from laurel_graph.passes import Facts, Pipeline, parse_pass

    result = Pipeline([parse_pass("insert:variant=rw+lr,rank=8"), parse_pass("fold")]).run(model)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import (
        Facts,
        FunctionPass,
        Pass,
        PassResult,
        Pipeline,
        Report,
        SiteChange,
        option,
    )
    from .invariants import Invariant, register_invariant
    from .registry import known_passes, parse_pass

_HOMES = {
    "Facts": "base",
    "FunctionPass": "base",
    "Pass": "base",
    "PassResult": "base",
    "Pipeline": "base",
    "Report": "base",
    "SiteChange": "base",
    "option": "base",
    "Invariant": "invariants",
    "register_invariant": "invariants",
    "known_passes": "registry",
    "parse_pass": "registry",
}

__all__ = [
    "Facts",
    "FunctionPass",
    "Invariant",
    "Pass",
    "PassResult",
    "Pipeline",
    "Report",
    "SiteChange",
    "known_passes",
    "option",
    "parse_pass",
    "register_invariant",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
