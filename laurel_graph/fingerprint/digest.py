"""The fingerprints of adapter files written before :mod:`.sketch`: digests, kept so that such files can be checked.

There was one kind for ONNX files, one for torch modules, and none that both have.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..onnx_model.tensors import sample_bytes
from ..onnx_model.walk import graphs_of
from ..opset.schema import METADATA_BASE, PREFIX, read_metadata

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn


def digest(model: ModelProto, base_dir: str | Path = "") -> str:
    """Returns a digest of the base graph that is the same before and after the insertion of LAuReL.

    It covers the names and types of inputs and outputs, the names of all computed values, and every initializer's
    name, type, shape and first and last bytes; what is ours (``laurel.*``) does not count.

    Raises:
        ModelError: external data is missing.
    """
    lines = []
    for graph in graphs_of(model.graph):
        for kind, infos in (("in", graph.input), ("out", graph.output)):
            lines += [f"{kind} {info.name} {info.type.tensor_type.elem_type}" for info in infos]
        lines += [f"value {output}" for node in graph.node for output in node.output if output]
        lines += [
            f"tensor {t.name} {t.data_type} {tuple(t.dims)} {hashlib.sha256(sample_bytes(t, base_dir)).hexdigest()}"
            for t in graph.initializer
        ]
    lines = sorted(line for line in lines if not line.split(" ", 2)[1].startswith(f"{PREFIX}."))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digests(model: ModelProto, base_dir: str | Path) -> dict[str, str]:
    """Returns kind to digest of an ONNX file's base: its own, and that of the module it was exported from."""
    try:
        exported = json.loads(read_metadata(model, METADATA_BASE) or "{}")
    except (ValueError, RecursionError):
        exported = {}
    kept = {kind: text for kind, text in exported.items() if isinstance(text, str)} if type(exported) is dict else {}
    return {**kept, "onnx": digest(model, base_dir)}


def module_digests(module: nn.Module) -> dict[str, str]:
    """Returns kind to digest of a module's base: its frozen weights, or the file it was imported from."""
    from ..torch_residual.import_record import import_record
    from ..torch_residual.sharded import whole
    from .from_torch import base_weights

    record = import_record(module)
    if record is not None:
        return dict(record.digests)
    digests = []
    for p in base_weights(module).values():
        flat = whole(p.detach()).flatten()
        ends = (end.double().cpu().numpy().tobytes() for end in (flat[:1024], flat[-1024:]))
        digests.append(hashlib.sha256(b"".join((repr(tuple(p.shape)).encode(), *ends))).hexdigest())
    return {"torch": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()} if digests else {}
