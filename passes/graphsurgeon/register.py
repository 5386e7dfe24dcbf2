"""``graph.laurel(x, f, ...)``: puts a LAuReL residual into a ``gs.Graph`` by hand, where detection says no."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from laurel_graph.config import MAX_PREVIOUS, LaurelConfig
from laurel_graph.errors import ConfigError, RewriteError
from laurel_graph.formula import initial_parameters, resolve
from laurel_graph.opset.schema import DOMAIN, Operator, tensor_name

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@cache
def register() -> None:
    """Gives every ``gs.Graph`` the method ``laurel``; see :func:`laurel`."""
    import onnx_graphsurgeon as gs

    gs.Graph.register()(laurel)


def laurel(
    self: gs.Graph,
    x: gs.Tensor,
    f: gs.Tensor,
    *,
    variant: str = "rw+lr",
    rank: int | None = None,
    previous: Sequence[gs.Tensor] = (),
    site: str | None = None,
    axis: int | None = None,
    width: int | None = None,
    **options: Any,
) -> gs.Tensor:
    """Adds the residual of *f* and *x* to the graph; it computes f + x until it is trained.

    ``gs.Graph`` has it as a method once :mod:`laurel_graph.passes.graphsurgeon` was used. A node of ``ai.laurel`` and
    its tensors are appended; place and records follow when the graph becomes a model.

    Args:
        x: the skip; its type is needed, float32 where the graph does not say.
        f: the branch, of the same shape.
        variant: as in :class:`~laurel_graph.LaurelConfig`.
        rank: r; by default as in :class:`~laurel_graph.LaurelConfig`.
        previous: earlier activations of the stream, nearest first, for ``pa``.
        site: the name of the site; by default ``handmade.resN``.
        axis: the feature axis, -1 or 1; by default 1 for tensors with four or five axes, else -1.
        width: D, where the shape of *x* does not say it.
        options: further fields of :class:`~laurel_graph.LaurelConfig`.

    Returns:
        The sum, a new variable.

    Raises:
        ConfigError: the width is unknown, or an option is out of its range.
        RewriteError: the site is there already.
    """
    import onnx_graphsurgeon as gs

    shape = next((list(t.shape) for t in (x, f) if t.shape is not None), None)
    rank_of_tensor = len(shape) if shape is not None else 3
    axis = axis if axis is not None else 1 if rank_of_tensor > 3 else -1
    if width is None and shape is not None and isinstance(shape[axis], (int, np.integer)):
        width = int(shape[axis])
    if width is None:
        raise ConfigError(
            f"the width of {x.name!r} is unknown (shape {shape}): expected width=, the size of axis {axis}."
        )
    names = set(self.tensors())
    if site is None:
        number = next(i for i in range(1, len(names) + 2) if not _is_taken(f"handmade.res{i}", names))
        site = f"handmade.res{number}"
    elif _is_taken(site, names):
        raise RewriteError(f"site {site!r} is in the graph already; expected another name.")
    dtype = next((_numpy_type(t.dtype) for t in (x, f) if t.dtype is not None), np.dtype("float32"))
    config = LaurelConfig(variant=variant, rank=rank, previous=min(max(1, len(previous)), MAX_PREVIOUS), **options)
    spec = config.spec_for(site, axis=axis, width=width, ndim=rank_of_tensor, dtype=dtype.name, previous=len(previous))
    if spec is None:
        raise ConfigError(f"variant {variant!r} needs earlier activations: expected previous=[...].")
    tensors = [
        gs.Constant(tensor_name(site, name), np.asarray(array).astype(dtype, order="C"))
        for name, array in resolve(spec, initial_parameters(spec)).items()
    ]
    out = gs.Variable(tensor_name(site, "sum"), dtype=x.dtype, shape=shape)
    inputs = [x, f, *tensors, *previous[: spec.previous]]
    node = gs.Node(Operator.of(spec).name, out.name, inputs=inputs, outputs=[out], domain=DOMAIN)
    self.nodes.append(node)
    return out


def _numpy_type(dtype: Any) -> np.dtype[Any]:
    """The NumPy type of a tensor; graphsurgeon gives those that NumPy itself lacks as ONNX's numbers."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else dtype)


def _is_taken(site: str, names: set[str]) -> bool:
    return any(name.startswith(tensor_name(site, "")) for name in names)
