"""``python -m laurel_graph.tools.cli``: the ``laurel`` command."""

from . import main

if __name__ == "__main__":
    main()
