"""Several terms as one variant: its name, and the options that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import UnknownVariantError, invalid
from .registry import TERMS, in_order, is_name, term
from .term import Scalar, Term

VARIANTS = ("rw", "lr", "pa", "rw+lr", "rw+pa", "lr+pa", "rw+lr+pa")
"""Those that the package brings."""

Options = Mapping[str, Scalar] | tuple[tuple[str, Scalar], ...]
"""Values of the options of terms, by name; kept as sorted pairs, so that what holds them is hashable."""


def canonical_variant(variant: object) -> str:
    """Returns *variant* in canonical spelling: ``"PA + rw"`` becomes ``"rw+pa"``.

    Raises:
        ConfigError: *variant* is no name of a term, and no different ones joined by ``+``; two of its terms take
            earlier activations, or have tensors of one name.
        UnknownVariantError: one of its terms is not registered.
    """
    parts = [part.strip() for part in variant.lower().split("+")] if isinstance(variant, str) else []
    if not parts or len(parts) != len(set(parts)) or not all(map(is_name, parts)):
        own = [name for name in TERMS if name not in VARIANTS]
        raise invalid("variant", variant, f"one of {', '.join((*VARIANTS, *own))}, or several joined by +")
    try:
        terms = [term(name) for name in in_order(parts)]
    except UnknownVariantError as error:
        raise UnknownVariantError(f"variant = {variant!r} is not valid: {error}") from None
    takers = [one.name for one in terms if one.earlier != 0]
    if len(takers) > 1:
        raise invalid("variant", variant, f"at most one of {', '.join(takers)}, which all take earlier activations")
    tensors = [name for one in terms for name in one.tensors]
    if twice := sorted(name for name in set(tensors) if tensors.count(name) > 1):
        raise invalid("variant", variant, f"terms with tensors of different names; two have {twice[0]!r}")
    return "+".join(one.name for one in terms)


def read_settings(texts: Iterable[str] | None) -> dict[str, Scalar]:
    """Returns the options in texts ``NAME=VALUE``, as a command line has them.

    Raises:
        ConfigError: one is no pair.
    """
    settings: dict[str, Scalar] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise invalid("--set", text, "NAME=VALUE")
        settings[name.strip()] = value.strip()
    return settings


def options_of(terms: Iterable[Term], given: object) -> tuple[tuple[str, Scalar], ...]:
    """Returns every option of *terms* with its value, sorted: the one given, or the default.

    Raises:
        ConfigError: no term has an option of that name, or the value is not valid.
    """
    try:
        values: dict[str, object] = dict(given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise invalid("options", given, "a mapping from the name of an option to its value") from None
    known = {name: option for one in terms for name, option in one.options.items()}
    for name in values:
        if name not in known:
            valid = f"one of {', '.join(known)}" if known else "none: the variant has no options"
            raise invalid("options", name, valid)
    return tuple((name, known[name].read(name, values.get(name, known[name].default))) for name in sorted(known))
