"""Command-line flags made from a dataclass of options: its fields are the flags, its docstring their help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from laurel_graph.passes.options import attribute_help

_VALUES = ("no ", "all ")
"""How texts begin that begin with a value of the flag."""


def with_flags(
    options: type,
    arguments: tuple[str, ...] = (),
    spellings: Mapping[str, tuple[str, ...]] | None = None,
    panels: Mapping[str, tuple[str, ...]] | None = None,
    without: tuple[str, ...] = (),
    said: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a function ``run(options, **own)`` the fields of a dataclass as its command-line parameters.

    Args:
        options: the dataclass; the command builds one and passes it first.
        arguments: fields that are positional arguments.
        spellings: field to its flags, where they are not ``--field-name``.
        panels: heading to the fields that the help shows under it; the others are under "Options".
        without: fields that are no flags of this command.
        said: field to its help, where this command says something else of it than the docstring.
    """
    panel_of = {name: heading for heading, names in (panels or {}).items() for name in names}
    hints, texts = get_type_hints(options), attribute_help(options)

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]

        def command(**values: Any) -> None:
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
            run(options(**given), **mine)

        parameters = []
        for field in fields(options):
            if field.name in without:
                continue
            kind, default = _parameter(field, hints[field.name])
            flags = (spellings or {}).get(field.name, (f"--{field.name.replace('_', '-')}",))
            text = (said or {}).get(field.name, texts.get(field.name, ""))
            if text.partition(" ")[0].isalpha() and not text.startswith(_VALUES):
                text = text[0].upper() + text[1:]
            panel = panel_of.get(field.name)
            positional = field.name in arguments
            info = typer.Argument(help=text) if positional else typer.Option(*flags, help=text, rich_help_panel=panel)
            annotation: Any = Annotated.__class_getitem__((kind, info))  # type: ignore[attr-defined]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
        parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = run.__name__, run.__doc__
        return command

    return decorate


def _parameter(field: Field[Any], hint: Any) -> tuple[Any, Any]:
    """Returns the type and the default that typer shows for one field; tuples become lists, no path is no default."""
    default: Any = inspect.Parameter.empty
    if field.default is not MISSING:
        default = None if field.default == Path() else field.default
    elif field.default_factory is not MISSING:
        default = field.default_factory()
    for kind in (hint, *(get_args(hint) if isinstance(hint, UnionType) else ())):
        if get_origin(kind) is tuple:
            values = list(default) if isinstance(default, tuple) and default else None
            return GenericAlias(list, get_args(kind)[:1]) | None, values
    return hint | None if default is None else hint, default
