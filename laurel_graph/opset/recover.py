"""Rebuilds the records of a transformed model from its nodes and tensors, where a tool or a hand left them out.

Many tools (onnx-graphsurgeon, onnx.compose, extraction, version conversion) keep nodes and weights and drop a model's
metadata, in which an insertion keeps what was put in and what was there before. The operators of ``ai.laurel`` and the
names ``laurel.<site>.<tensor>`` say most of it again. What they do not say is listed: nothing is guessed in silence.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..config import LaurelConfig, SiteSpec
from ..errors import ConfigError, LaurelError, ModelError
from ..onnx_model.bodies import scopes_of
from ..onnx_model.shapes import dtype_name, tensor_types
from ..onnx_model.tensors import array_of
from ..onnx_model.walk import graphs_of
from .functions import attach
from .laurel_node import LaurelNode
from .schema import (
    METADATA_CONFIG,
    METADATA_DEPLOYED,
    METADATA_PLAIN,
    METADATA_SITES,
    PREFIX,
    Operator,
    laurel_nodes,
    read_metadata,
    read_specs,
    tensor_name,
    unknown_operator,
)
from .undo import new_undo, read_undo, write_records

DEPLOYED_HINT = "its weights are folded; train and remove in the file it was made from"

DEPLOYED = f"Part of a deployed model: {DEPLOYED_HINT}."
"""The doc string of function bodies in deployed files: tools that drop the model's metadata keep it."""

_NORM = 1e-5
"""How far α + β may be from 2 by rounding alone."""


@dataclass
class Recovered:
    """What :func:`recover` rebuilt.

    Attributes:
        sites: the sites that have a record again.
        lost: sentences: what the model does not say any more.
    """

    sites: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass
class _Site:
    """The nodes of one site by the path of their body: those with all tensors, those that add further branches."""

    name: str
    nodes: list[tuple[str, NodeProto]]
    spec: SiteSpec


def is_deployed(model: ModelProto) -> bool:
    """Whether a model says that it is deployed: in its metadata, or where a tool dropped those in its functions."""
    told = read_metadata(model, METADATA_DEPLOYED) is not None
    return told or any(function.doc_string == DEPLOYED for function in model.functions)


def needs_recovery(model: ModelProto) -> bool:
    """Whether the model holds trainable nodes of ``ai.laurel`` that no record speaks of."""
    if is_deployed(model):
        return False
    nodes = [node for graph in graphs_of(model.graph) for node in laurel_nodes(graph)]
    ours = {name for node in nodes for name in node.input[2:] if name.startswith(f"{PREFIX}.")}
    if not ours:
        return False
    known = read_specs(model)
    return not all(name.rpartition(".")[0].removeprefix(f"{PREFIX}.") in known for name in ours)


def site_without_records(model: ModelProto) -> str:
    """Returns a tensor of a model in plain form that lost its records, so that nothing can be put back; "" for none."""
    if is_deployed(model) or any(read_metadata(model, key) is not None for key in (METADATA_SITES, METADATA_PLAIN)):
        return ""
    if any(laurel_nodes(graph) for graph in graphs_of(model.graph)):
        return ""
    roles = tuple(f".{role}" for role in ("alpha", "beta", "A", "B", "gamma"))
    names = (tensor.name for tensor in model.graph.initializer)
    return next((name for name in names if name.startswith(f"{PREFIX}.") and name.endswith(roles)), "")


def recover(model: ModelProto) -> Recovered:
    """Writes records for the nodes of ``ai.laurel`` that have none, in place.

    Returns:
        The sites, and what could not be told. A model that needs nothing stays as it is.

    Raises:
        ModelError: a node is none that can be trained (of a deployed model, or with tensors of other names), or a size
            cannot be told; the model is unchanged.
    """
    if not needs_recovery(model):
        return Recovered()
    known = read_specs(model)
    types = tensor_types(model)[0]
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    sites = [site for site in _sites(model, held, types) if site.name not in known]
    undo = read_undo(model) or {**new_undo(model, domain=True), "metadata": []}  # what is left of ours
    ours = [name for name in held if any(name.startswith(tensor_name(site.name, "")) for site in sites)]
    undo["tensors"] += ours
    undo["inputs"] += [value.name for value in model.graph.input if value.name in ours]
    undo["nodes"] += [before(node, path) for site in sites for path, node in site.nodes]
    config = read_metadata(model, METADATA_CONFIG) or LaurelConfig().to_json()
    write_records(model, config, (*known.values(), *(site.spec for site in sites)), undo)
    attach(model)
    return Recovered([site.name for site in sites], list(_lost(model, sites)))


def _sites(model: ModelProto, held: dict[str, TensorProto], types: dict[str, Any]) -> Iterator[_Site]:
    found: dict[str, _Site] = {}
    for path, graph in scopes_of(model).items():
        for node in laurel_nodes(graph):
            ours = LaurelNode.of(node)
            if ours is None:
                raise _foreign(node, unknown_operator(node.op_type).rstrip("."))
            op, roles = ours.operator, ours.tensors
            if op.bias or op.epilogue or op.quantized or not ours.is_whole:
                raise _foreign(node, "its operator is of a deployed model, or of a newer version")
            names = {
                name.removesuffix("." + ("one" if name.endswith(".one") else role)) for role, name in roles.items()
            }
            if len(names) != 1 or not all(name in held for name in roles.values()):
                raise _foreign(node, f"its tensors {sorted(roles.values())} are not the weights of one site")
            full = next(iter(names))
            site = full.removeprefix(f"{PREFIX}.")
            if site == full or any(name == tensor_name(site, r) for r, name in roles.items()) is False:
                raise _foreign(node, f"its tensors {sorted(roles.values())} have other names than {PREFIX}.SITE.TENSOR")
            if site in found:
                found[site].nodes.append((path, node))
            elif tensor_name(site, "one") in roles.values():
                raise _foreign(node, f"the node of the site {site!r} that it adds to is gone")
            else:
                found[site] = _Site(site, [(path, node)], _spec(site, node, op, roles, held, types))
    yield from found.values()


def _foreign(node: NodeProto, why: str) -> ModelError:
    return ModelError(
        f"the model's records are gone, and node {(node.output or [node.name])[0]!r} ({node.op_type}) cannot be "
        f"understood without them: {why}; use the file as laurel transform or laurel finetune wrote it."
    )


def _spec(
    site: str,
    node: NodeProto,
    op: Operator,
    roles: dict[str, str],
    held: dict[str, TensorProto],
    types: dict[str, Any],
) -> SiteSpec:
    tensors = {role: held[name] for role, name in roles.items()}
    shape = next((types[n][0] for n in (*node.input[:2], node.output[0]) if n in types and types[n][0]), None)
    sizes: dict[Any, Any] = {
        axis: size
        for one in op.terms
        for name, axes in one.tensors.items()
        for axis, size in zip(axes, tensors[name].dims, strict=False)
    }
    width = sizes.get("D", sizes.get("C", shape[op.axis] if shape is not None else None))
    if not isinstance(width, int) or width < 1:
        raise _foreign(node, f"the width of site {site!r} cannot be told")
    ndim = int(op.layout[0]) + 2 if op.layout else len(shape) if shape is not None else 3
    weight = next(iter(tensors.values()))
    try:
        return SiteSpec(
            site=site,
            variant=op.variant,
            axis=op.axis,
            width=width,
            ndim=ndim,
            dtype=dtype_name(weight.data_type) or "float32",
            rank=sizes.get("r", 0),
            weights=_bound(tensors) if op.rw else "softmax",
            per_channel="C" in sizes,
            init="xavier" if op.axis == 1 else "orthogonal",
            previous=op.links,
            previous_map="low-rank" if op.low_rank_previous else "identity",
            options=op.options,
        )
    except (ConfigError, LaurelError) as error:
        raise _foreign(node, str(error).rstrip(".")) from None


def _bound(tensors: dict[str, TensorProto]) -> str:
    """How α and β are bounded, as far as their values tell: those of softmax add up to 2."""
    alpha, beta = (np.asarray(array_of(tensors[role]), np.float64) for role in ("alpha", "beta"))
    if np.any(alpha <= 0) or np.any(beta <= 0) or not np.all(np.isfinite(alpha + beta)):
        return "free"
    if np.all(np.abs(alpha + beta - 2) < _NORM):
        return "softmax"
    return "sigmoid" if np.all(alpha < 2) and np.all(beta < 2) else "free"


def before(node: NodeProto, path: str) -> dict[str, Any]:
    """Returns the record of an addition of skip and branch in the place of a node of ``ai.laurel``.

    Args:
        node: the node.
        path: of the body that it stands in.
    """
    old = helper.make_node("Add", [node.input[0], node.input[1]], [node.output[0]], name=node.name)
    if node.HasField("doc_string"):
        old.doc_string = node.doc_string
    old.metadata_props.extend(node.metadata_props)
    where = {"body": path} if path else {}
    return {"new": [node.output[0]], "old": base64.b64encode(old.SerializeToString()).decode(), **where}


def _lost(model: ModelProto, sites: list[_Site]) -> Iterator[str]:
    yield (
        f"the records of {len(sites)} sites were gone and are rebuilt from their nodes: which operand of an addition "
        "came first, how A started and from which base adapters were trained cannot be told"
    )
    nodes = [node for site in sites for _, node in site.nodes]
    if any(tensor_name(site.name, "one") in node.input for site in sites for _, node in site.nodes) or any(
        node.output[0].startswith(f"{PREFIX}.") for node in nodes
    ):
        yield "sums of several operands come back as additions of two each"
    if any(site.spec.has_rw for site in sites):
        yield "how α and β are bounded is taken from their values"
    if model.ir_version >= 8:
        yield f"the IR version stays {model.ir_version}; it may have been lower before"
