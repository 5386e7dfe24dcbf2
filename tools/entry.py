"""Where ``laurel`` starts: nothing heavy is imported before an interrupt can be answered quietly."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``laurel``; see :func:`laurel_graph.tools.cli.main`."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
