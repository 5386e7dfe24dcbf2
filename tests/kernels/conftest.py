"""Lets the sanitizer test run the battery on another build of the library."""

import os
from pathlib import Path

from laurel_graph import runtime

if "LAUREL_TEST_LIBRARY" in os.environ:
    runtime.library_path = lambda: Path(os.environ["LAUREL_TEST_LIBRARY"])
