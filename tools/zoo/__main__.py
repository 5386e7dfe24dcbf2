"""``python -m laurel_graph.tools.zoo``: detection over the zoo."""

import sys

from .detection import main

if __name__ == "__main__":
    sys.exit(main())
