"""Options of passes as text: ``insert:variant=rw+lr,rank=8`` becomes ``Insert(LaurelConfig("rw+lr", rank=8))``.

Options are read by the types of the fields. A field that holds a dataclass of options (the ``config`` of ``insert``)
stands for that one's fields. A field of several values takes its option several times.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from laurel_graph.config import SiteOverride
from laurel_graph.errors import ConfigError, near

from .base import Pass

YES, NO = ("", "yes", "true", "on", "1"), ("no", "false", "off", "0")
"""How a flag is spelt; the name alone means yes."""


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: what the command line calls it.
        kind: the type of its values.
        several: it may be given more than once.
        default: its value where it is not given; ``None`` where it is found out.
        text: what it is for.
        group: the field whose dataclass it belongs to, or "".
    """

    name: str
    kind: Any
    several: bool
    default: Any
    text: str
    group: str = ""

    @property
    def values(self) -> str:
        """What its values are, in a word or two."""
        words = {int: "a whole number", float: "a number", bool: "yes or no", Path: "a file", str: "text"}
        return words.get(self.kind, "GLOB=off, GLOB=VARIANT, GLOB=RANK or GLOB=VARIANT:RANK")


def attribute_help(options: type) -> dict[str, str]:
    """Returns field name to its text in the ``Attributes:`` section of the class's docstring and of its bases'."""
    found: dict[str, str] = {}
    for base in reversed(options.__mro__):
        found |= _own_help(base)
    return found


def _own_help(options: type) -> dict[str, str]:
    section = inspect.cleandoc(options.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
    return {field: text.replace("``", "") for field, text in found.items()}


def options_of(kind: type, group: str = "") -> dict[str, Option]:
    """Returns name to option of a pass, or of another dataclass; fields that text cannot give are left out."""
    hints, texts = get_type_hints(kind), attribute_help(kind)
    found: dict[str, Option] = {}
    for each in fields(kind):
        text = each.metadata.get("help", texts.get(each.name, ""))
        hint = next(part for part in _parts(hints[each.name]) if part is not type(None))
        if is_dataclass(hint) and isinstance(hint, type) and _starts_empty(hint):
            found |= options_of(hint, each.name)
        elif hint in (int, float, bool, Path, str):
            found[each.name] = Option(each.name, hint, False, _default(each), text, group)
        elif get_origin(hint) is tuple and get_args(hint)[0] is str:
            found[each.name] = Option(each.name, str, True, _default(each), text, group)
        elif SiteOverride in get_args(hint):
            found[each.name] = Option(each.name, SiteOverride, True, _default(each), text, group)
    return found


def _starts_empty(kind: Any) -> bool:
    """Whether a dataclass can be made of some of its fields alone."""
    return all(each.default is not MISSING or each.default_factory is not MISSING for each in fields(kind))


def _parts(hint: Any) -> Sequence[Any]:
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return each.default_factory() if each.default_factory is not MISSING else None


def build(kind: type[Pass], text: str) -> Pass:
    """Returns the pass of that class with the options in *text*: ``name=value,name=value``.

    Raises:
        ConfigError: an option is not known, is given twice, or has a value that is not valid.
    """
    known = options_of(kind)
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            hint = near(name, known) if known else " It has none."
            raise ConfigError(f"pass {kind.name!r} has no option {name!r}.{hint}")
        if name in given and not known[name].several:
            raise ConfigError(f"pass {kind.name!r}: the option {name!r} is given twice.")
        read = _read(kind.name, known[name], value.strip(), "=" in part)
        given[name] = (*given.get(name, ()), read) if known[name].several else read
    values: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, read in given.items():
        group = known[name].group
        place = groups.setdefault(group, {}) if group else values
        place[name] = dict(read) if known[name].kind is SiteOverride else read
    hints = get_type_hints(kind)
    for group, inner in groups.items():
        made: Any = next(part for part in _parts(hints[group]) if is_dataclass(part))
        values[group] = made(**inner)
    return kind(**values)


def _read(owner: str, asked: Option, text: str, has_value: bool) -> Any:
    place = f"pass {owner!r}: {asked.name} = {text!r}"
    if asked.kind is bool:
        if text.lower() in (*YES, *NO) and (text or not has_value):
            return text.lower() in YES
    elif asked.kind is SiteOverride and text:
        return parse_override(text, f"pass {owner!r}: {asked.name} =")
    elif text and asked.kind in (int, float, str, Path):
        try:
            return asked.kind(text)
        except ValueError:
            pass
    raise ConfigError(f"{place} is not valid: expected {asked.values}.")


def parse_override(text: str, place: str) -> tuple[str, SiteOverride]:
    """Returns the glob and what differs there, of ``GLOB=off``, ``GLOB=VARIANT``, ``GLOB=RANK`` or both with a colon.

    Args:
        text: one override.
        place: where it was given, for the message.

    Raises:
        ConfigError: it is something else.
    """
    glob, equals, value = text.rpartition("=")
    variant, _, rank = ("", "", value) if value.isdigit() else value.partition(":")
    if not equals or not glob or (rank and not rank.isdigit()):
        raise ConfigError(f"{place} {text!r}: expected GLOB=off, GLOB=VARIANT, GLOB=RANK or GLOB=VARIANT:RANK.")
    if variant == "off":
        return glob, SiteOverride(off=True)
    return glob, SiteOverride(variant=variant or None, rank=int(rank) if rank else None)


def parse_sizes(texts: Sequence[str], place: str) -> Mapping[str, int]:
    """Returns symbolic dim to size, of texts ``NAME=N``.

    Args:
        texts: one for each dim.
        place: where they were given, for the message.

    Raises:
        ConfigError: one of them is something else.
    """
    parsed = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value.isdigit():
            raise ConfigError(f"{place} {text!r}: expected NAME=N with N at least 0.")
        parsed[name] = int(value)
    return parsed
