"""The errors of laurel-graph: one small tree under :class:`LaurelError`.

Every message says what was expected, what was found (with the node, shape or dtype where there is one) and what to
do next. The command line prints the message alone, without a traceback, and exits with :attr:`LaurelError.exit_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from os import PathLike

from .foreign_names import LONGEST, printable


class LaurelError(Exception):
    """Base of every error that a user can cause or mend.

    Attributes:
        exit_code: what the command line exits with: 1 when the answer is "no", 2 when the input is wrong.
    """

    exit_code = 2


class ConfigError(LaurelError):
    """A field of :class:`laurel_graph.LaurelConfig` has a value outside its domain."""


class UnknownVariantError(ConfigError):
    """A config, model or adapter speaks of a variant that is not registered here."""


class ModelError(LaurelError):
    """A model could not be read, traced or understood (missing, truncated, not ONNX, untraceable)."""


class OutputError(LaurelError):
    """An output cannot be written (unwritable folder, the same file as the input, a directory)."""


class NoResidualError(LaurelError):
    """No residual connection was found or selected; the message lists the nearest misses."""

    exit_code = 1


class SelectorError(LaurelError):
    """A site selector matched nothing; the message lists near names."""


class RewriteError(LaurelError):
    """A residual connection was found but cannot be rewritten as asked."""


class AdapterError(LaurelError):
    """An adapter does not fit its model: missing, extra or wrong-shaped tensors, another base graph."""


class UnsupportedOperatorError(LaurelError):
    """An operator of an ONNX graph has no differentiable counterpart."""


class DataError(LaurelError):
    """Training data cannot be read, or its names, shapes or types do not fit the model or the loss."""


class TrainingError(LaurelError):
    """Training cannot go on: a value is not finite, the loss diverges, or nothing receives a gradient."""

    exit_code = 1


class VerificationError(LaurelError):
    """Two models that should compute the same do not."""

    exit_code = 1


class KernelLibraryError(LaurelError):
    """The library of fused kernels is asked for but is not there, or does not load."""


class DependencyError(LaurelError):
    """An optional package is needed; the message says which extra installs it."""


def invalid(name: str, value: object, valid: str) -> ConfigError:
    """Returns the error about a field or option whose value is not valid, given what is."""
    return ConfigError(f"{name} = {value!r} is not valid: expected {valid}.")


MOST_COMPARED = 5000
"""How many names :func:`near` looks at: comparing takes time, and foreign files may hold any number of any length."""


def near(name: str, known: Iterable[str], limit: int = 5) -> str:
    """Returns ``" Near names: a, b."`` for the known names closest to *name*, or an empty string."""
    known = [printable(each, LONGEST) for each in islice(dict.fromkeys(known), MOST_COMPARED)]
    matches = get_close_matches(printable(name, LONGEST), known, n=limit, cutoff=0.4) or known[:limit]
    return f" Near names: {', '.join(matches)}." if matches else ""


def check_order(call: str, first: object, second: object, kinds: tuple[str, str]) -> None:
    """Raises ConfigError where two arguments of *call* came in the other's place.

    Args:
        call: as it is meant, for the message.
        first: what came first.
        second: what came second.
        kinds: what each is meant to be: ``model`` (a path, a module, a graph), ``module``, ``path``, ``inputs``,
            ``adapter``, ``config``.
    """
    is_first, is_second = (_KINDS[kind] for kind in kinds)
    if is_first(second) and is_second(first) and not (is_first(first) and is_second(second)):
        shown = [repr(str(each)) if _is_path(each) else type(each).__name__ for each in (first, second)]
        found = f"{shown[0]} first and {shown[1]} second"
        raise ConfigError(f"expected {call}, found {found}: the two are in each other's place.")


def _is_path(value: object) -> bool:
    return isinstance(value, (str, PathLike))


def _ends(value: object, *endings: str) -> bool:
    return isinstance(value, (str, PathLike)) and str(value).lower().endswith(endings)


def _is_module(value: object) -> bool:
    return callable(getattr(type(value), "named_modules", None))


_KINDS: dict[str, Callable[[object], bool]] = {
    "module": _is_module,
    "model": lambda value: _is_module(value) or _ends(value, ".onnx") or hasattr(value, "graph"),
    "path": _is_path,
    "inputs": lambda value: not _is_path(value),
    "adapter": lambda value: _ends(value, ".safetensors", ".onnx_adapter"),
    "config": lambda value: type(value).__name__ == "LaurelConfig" or (_is_path(value) and not _ends(value, ".onnx")),
}
"""What an argument looks like, told without importing torch or onnx."""
