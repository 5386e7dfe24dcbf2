"""Which lines are the user's own, and which are ours or a library's."""

from __future__ import annotations

import sys

ROOMS = ("laurel_graph", "laurel_graph.passes", "laurel_graph.tools")


def is_ours(filename: str) -> bool:
    """Whether a file is part of this package, wherever its rooms lie."""
    folders = [folder for name in ROOMS if name in sys.modules for folder in sys.modules[name].__path__]
    return filename.startswith(tuple(f"{folder}/" for folder in folders))
