"""``python -m laurel_graph.tools.conformance``: ONNX's single-node cases through the importer."""

import sys

from .cases import main

if __name__ == "__main__":
    sys.exit(main())
