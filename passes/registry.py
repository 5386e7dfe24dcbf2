"""Which passes there are: ours, those of installed packages, and a user's own as ``module:attribute``.

A package makes its passes known by the entry point group ``laurel_graph.passes``::

    [project.entry-points."laurel_graph.passes"]
    my_pass = "my_package.passes:MyPass"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from laurel_graph.errors import ConfigError, near
from laurel_graph.foreign_names import foreign_text

from .base import FunctionPass, Pass
from .options import build

GROUP = "laurel_graph.passes"

OURS: Mapping[str, str] = {
    "detect": "finding:Detect",
    "select": "finding:Select",
    "place": "placing:Place",
    "try": "placing:Try",
    "insert": "changing:Insert",
    "remove": "changing:Remove",
    "inline": "changing:Inline",
    "outline": "changing:Outline",
    "add_head": "changing:Head",
    "export": "changing:Export",
    "fold": "serving:Fold",
    "absorb": "serving:Absorb",
    "fuse": "serving:Fuse",
    "raise_opset": "serving:RaiseOpset",
    "mark": "serving:Mark",
    "verify": "comparing:Verify",
}
"""Name to where the class stands in :mod:`laurel_graph.passes.standard`."""

Load = Callable[[str], Any]
"""Takes ``module:attribute`` and returns what it names."""


@cache
def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in OURS}


def known_passes() -> dict[str, str]:
    """Returns the name of every pass that needs no module, and where it comes from."""
    return {**dict.fromkeys(OURS, "laurel-graph"), **{name: point.value for name, point in _foreign().items()}}


def pass_class(name: str) -> Any:
    """Returns what stands behind a name: a class, an instance or a function.

    Raises:
        ConfigError: there is no pass of that name, or its package does not load.
    """
    if name in OURS:
        module, _, attribute = OURS[name].partition(":")
        return getattr(import_module(f"{__package__}.standard.{module}"), attribute)
    if name not in _foreign():
        known = known_passes()
        raise ConfigError(
            f"there is no pass and no module {name!r}.{near(name, known)} Give a pass of your own as module:attribute."
        )
    try:
        return _foreign()[name].load()
    except (Exception, SystemExit) as error:  # a foreign package is imported here
        raise ConfigError(
            f"pass {name!r} cannot be loaded from {_foreign()[name].value!r}: {type(error).__name__}: "
            f"{foreign_text(error)}."
        ) from error


def _is_module(name: str) -> bool:
    """Whether the first part of a dotted name can be imported."""
    try:
        return find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def load_attribute(reference: str) -> Any:
    """Returns what ``module:attribute`` names.

    Raises:
        ConfigError: the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError:
        raise ConfigError(f"pass {reference!r}: module {module!r} has no {attribute!r}.") from None
    except (Exception, SystemExit) as error:  # a user's module is imported here
        raise ConfigError(
            f"pass {reference!r}: module {module!r} cannot be imported ({type(error).__name__}: {foreign_text(error)})."
        ) from error


def parse_pass(text: str, load: Load = load_attribute) -> Pass:
    """Returns the pass that *text* asks for.

    Args:
        text: ``name``, ``name:option=value,option=value``, ``module:attribute`` or ``module:attribute:option=value``.
        load: what imports a user's own.

    Raises:
        ConfigError: there is no such pass, option or value.
    """
    name, _, rest = text.partition(":")
    if name in known_passes():
        found, options = pass_class(name), rest
    elif rest and "=" not in rest.partition(":")[0] and _is_module(name):
        attribute, _, options = rest.partition(":")
        name = f"{name}:{attribute}"
        found = load(name)
    else:
        found, options = pass_class(name), rest
    return as_pass(found, name, options)


def as_pass(found: Any, name: str, options: str = "") -> Pass:
    """Returns a pass from a pass class, a pass, or a function ``ModelProto -> ModelProto | None``.

    Args:
        found: what was given.
        name: what messages call it.
        options: options as text; a class alone takes any.

    Raises:
        ConfigError: it is nothing of these, or takes no options.
    """
    if isinstance(found, type) and issubclass(found, Pass):
        return build(found, options)
    if not callable(found) and not isinstance(found, Pass):
        raise ConfigError(f"{name!r} is a {type(found).__name__}: expected a Pass, or a function of a ModelProto.")
    if options:
        raise ConfigError(f"pass {name!r} is ready made and takes no options, found {options!r}.")
    return found if isinstance(found, Pass) else FunctionPass(found, name)
