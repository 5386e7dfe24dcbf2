"""Tells whether two models, torch modules or ONNX files, have the same base: the weights an adapter was trained on.

Neither names nor bytes survive an export, an optimiser, a cast or a quantiser, so a digest cannot tell. A fingerprint
holds a small sketch of every weight instead (:mod:`.sketch`), and two fingerprints are compared by numbers
(:mod:`.matching`), with three answers: the same base, another one, cannot tell.
"""

from .matching import Verdict, compare
from .sketch import Fingerprint, Sketch

__all__ = ["Fingerprint", "Sketch", "Verdict", "compare"]
