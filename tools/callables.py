"""Functions of the user's own that an option names as ``package.module:function``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from laurel_graph.errors import ConfigError, LaurelError, near

from .failures import told


def is_reference(text: str) -> bool:
    """Returns whether *text* looks like ``package.module:function`` and is no existing file."""
    module, colon, name = text.rpartition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), name)) and not _is_file(text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name of a file, or with a NUL
        return False


@contextmanager
def current_folder() -> Iterator[None]:
    """Lets imports search the current folder too."""
    added = str(Path.cwd()) not in sys.path
    if added:
        sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        if added:
            sys.path.remove(str(Path.cwd()))


def load_plugin(module: str) -> None:
    """Imports the module that ``laurel --plugin`` names; the current folder is searched too.

    Raises:
        ConfigError: it cannot be imported.
    """
    from laurel_graph.variants import load_plugin as load

    with current_folder():
        load(module)


def load_callable(reference: str, option: str) -> Callable[..., Any]:
    """Returns the function that *reference* names; the current folder is searched too.

    Args:
        reference: ``package.module:function``.
        option: the option it was given to, for the message.

    Raises:
        ConfigError: the module cannot be imported, or has no such function.
    """
    function = load_attribute(reference, option)
    if not callable(function):
        name = reference.rpartition(":")[2]
        raise ConfigError(f"{option} = {reference!r}: {name!r} is a {type(function).__name__}; expected a function.")
    return function  # type: ignore[no-any-return]


def load_attribute(reference: str, option: str) -> Any:
    """Returns what *reference* names; the current folder is searched too.

    Args:
        reference: ``package.module:attribute``.
        option: the option it was given to, for the message.

    Raises:
        ConfigError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, name = reference.rpartition(":")
    try:
        with current_folder():
            module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises when it is imported
        why = error if isinstance(error, ModuleNotFoundError) else told(error)
        raise ConfigError(f"{option} = {reference!r}: module {module_name!r} cannot be imported ({why}).") from error
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = near(name, known)
        raise ConfigError(f"{option} = {reference!r}: module {module_name!r} has no function {name!r}.{hint}")
    return getattr(module, name)


def call(reference: str, option: str) -> Any:
    """Returns what the function that *reference* names returns when it is called without arguments.

    Raises:
        ConfigError: as for :func:`load_callable`, or the function failed; the message names the line.
    """
    function = load_callable(reference, option)
    return guarded(function, reference, option)()


def guarded(function: Callable[..., Any], reference: str, option: str) -> Callable[..., Any]:
    """Returns *function* with whatever it raises turned into a :class:`ConfigError` that names the user's line."""

    def call_it(*args: Any) -> Any:
        try:
            return function(*args)
        except LaurelError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise ConfigError(f"{option} = {reference!r} failed with {told(error)}.") from error

    return call_it
