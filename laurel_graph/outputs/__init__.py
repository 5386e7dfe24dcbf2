"""Everything that writes a file for the user goes through here, from the command line and from Python alike.

- What a command reads is never written, by whatever name or link it is reached (:func:`check_outputs`).
- A file is written under a name of its own beside the output, synced, read back, checked, and becomes visible by one
  rename (:func:`staged`). The weight files of a model lie in their final place before, under names that no visible
  model refers to, so that a death at any point leaves the old pair or the new one (:mod:`.models`).
- Temporaries are unique per call, go away on every exit that a program can catch, and those of a dead process are
  swept by the next command that writes into the folder (:mod:`.workspace`).
"""

from .files import Staged, check_outputs, staged, write
from .workspace import workspace

__all__ = ["Staged", "check_outputs", "staged", "workspace", "write"]
