"""Where ``laurel`` starts: nothing heavy is imported before an interrupt can be answered quietly."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Entry point of ``laurel``; see :func:`laurel_graph.tools.cli.main`."""
    gc.set_threshold(100_000, 50, 50)  # one command makes millions of small objects and throws few away
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
