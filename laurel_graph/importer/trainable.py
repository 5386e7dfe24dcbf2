"""Which tensors of a file train: those of the LAuReL sites, or those that a person names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ..config import SiteSpec
from ..errors import SelectorError, near
from ..opset.schema import PREFIX, tensor_name


class Trainable:
    """Tells which tensors are trainable by name, and remembers which patterns matched."""

    def __init__(self, trainable: str | Sequence[str] | None, specs: Mapping[str, SiteSpec]) -> None:
        given = (trainable,) if isinstance(trainable, str) else trainable
        self.patterns = None if given is None else tuple(given)
        self._site_tensors = {tensor_name(site, name) for site, spec in specs.items() for name in spec.tensor_shapes()}
        self._matched: set[str] = set()
        self._seen: list[str] = []

    def __call__(self, name: str) -> bool:
        """Whether *name* is trainable; without patterns, whether it is a tensor of ours."""
        self._seen.append(name)
        if self.patterns is None:
            return name.startswith(f"{PREFIX}.") and not name.endswith(".one")
        hits = [pattern for pattern in self.patterns if pattern == name or fnmatchcase(name, pattern)]
        self._matched.update(hits)
        return bool(hits)

    def is_parameter(self, name: str) -> bool:
        """Whether the initializer *name* becomes a parameter by itself, not through the module of its site."""
        return self(name) and name not in self._site_tensors

    def check(self) -> None:
        """Raises SelectorError if a pattern matched nothing."""
        for pattern in self.patterns or ():
            if pattern not in self._matched:
                raise SelectorError(f"trainable={pattern!r} matches no tensor of the model.{near(pattern, self._seen)}")
