"""What the command line prints where: results on stdout, progress and errors on stderr, JSON alone."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from laurel_graph.names import printable


def print_json(data: Any) -> None:
    """Prints one JSON object on stdout; values JSON does not know (infinity, paths) are written as text or null.

    Characters that are not printable are written as JSON's own escapes.
    """
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False)
    _write(re.sub(r"[^\n -~]", _json_escape, text) + "\n")


def _json_escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table on stdout; numbers are right-aligned. Nothing in it is read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(cell) if isinstance(cell, str) else format_cell(cell) for cell in row] for row in rows]
    title_text = Text(printable(title), style="table.title")
    table = Table(title=title_text, title_justify="left", show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1] in "-0123456789" for row in cells if row[i])
        table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    console.on_broken_pipe = pipe_closed  # type: ignore[method-assign]
    console.print(table)


def format_cell(value: object) -> str:
    """Returns a number in four significant digits, a boolean as yes or no, ``None`` as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def say(text: str) -> None:
    """Prints one line (or more) on stdout."""
    _write(_lines(text))


def print_wrote(json: bool, what: dict[str, Any]) -> None:
    """Says which file was written: *what* as JSON, or the path under ``output`` in a line."""
    if json:
        print_json(what)
    else:
        say(f"wrote {what['output']}")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        pipe_closed()


def ready_streams() -> None:
    """Makes stdout and stderr take any text, and swallow it where the program was started without them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def pipe_closed() -> NoReturn:
    """Ends the program quietly: nobody reads what it prints any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def note(text: str) -> None:
    """Prints one line (or more) on stderr."""
    sys.stderr.write(_lines(text))


def _lines(text: str) -> str:
    """Returns *text* with nothing in it that could act on a terminal, other than line breaks."""
    return "\n".join(map(printable, text.split("\n"))) + "\n"


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows *text* on stderr while the block runs; a plain line where stderr is no terminal."""
    if not sys.stderr.isatty():
        note(f"{text} ...")
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(text))):
        yield


def quiet_runtime() -> None:
    """Keeps ONNX Runtime's warnings about the models themselves off stderr; its errors become ours."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
