"""onnx-graphsurgeon at both ends: a ``gs.Graph`` of a model and back, with all that graphsurgeon does not carry.

:func:`to_graph` and :func:`to_model` are the way there and back; :mod:`.register` gives every ``gs.Graph`` the method
``laurel``, which puts a residual in by hand. The protos stay the stored form of a model: only what a person changes in
the ``gs.Graph`` changes in the file.
"""

from __future__ import annotations

from .convert import is_graph, to_graph, to_model
from .register import register

__all__ = ["is_graph", "register", "to_graph", "to_model"]
