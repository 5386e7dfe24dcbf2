"""Builds the documentation: ``sphinx-build -W docs build/docs`` (``make docs``)."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "laurel-graph"
author = "the laurel-graph authors"
try:
    release = metadata.version("laurel-graph")
except metadata.PackageNotFoundError:  # a checkout that is on the path, not installed
    release = "0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
add_module_names = False
html_theme = "furo"
html_title = "laurel-graph"
exclude_patterns = ["_build", "generated"]
