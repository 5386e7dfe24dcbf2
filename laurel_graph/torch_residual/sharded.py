"""Parameters of which each process holds a part (``fully_shard``, ``parallelize_module``)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns *tensor* with all its values: a ``DTensor`` is gathered, which every process of its mesh has to do."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast("Tensor", gather())
