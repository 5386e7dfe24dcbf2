"""LAuReL in NumPy: the one reference that the torch module, the ONNX function bodies and the kernels are held against.

    x' = α·Σf + β·(x + (xA)B + Σ_{j<k} γ_j·h_j(x_{i-1-j}))        h_j(p) = p  or  (p A_j) B_j

Row vectors; ``A`` is (D, r), ``B`` is (r, D). RW drops A, B and γ; LR and PA fix α = β = 1 (paper §2.1-2.3 and
equations of §3, with its left/right slips resolved to this convention). Works on any axis, in any float type; callers
that want the mathematical truth pass float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import SiteSpec
from .errors import ConfigError
from .variants.registry import TERMS, applied, terms_of
from .variants.term import Operands, Scalar, Site, Term, shape_of

Array = NDArray[Any]
Tensors = Mapping[str, Array]


def low_rank(x: Array, A: Array, B: Array) -> Array:
    """Returns (xA)B for ``x (..., D)``, ``A (D, r)``, ``B (r, D)``, of shape ``(..., D)``."""
    return (x @ A) @ B


def residual(
    x: Array,
    branches: Array | Sequence[Array],
    tensors: Tensors,
    previous: Sequence[Array] = (),
    axis: int = -1,
    terms: Sequence[Term] | None = None,
    options: Mapping[str, Scalar] | None = None,
) -> Array:
    """Returns x' for one site.

    Args:
        x: the skip; D on *axis*.
        branches: f, or several branches of an n-ary join, all of x's shape.
        tensors: the resolved tensors of the site under the names of :meth:`SiteSpec.tensor_shapes`; what a variant
            does not have is absent.
        previous: the k earlier activations x_{i-1}, x_{i-2}, ... of x's shape, nearest first.
        axis: the feature axis.
        terms: what the residual is made of; by default those of RW, LR and PA that *tensors* hold.
        options: the options of *terms*.

    Returns:
        An array of x's shape.
    """
    branches = [branches] if isinstance(branches, np.ndarray) else list(branches)
    x, first, *others = (np.moveaxis(each, axis, -1) for each in (x, *branches))
    at = Operands(x, [np.moveaxis(p, axis, -1) for p in previous], tensors, options or {})
    parts = applied(_own_terms(tensors) if terms is None else terms)
    skip, branch = x, first
    for part in parts:
        skip, branch = part.formula(skip, branch, at)
    out = skip + branch
    for f in others:  # what changes the skip alone has changed it
        for part in parts:
            _, f = part.formula(skip, f, at)
        out = out + f
    return np.moveaxis(out, -1, axis)


def _own_terms(tensors: Tensors) -> tuple[Term, ...]:
    names = [one.name for one in TERMS.values() if one.has_kernels and set(one.tensors) <= set(tensors)]
    return terms_of("+".join(names), "low-rank" if "previous_A" in tensors else "identity") if names else ()


def resolve_weights(kind: str, w: Array) -> tuple[Array, Array]:
    """Returns (α, β) of shape ``w.shape[1:]`` from ``w (2, ...)``: ``softmax`` 2·softmax(w), ``sigmoid`` 2·σ(w).

    ``w = 0`` gives exactly (1, 1).
    """
    if kind == "sigmoid":
        alpha, beta = 2 / (1 + np.exp(-w))
    else:
        e = np.exp(w - w.max(axis=0))
        alpha, beta = 2 * e / e.sum(axis=0)
    return alpha, beta


_ENDS = {
    "float16": (2.0**-24, 2.0**-10),
    "bfloat16": (2.0**-133, 2.0**-7),
    "float32": (2.0**-149, 2.0**-23),
    "float64": (2.0**-1000, 2.0**-52),
}
"""By element type: the least number above 0 (or one as good as 0), and the distance from 2 to the next one below."""


def unresolve_weights(kind: str, alpha: Array, beta: Array, dtype: str = "float64") -> Array:
    """Returns ``w (2, ...)`` with ``resolve_weights(kind, w) == (alpha, beta)`` up to rounding; exact at (1, 1).

    For ``softmax`` α and β are scaled to the sum 2 first, and w is centred: w = ±log(α/β)/2. Saturated weights, which
    *dtype* rounded to 0 or 2, give the finite w next to where that begins, which gives them again.
    """
    least, gap = _ENDS[dtype]
    pair = [np.where(v == 0, least / 4, v) for v in (alpha, beta)]
    if kind == "sigmoid":
        return np.stack([np.log(v / np.where(v == 2, gap / 4, 2 - v)) for v in pair])
    half = np.log(pair[0] / pair[1]) / 2
    return np.stack([half, -half])


def resolve(spec: SiteSpec, parameters: Tensors) -> dict[str, Array]:
    """Returns the resolved tensors (:meth:`SiteSpec.tensor_shapes`) of trained ones (``parameter_shapes``)."""
    tensors = dict(parameters)
    for part in spec.terms:
        tensors.update(part.resolve(spec, parameters))
    return {name: tensors[name] for name in spec.tensor_shapes()}


def unresolve(spec: SiteSpec, tensors: Tensors) -> dict[str, Array]:
    """Returns trained tensors whose :func:`resolve` gives *tensors*: the inverse of :func:`resolve`."""
    parameters = dict(tensors)
    for part in spec.terms:
        parameters.update(part.unresolve(spec, tensors))
    return {name: parameters[name] for name in spec.parameter_shapes()}


def column_orthogonal(d: int, r: int) -> Array:
    """Returns ``A (d, r)`` with A[i, j] = 1/sqrt(r·d) where i mod r == j and 0 elsewhere (paper §3.2), float32."""
    a = np.zeros((d, r), np.float32)
    rows = np.arange(d)
    a[rows, rows % r] = 1 / np.sqrt(r * d)
    return a


def xavier(d: int, r: int, rng: np.random.Generator) -> Array:
    """Returns ``A (d, r)`` uniform in ±sqrt(6/(d + r)) (Glorot & Bengio 2010, the paper's ResNet), float32."""
    bound = np.sqrt(6 / (d + r))
    return rng.uniform(-bound, bound, (d, r)).astype(np.float32)


def initial_parameters(spec: SiteSpec) -> dict[str, Array]:
    """Returns the trained tensors at the start, float32: x' = Σf + x holds exactly.

    w = 0 (α = β = 1), B = 0, A after :attr:`SiteSpec.init`; γ = 0 for the identity map, γ = 1 and B_j = 0 for the
    low-rank map; other terms say themselves where they start. The Xavier draw depends on the seed and the site's name
    alone, not on the order of the sites.

    Raises:
        ConfigError: a term starts a tensor in another shape than it has.
    """
    rng = np.random.default_rng([spec.seed, zlib.crc32(spec.site.encode())])
    parameters: dict[str, Array] = {}
    for part in spec.terms:
        shapes = {name: shape_of(axes, spec) for name, axes in part.parameters(spec).items()}
        given = part.start(spec, shapes, rng)
        for name, shape in shapes.items():
            value = np.asarray(given.get(name, np.zeros(shape)), np.float32)
            if value.shape != shape:
                raise ConfigError(f"term {part.name!r} starts {name!r} as {value.shape}; expected the shape {shape}.")
            parameters[name] = value
    return parameters


def start_of_map(site: Site, draw: np.random.Generator) -> Array:
    """Returns the first factor A (D, r) of a low-rank map at the start, after the site's ``init``."""
    return (
        column_orthogonal(site.width, site.rank) if site.init == "orthogonal" else xavier(site.width, site.rank, draw)
    )
