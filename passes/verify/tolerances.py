"""What counts as equal: the largest difference over the scale of a channel, by element type."""

from __future__ import annotations

from typing import Final

VERIFIED: Final = {"float64": 1e-5, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Of two files of one kind that are to compute the same, and of a rewritten model at its start."""

DEPLOYED: Final = {"float64": 2e-5, "float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Of a deployed value and the trained one: when the file is written, and whenever the two are compared later."""
