"""Which lines are the user's own, and which are ours or a library's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOMS = ("laurel_graph", "laurel_graph.passes", "laurel_graph.tools")


def is_ours(filename: str) -> bool:
    """Whether a file is part of this package, wherever its rooms lie.

    Where a room's own file lies counts, not its ``__path__``: that of an editable install names the folder around it,
    in which the user's files may be, too.
    """
    files = [sys.modules[name].__file__ for name in ROOMS if name in sys.modules]
    return filename.startswith(tuple(f"{Path(file).parent}{os.sep}" for file in files if file))
