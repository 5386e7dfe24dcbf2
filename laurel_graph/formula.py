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

Array = NDArray[Any]
Tensors = Mapping[str, Array]


def low_rank(x: Array, A: Array, B: Array) -> Array:
    """Returns (xA)B for ``x (..., D)``, ``A (D, r)``, ``B (r, D)``, of shape ``(..., D)``."""
    return (x @ A) @ B


def residual(
    x: Array, branches: Array | Sequence[Array], tensors: Tensors, previous: Sequence[Array] = (), axis: int = -1
) -> Array:
    """Returns x' for one site.

    Args:
        x: the skip; D on *axis*.
        branches: f, or several branches of an n-ary join, all of x's shape.
        tensors: the resolved tensors of the site under the names of :meth:`SiteSpec.tensor_shapes`; what a variant
            does not have is absent.
        previous: the k earlier activations x_{i-1}, x_{i-2}, ... of x's shape, nearest first.
        axis: the feature axis.

    Returns:
        An array of x's shape.
    """
    branches = [branches] if isinstance(branches, np.ndarray) else list(branches)
    x = np.moveaxis(x, axis, -1)
    carried = x
    if "A" in tensors:
        carried = carried + low_rank(x, tensors["A"], tensors["B"])
    for j, p in enumerate(previous):
        p = np.moveaxis(p, axis, -1)
        if "previous_A" in tensors:
            p = low_rank(p, tensors["previous_A"][j], tensors["previous_B"][j])
        carried = carried + tensors["gamma"][j] * p
    alpha, beta = tensors.get("alpha", 1), tensors.get("beta", 1)
    out = beta * carried
    for f in branches:
        out = out + alpha * np.moveaxis(f, axis, -1)
    return np.moveaxis(out, -1, axis)


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
    if "w" in tensors:
        alpha, beta = resolve_weights(spec.weights, tensors.pop("w"))
        tensors = {"alpha": np.asarray(alpha), "beta": np.asarray(beta), **tensors}
    return {name: tensors[name] for name in spec.tensor_shapes()}


def unresolve(spec: SiteSpec, tensors: Tensors) -> dict[str, Array]:
    """Returns trained tensors whose :func:`resolve` gives *tensors*: the inverse of :func:`resolve`."""
    parameters = dict(tensors)
    if spec.has_rw and spec.weights != "free":
        w = unresolve_weights(spec.weights, parameters.pop("alpha"), parameters.pop("beta"), spec.dtype)
        parameters = {"w": w, **parameters}
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
    low-rank map. The Xavier draw depends on the seed and the site's name alone, not on the order of the sites.
    """
    rng = np.random.default_rng([spec.seed, zlib.crc32(spec.site.encode())])

    def start_a() -> Array:
        if spec.init == "orthogonal":
            return column_orthogonal(spec.width, spec.rank)
        return xavier(spec.width, spec.rank, rng)

    parameters: dict[str, Array] = {}
    for name, shape in spec.parameter_shapes().items():
        if name == "A":
            parameters[name] = start_a()
        elif name == "previous_A":
            parameters[name] = np.stack([start_a() for _ in range(spec.previous)])
        elif name in ("alpha", "beta") or (name == "gamma" and spec.previous_map == "low-rank"):
            parameters[name] = np.ones(shape, np.float32)
        else:
            parameters[name] = np.zeros(shape, np.float32)
    return parameters
