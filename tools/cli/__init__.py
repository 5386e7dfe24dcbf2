"""The ``laurel`` command line: one function a command, each a thin door to a pass.

Exit codes: 0 done; 1 the answer is no (nothing found, not equal); 2 wrong input; 3 a fault of ours. Every heavy import
stands in the command that needs it, and the commands themselves are read when they are typed, so that ``laurel
--help`` answers at once and ONNX-only commands never import torch.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from laurel_graph.errors import LaurelError, invalid
from laurel_graph.tools import console
from laurel_graph.tools.console import note, pipe_closed, ready_streams, say

from .help import SUMMARIES, Command

INTERNAL = 3
"""Exit code of a fault of ours."""

ANYWHERE = ("--quiet", "--verbose", "--debug")
"""Flags that stand before or behind the command's name, as ``--log-level`` does."""

HOMES = {
    **dict.fromkeys(("transform", "apply", "remove", "inline", "outline", "deploy"), "change"),
    **dict.fromkeys(("inspect", "verify", "report", "doctor"), "look"),
    **dict.fromkeys(("run", "passes"), "passes"),
    **dict.fromkeys(("finetune", "sweep"), "train"),
    **dict.fromkeys(("guide", "data-template"), "guide"),
    "bench": "measure",
    "compare": "compare",
}
"""Command to the file of this folder that holds it."""


def build(words: Collection[str] | None = None) -> typer.Typer:
    """Returns the command line; all of it, or of the commands that are none of *words* only their summaries."""
    built = typer.Typer(
        help="Rewrite residual connections into LAuReL, fine-tune them, serve them on ONNX Runtime.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    built.callback(invoke_without_command=True)(_root)
    for name, summary in SUMMARIES.items():
        is_asked = words is None or name in words
        command = _read(name) if is_asked else _unread
        built.command(name, cls=Command, short_help=summary)(command)
    return built


def _read(name: str) -> Any:
    return getattr(import_module(f".{HOMES[name]}", __name__), name.replace("-", "_"))


def _unread() -> None:
    """Stands for a command that was not typed."""
    raise AssertionError("a command that is run was read")


def __getattr__(name: str) -> Any:
    """Builds the whole command line, ``app``, when it is first asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault("app", build())


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors; anywhere.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's own warnings, too; anywhere.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; anywhere.")] = False,
    log_level: Annotated[
        str, typer.Option(help=f"What stderr gets, one of {', '.join(console.LEVELS)}; anywhere.")
    ] = "info",
    plugin: Annotated[
        list[str] | None, typer.Option(help="Module that registers variants, roles, rules; before the command.")
    ] = None,
) -> None:
    for module in plugin or ():
        from laurel_graph.tools.callables import load_plugin

        load_plugin(module)
    if version:
        import laurel_graph

        say(laurel_graph.__version__)
        if laurel_graph.__version__ == laurel_graph.UNKNOWN_VERSION:
            note("note: this tree is not installed, so it has no version: run `pip install .` in its folder.")
        raise typer.Exit


def main() -> None:
    """Runs a command and exits: one line on stderr for whatever goes wrong, a traceback only with ``--debug``."""
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("LAUREL_DEBUG"))
    ready_streams()
    if not debug:
        for kind in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):  # of torch, for its developers
            warnings.simplefilter("ignore", kind)
    warnings.showwarning = lambda message, *_, **__: note(f"warning: {message}")
    code: Any
    try:
        level = _take_level(sys.argv)
        debug = debug or level == "debug"
        console.set_level("error" if "--quiet" in sys.argv else "debug" if debug or "--verbose" in sys.argv else level)
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in ANYWHERE]  # before or after the command's name
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        pipe_closed()
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = error.exit_code if isinstance(error, LaurelError) else INTERNAL
        console.complain(f"laurel: {error if isinstance(error, LaurelError) else _internal(error)}")
    sys.exit(code)


def _take_level(arguments: list[str]) -> str:
    """Takes ``--log-level LEVEL``, wherever it stands, out of *arguments* and returns the level.

    Raises:
        ConfigError: it is no level.
    """
    level = "info"
    for place, word in reversed(list(enumerate(arguments))):
        flag, equals, value = word.partition("=")
        if flag == "--log-level":
            level = value if equals else "".join(arguments[place + 1 : place + 2])
            del arguments[place : place + (1 if equals else 2)]
            if level not in console.LEVELS:
                raise invalid("--log-level", level, f"one of {', '.join(console.LEVELS)}")
    return level


def _run() -> Any:
    """Returns the exit code of the command in ``sys.argv``."""
    completes = any(name.endswith("_COMPLETE") for name in os.environ)  # the words stand in the environment then
    try:
        asked = None if completes else sys.argv[1:]
        return build(asked)(prog_name="laurel", standalone_mode=False) or 0
    except SystemExit as done:
        return done.code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer says of words that it does not understand
            raise
        if len(sys.argv) == 1:
            error.show()  # type: ignore[attr-defined]  # the help
        else:
            console.complain(f"laurel: {_misread(error)}")
        return error.exit_code  # type: ignore[attr-defined]


def _misread(error: Any) -> str:
    """Returns what typer says of a command line in one sentence, and the help that lists what is expected."""
    text = " ".join(error.format_message().split())
    text = re.sub(r"[Mm]issing argument '(\w+)\W*'", lambda found: f"Missing argument {found[1].upper()}", text)
    ctx = getattr(error, "ctx", None)
    called = ctx.command_path if ctx is not None else " ".join(["laurel", *sys.argv[1:2]])
    return f"{text.rstrip('.')}{'' if text.endswith('?') else ';'} `{called} -h` lists what is expected."


def _internal(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return (
        f"internal error: {type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno}): please "
        "report it; --debug shows the traceback"
    )
