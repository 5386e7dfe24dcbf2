"""What you may teach the passes about operators of your own, in Python or in a module for ``laurel --plugin MODULE``.

    from laurel_graph.graph_view import Role
    from laurel_graph.passes import extend

    extend.add_role("MyLinear", Role.LINEAR, domain="my.domain")   # detection: a layer with weights
    extend.add_handler("MyLinear", handler, domain="my.domain")    # import_onnx: what it is in torch
    extend.add_fold_rule("MyRelu", rule, domain="my.domain")       # fold: how it hands a scale on
    extend.add_costs(rows)                                         # deploy: what forms cost on this machine
    extend.add_kernels("libmine.so")                               # every session of ours runs its operators

A variant of the residual is registered by :func:`laurel_graph.variants.register`. All of it holds for this process;
what is added again under one name takes the place of what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laurel_graph.graph_view import Role
    from laurel_graph.importer.node import Node
    from laurel_graph.passes.fold.context import Rule


def add_role(operator: str, role: Role, *, domain: str = "", operands: Sequence[int] | None = None) -> None:
    """Says what an ONNX operator means to detection; it then counts as that, whatever function body a file has for it.

    Args:
        operator: its type.
        role: what it is (:class:`laurel_graph.graph_view.Role`): ``LINEAR`` and ``CONV`` have weights at input 1.
        domain: its domain.
        operands: which inputs carry data; ``None`` for all.
    """
    from .read_onnx.roles import add_role as add

    add(operator, role, domain, operands)


def add_torch_role(function: str, role: Role) -> None:
    """Says what a function, method or operator of a torch graph means to detection.

    Args:
        function: its plain name: ``my_linear`` for ``torch.ops.mine.my_linear.default`` and ``mine.my_linear``.
        role: what it is.
    """
    from .read_fx.roles import add_role as add

    add(function, role)


def add_handler(operator: str, handler: Callable[[Node], Any], *, domain: str = "", since: int = 1) -> None:
    """Says what an ONNX operator is in torch, for ``import_onnx`` and ``finetune``.

    Args:
        operator: its type.
        handler: takes the node and returns its output value, or several, as ``lambda node: node.emit(torch.relu,
            node[0])`` does. What it emits must be differentiable where something that trains is upstream.
        domain: its domain.
        since: the first version of the domain that it holds for.
    """
    from laurel_graph.importer.registry import add_handler as add

    add(operator, handler, domain, since)


def add_fold_rule(operator: str, rule: Rule, *, domain: str = "") -> None:
    """Says how an ONNX operator passes a scale on, so that α and β can be folded through it.

    Args:
        operator: its type, or for the domain ``ai.laurel`` the variant that it stands for.
        rule: a rule of :mod:`laurel_graph.passes.fold.rules` or one of your own.
        domain: its domain.
    """
    from .fold.context import add_rule

    add_rule(operator, rule, domain)


def add_costs(rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds measured costs of the forms of a residual, as ``python -m laurel_graph.tools.benchmarks.forms --json``
    prints them.

    Of two places that are as near to a site, the one added here counts.

    Args:
        rows: the fields of a :class:`~laurel_graph.passes.deploy.costs.SiteSizes`, and ``us``: form to µs.
    """
    from .deploy.costs import add_costs as add

    add(rows)


def add_kernels(library: str | Path) -> None:
    """Lets every session that the package makes load a library of custom operators of ONNX Runtime.

    For operators of domains of your own, and for variants: an operator of a variant that is in the library runs there,
    without it its function body does.

    Raises:
        KernelLibraryError: there is no such file.
    """
    from laurel_graph.runtime import add_library

    add_library(library)
