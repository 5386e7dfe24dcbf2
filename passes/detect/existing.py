"""The weights of LAuReL blocks that a published model has of its own: n + norm((n·Wl)·Wr), as in Gemma 3n."""

from __future__ import annotations

from laurel_graph.detection import Detection, Residual
from laurel_graph.foreign_names import bare
from laurel_graph.graph_view import Role

from .paths import LONGEST_CHAIN


def existing_blocks(found: Detection) -> dict[str, tuple[str, ...]]:
    """Returns site to the names of its two matrices, Wl and Wr, for every LAuReL block that is none of ours.

    Args:
        found: what detection says, with its graph.
    """
    view = found.view
    blocks: dict[str, tuple[str, ...]] = {}
    for item in found.evidence if view is not None else ():
        residual = item.verdict
        if not isinstance(residual, Residual) or residual.kind != "laurel" or view is None:
            continue
        if any(view.vertices[add].role is Role.LAUREL for add in item.adds):
            continue
        index = item.branches[0]
        weights: list[str] = []
        for _ in range(LONGEST_CHAIN):
            if index == item.fork:
                break
            vertex = view.vertices[index]
            if vertex.role is Role.LINEAR and vertex.weight:
                weights.insert(0, bare(vertex.weight, residual.body))
            index = next((u for u in vertex.inputs if view.vertices[u].data), vertex.inputs[0])
        blocks[residual.site] = tuple(weights)
    return blocks
