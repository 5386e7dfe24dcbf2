"""Which terms there are: those of the package, those registered in this process, those of installed packages."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import TypeVar

from ..errors import ConfigError, UnknownVariantError
from ..foreign_names import LONGEST, foreign_text, printable
from .lr import LowRank
from .pa import Previous
from .rw import Weights
from .term import SYMBOLS, Axis, Option, Term

GROUP = "laurel_graph.variants"
"""The group of entry points; each names a module or a class that registers a term when it is loaded."""

TERMS: dict[str, Term] = {one.name: one for one in (Weights(), LowRank(), Previous())}
"""Name to term; the package's own come first."""

_OWN = tuple(TERMS)
_NAME = re.compile(r"[a-z][a-z0-9]*")
_TENSOR = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*")
_TAKEN = frozenset(
    [
        *("x", "f", "y", "w", "sum", "one", "bias", "scale", "offset", "spec", "joins"),
        *(name for own in (*TERMS.values(), TERMS["pa"].form("low-rank")) for name in own.tensors),
    ]
)
"""Names that no tensor of another term may have."""

_failures: list[str] = []
_plugins: list[str] = []
Kind = TypeVar("Kind", bound=type[Term])


def register(kind: Kind) -> Kind:
    """Registers a term, as a decorator of its class; a second class of one name takes the place of the first.

    Raises:
        ConfigError: the name is one of the package's own, or it, a tensor, an axis or an option is not valid.
    """
    found = kind()
    wrong = _fault(found)
    if wrong:
        raise ConfigError(f"the term {kind.__name__} cannot be registered: {wrong}.")
    TERMS[found.name] = found
    terms_of.cache_clear()
    return kind


def _fault(one: Term) -> str:
    if not _NAME.fullmatch(one.name) or one.name == "with" or one.name in _OWN:
        return f"name = {one.name!r}; expected lower-case letters and digits, none of with, {', '.join(_OWN)}"
    for tensor, axes in one.tensors.items():
        if not _TENSOR.fullmatch(tensor) or tensor in _TAKEN or re.fullmatch(r"previous_\d+", tensor):
            return f"tensor {tensor!r}: expected a name of letters and digits that no operand has"
        if not all(_is_axis(axis) for axis in axes):
            return f"tensor {tensor!r}: axes {axes!r}; expected sizes, {', '.join(SYMBOLS)}, C, or as 'k+2'"
    for option, value in one.options.items():
        if not _NAME.fullmatch(option) or not isinstance(value, Option):
            return f"option {option!r}: expected lower-case letters and digits, and an Option"
        value.read(option, value.default)
    if one.earlier is not None and one.earlier < 0:
        return f"earlier = {one.earlier}; expected None or a number from 0"
    return "" if one.tensors else "it has no tensors to learn"


def _is_axis(axis: Axis) -> bool:
    if isinstance(axis, int):
        return axis > 0
    return axis == "C" or re.fullmatch(rf"[{''.join(SYMBOLS)}](\+\d{{1,3}})?", axis) is not None


def term(name: str) -> Term:
    """Returns the term of a name.

    Raises:
        UnknownVariantError: none is registered, and no installed package has it.
    """
    if name not in TERMS:
        _load_installed()
    if name not in TERMS:
        broken = f" ({'; '.join(_failures)})" if _failures else ""
        raise UnknownVariantError(
            f"the variant {printable(name, LONGEST)!r} is not known here: expected one of {', '.join(TERMS)}. If it is "
            "your own or another package's, name the module that registers it with `laurel --plugin MODULE`, import it "
            f"in Python, or install the package that has it as an entry point of {GROUP}{broken}."
        )
    return TERMS[name]


@cache
def terms_of(variant: str, previous_map: str = "identity") -> tuple[Term, ...]:
    """Returns the terms of a canonical variant in the order of its name.

    Raises:
        UnknownVariantError: one is not registered.
    """
    return tuple(term(name).form(previous_map) for name in variant.split("+"))


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names of terms as a variant has them: the package's own first, then the others by name."""
    names = set(names)
    return [*(name for name in _OWN if name in names), *sorted(names - set(_OWN))]


def applied(terms: Iterable[Term]) -> list[Term]:
    """Returns terms in the order in which they change skip and branch."""
    return sorted(terms, key=lambda one: one.is_last)


def is_name(text: str) -> bool:
    """Whether a term may be called so."""
    return _NAME.fullmatch(text) is not None


def load_plugin(module: str) -> None:
    """Imports a module that registers terms (or roles, rules, handlers), as ``laurel --plugin`` does.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import_module(module)
        _plugins.append(module)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises when it is imported
        raise ConfigError(
            f"the plugin {module!r} cannot be imported: {type(error).__name__}: {foreign_text(error)}."
        ) from error


def plugins() -> tuple[str, ...]:
    """Returns the modules that a process of our own has to import to know what this one knows.

    A term that was typed in, into a session or run from a text, has none that could be imported.
    """
    terms = (type(one).__module__ for name, one in TERMS.items() if name not in _OWN)
    return tuple(
        module for module in dict.fromkeys((*_plugins, *terms)) if module != "__main__" and module in sys.modules
    )


@cache
def _load_installed() -> None:
    """Loads what installed packages name, all of it and once, whatever name was asked for."""
    from importlib.metadata import entry_points  # which takes its time

    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever the package raises when it is imported
            _failures.append(
                f"the entry point {entry.name} = {entry.value} failed with {type(error).__name__}: "
                f"{foreign_text(error)}"
            )
